"""What frontends say, and what it means for their jobs."""

from typing import assert_never

from broker.frontends import MAX_FRONTENDS, Frontend
from broker.job_life import JobLife
from broker.jobs import Job, Waiter
from broker.snapshot import snapshot
from broker.state import BrokerState
from broker.submissions import Submissions
from proto.failures import RefusalReason
from proto.messages import (
    FrontendReport,
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
        self._submissions = Submissions(state, job_life)

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
                    self._remove(frontend, now)
            case _:
                assert_never(message)

    def _frontend_reported(self, route: bytes, report: FrontendReport, now: float) -> None:
        frontend = self._heard_frontend(route, report, now)
        if frontend is None or report.seq <= frontend.report_seq:
            return
        frontend.report_seq = report.seq
        listed, elsewhere = set(report.jobs), set(report.elsewhere)
        for job, waiter_id, waiter in self._state.jobs.waited_for_by(report.incarnation):
            if waiter.submit_seq > report.seq:
                continue
            if waiter_id in listed:
                self._job_life.still_listed(job, waiter, now)
            elif waiter_id not in elsewhere:
                self._job_life.leave(job, waiter_id)
        self._let_go(report)
        self._miss(report, listed | elsewhere)
        self._submissions.reported(frontend, listed)
        statuses = [self._submissions.status(job_id) for job_id in report.jobs]
        self._state.send_statuses(frontend, *statuses)

    def _let_go(self, report: FrontendReport) -> None:
        """Its calls that wait at another broker now, also those of which it was thought to be lost."""
        for waiter_id in report.elsewhere:
            job = self._state.jobs.of_waiter(waiter_id) or self._state.jobs.get(waiter_id)
            if job is not None and self._has_moved(job.waiters.get(waiter_id), job, report):
                self._job_life.let_go(job, waiter_id)

    def _miss(self, report: FrontendReport, named: set[bytes]) -> None:
        """Its calls that ended while it was thought to be lost."""
        for job, waiter_id, waiter in self._state.jobs.lost_with(report.incarnation):
            if waiter.submit_seq <= report.seq and waiter_id not in named:
                self._job_life.miss(job, waiter_id)

    @staticmethod
    def _has_moved(waiter: Waiter | None, job: Job, report: FrontendReport) -> bool:
        if waiter is None:
            return not job.waiters
        return waiter.frontend == report.incarnation and waiter.submit_seq <= report.seq

    def _heard_frontend(self, route: bytes, message: FrontendReport | Submit, now: float) -> Frontend | None:
        """None for one too many."""
        frontends = self._state.frontends
        if frontends.get(message.incarnation) is None:
            if len(frontends) >= MAX_FRONTENDS:
                self._state.shed("frontends")
                refuse = Refuse(
                    reason=RefusalReason.BROKER_FULL, detail=f"{MAX_FRONTENDS} frontends are known already"
                )
                self._state.send_frontend(route, refuse)
                return None
            self._state.note("frontend registered", frontend_id=message.frontend_id)
        return frontends.heard(message.frontend_id, message.incarnation, route, message.seq, now)

    def _submitted(self, route: bytes, submit: Submit, now: float) -> None:
        frontend = self._heard_frontend(route, submit, now)
        if frontend is not None and submit.seq > frontend.report_seq:
            self._submissions.take(frontend, submit, now)
        # Otherwise a report has overtaken it; whether the job is still wanted will be said again.

    def judge_pending(self, now: float) -> None:
        self._submissions.judge_pending(now)

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
        silent_s = self._state.silence_at - frontend.heard_at
        is_gone = gone is not None and self._state.silence_at - gone >= timing.unreachable_grace_s
        if is_gone or silent_s >= timing.peer_lost_s:
            reason = "its connection is gone" if is_gone else f"silent for {silent_s:.1f} s"
            self._state.note("frontend lost", "warning", frontend_id=frontend.frontend_id, reason=reason)
            self._remove(frontend, now)
        elif silent_s >= timing.probe_after_s:
            self._state.send_statuses(frontend)

    def _remove(self, frontend: Frontend, now: float) -> None:
        """Its RPCs have nobody to answer them any more."""
        self._submissions.forget(frontend)
        for job, waiter_id, _ in self._state.jobs.waited_for_by(frontend.incarnation):
            self._job_life.orphan(job, waiter_id, now)
        self._state.frontends.remove(frontend)
