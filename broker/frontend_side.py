"""What frontends say, and what it means for their jobs."""

from typing import assert_never

from broker.admission import Admission, Refusal
from broker.frontends import Frontend
from broker.job_life import JobLife
from broker.snapshot import snapshot
from broker.state import BrokerState
from proto.messages import (
    FrontendReport,
    JobState,
    JobStatus,
    Leave,
    Refuse,
    SnapshotRequest,
    Submit,
    ToBrokerFromFrontend,
)


class FrontendSide:
    def __init__(self, state: BrokerState, job_life: JobLife) -> None:
        self._state = state
        self._job_life = job_life

    def receive(self, route: bytes, message: ToBrokerFromFrontend, now: float) -> None:
        match message:
            case FrontendReport(incarnation=incarnation) | Submit(incarnation=incarnation) if (
                incarnation in self._state.frontends.left
            ):
                pass  # Late words of one that said good-bye.
            case FrontendReport():
                self._frontend_reported(route, message, now)
            case Submit():
                self._submitted(route, message, now)
            case SnapshotRequest(seq=seq):
                picture = snapshot(
                    self._state.broker_id,
                    self._state.epoch,
                    seq,
                    now,
                    self._state.workers,
                    self._state.jobs,
                    self._state.counters,
                )
                self._state.send_frontend(route, picture)
            case Leave(incarnation=incarnation):
                self._state.frontends.leave(incarnation)
                frontend = self._state.frontends.get(incarnation)
                if frontend is not None:
                    self._state.note("frontend left", frontend_id=frontend.frontend_id)
                    self._remove(frontend)
            case _:
                assert_never(message)

    def _frontend_reported(self, route: bytes, report: FrontendReport, now: float) -> None:
        frontend = self._heard_frontend(route, report, now)
        if report.seq <= frontend.report_seq:
            return
        frontend.report_seq = report.seq
        listed = {entry.job_id for entry in report.jobs}
        for job in self._state.jobs.owned_by(report.incarnation):
            if job.submit_seq > report.seq:
                continue
            if job.job_id in listed:
                self._job_life.deliver_again_if_due(job, now)
            else:
                self._job_life.end(job)
        self._state.send_statuses(frontend, *(self._status(entry.job_id) for entry in report.jobs))

    def _heard_frontend(self, route: bytes, message: FrontendReport | Submit, now: float) -> Frontend:
        if self._state.frontends.get(message.incarnation) is None:
            self._state.note("frontend registered", frontend_id=message.frontend_id)
        return self._state.frontends.heard(message.frontend_id, message.incarnation, route, message.seq, now)

    def _status(self, job_id: bytes) -> JobStatus:
        job = self._state.jobs.get(job_id)
        return JobStatus(job_id=job_id, state=JobState.UNKNOWN) if job is None else job.status()

    def _submitted(self, route: bytes, submit: Submit, now: float) -> None:
        frontend = self._heard_frontend(route, submit, now)
        if submit.seq <= frontend.report_seq:
            return  # Overtaken by a report; whether the job is still wanted will be said again.
        job = self._state.jobs.get(submit.claim.job_id)
        if job is None:
            refusal = None if submit.accepted else self._admission().judge(submit, now)
            if refusal is not None:
                self._refuse(frontend, submit, refusal)
                return
            job = self._job_life.admit(submit, now)
        else:
            job.owner, job.submit_seq = submit.incarnation, submit.seq
            job.deadline = now + submit.claim.remaining_ms / 1000
        before = job.state
        self._job_life.dispatch(now)
        if job.state is before:
            self._job_life.tell_owner(job)  # Otherwise the dispatch has told it.

    def _admission(self) -> Admission:
        return Admission(
            workers=self._state.workers,
            jobs=self._state.jobs,
            run_times=self._state.run_times,
            timing=self._state.timing,
            queue_limit=self._state.queue_limit,
            draining=self._state.draining,
            is_young=self._state.is_young,
        )

    def _refuse(self, frontend: Frontend, submit: Submit, refusal: Refusal) -> None:
        self._state.counters.rejected[refusal.reason] += 1
        self._state.note("job refused", job_id=submit.claim.job_id, reason=refusal.reason.value)
        retry_after_ms = None if refusal.retry_after_s is None else round(refusal.retry_after_s * 1000)
        refuse = Refuse(
            reason=refusal.reason,
            detail=refusal.detail,
            job_id=submit.claim.job_id,
            retry_after_ms=retry_after_ms,
        )
        self._state.send_frontend(frontend.route, refuse)

    def watch(self, now: float) -> None:
        for frontend in list(self._state.frontends):
            self._watch(frontend, now)

    def unreachable(self, route: bytes, now: float) -> None:
        """A message to this route found no connection."""
        for frontend in self._state.frontends:
            if frontend.route == route and frontend.unreachable_since is None:
                frontend.unreachable_since = now

    def _watch(self, frontend: Frontend, now: float) -> None:
        """As workers are watched: a process that was killed is noticed by its connection."""
        timing, gone = self._state.timing, frontend.unreachable_since
        silent_s = now - frontend.heard_at
        is_gone = gone is not None and now - gone >= timing.unreachable_grace_s
        if is_gone or silent_s >= timing.peer_lost_s:
            reason = "its connection is gone" if is_gone else f"silent for {silent_s:.1f} s"
            self._state.note("frontend lost", "warning", frontend_id=frontend.frontend_id, reason=reason)
            self._remove(frontend)
        elif silent_s >= timing.probe_after_s:
            self._state.send_statuses(frontend)

    def _remove(self, frontend: Frontend) -> None:
        """Its RPCs have nobody to answer them any more."""
        self._state.frontends.remove(frontend)
        for job in self._state.jobs.owned_by(frontend.incarnation):
            self._job_life.end(job)
