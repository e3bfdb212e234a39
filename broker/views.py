"""The views that the broker sends to its peers."""

from dataclasses import dataclass

from broker.frontends import Frontend
from broker.wishes import Wishes
from broker.workers import Worker
from proto.messages import FrontendView, JobStatus, WorkerView


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMaker:
    broker_id: str
    epoch: bytes
    heartbeat_interval_s: float

    def for_worker(self, worker: Worker, wishes: Wishes) -> WorkerView:
        return WorkerView(
            broker_id=self.broker_id,
            epoch=self.epoch,
            echo=worker.seq,
            heartbeat_interval_ms=round(self.heartbeat_interval_s * 1000),
            cancel=wishes.cancel,
            release=wishes.release,
            keep=wishes.keep,
            resend=wishes.resend,
            wanted=wishes.wanted,
        )

    def for_frontend(
        self,
        frontend: Frontend,
        statuses: tuple[JobStatus, ...],
        *,
        ready_workers: int,
        draining: bool,
        rebuilding: bool,
    ) -> FrontendView:
        return FrontendView(
            broker_id=self.broker_id,
            epoch=self.epoch,
            echo=frontend.seq,
            heartbeat_interval_ms=round(self.heartbeat_interval_s * 1000),
            ready_workers=ready_workers,
            draining=draining,
            rebuilding=rebuilding,
            jobs=statuses,
        )
