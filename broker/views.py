"""What the broker says to its peers: derived from the tables at the moment of sending, never stored."""

from dataclasses import dataclass

from broker.frontends import Frontend
from broker.jobs import JobTable
from broker.workers import Worker
from proto.messages import FrontendView, JobStatus, WorkerView


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMaker:
    broker_id: str
    epoch: bytes
    heartbeat_interval_s: float

    def for_worker(self, worker: Worker, jobs: JobTable) -> WorkerView:
        """What is wanted of a worker, given what it last reported (PROTOCOL.md §5.7)."""
        running, held = worker.report.running, worker.report.held
        unwanted_run = running is not None and not jobs.wants(running.claim.job_id, running.execution_id)
        return self._worker_view(
            worker,
            cancel=(running.execution_id,) if running is not None and unwanted_run else (),
            release=tuple(
                outcome.execution_id
                for outcome in held
                if not jobs.wants(outcome.claim.job_id, outcome.execution_id)
            ),
            resend=tuple(
                outcome.execution_id
                for outcome in held
                if jobs.dispatched_as(outcome.claim.job_id, outcome.execution_id) is not None
            ),
        )

    def resend(self, worker: Worker, execution_id: bytes) -> WorkerView:
        """The outcome was passed on, and did not arrive."""
        return self._worker_view(worker, resend=(execution_id,))

    def _worker_view(
        self,
        worker: Worker,
        cancel: tuple[bytes, ...] = (),
        release: tuple[bytes, ...] = (),
        resend: tuple[bytes, ...] = (),
    ) -> WorkerView:
        return WorkerView(
            broker_id=self.broker_id,
            epoch=self.epoch,
            echo=worker.seq,
            heartbeat_interval_ms=round(self.heartbeat_interval_s * 1000),
            cancel=cancel,
            release=release,
            resend=resend,
        )

    def for_frontend(
        self, frontend: Frontend, statuses: tuple[JobStatus, ...], ready_workers: int, draining: bool
    ) -> FrontendView:
        return FrontendView(
            broker_id=self.broker_id,
            epoch=self.epoch,
            echo=frontend.seq,
            heartbeat_interval_ms=round(self.heartbeat_interval_s * 1000),
            ready_workers=ready_workers,
            draining=draining,
            jobs=statuses,
        )
