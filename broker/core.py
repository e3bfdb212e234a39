"""The broker's decisions, without sockets and clock: `events.py` in, `actions.py` out.

What it knows of workers and jobs is a cache, rebuilt from their reports. What it wants of a worker is never
stored but derived from the job table whenever a view is made (PROTOCOL.md §5.7).
"""

from collections.abc import Callable
from typing import assert_never

from broker.actions import Action, Emptied
from broker.events import (
    DrainRequested,
    Event,
    FromFrontend,
    FromWorker,
    FrontendUnreachable,
    HeardUntil,
    TimerFired,
    WorkerUnreachable,
)
from broker.frontend_side import FrontendSide
from broker.invariants import check_tables
from broker.job_life import JobLife
from broker.state import BrokerState
from broker.worker_side import WorkerSide
from proto.timing import Timing


class Broker:
    def __init__(
        self,
        *,
        broker_id: str,
        epoch: bytes,
        new_execution_id: Callable[[], bytes],
        timing: Timing,
        queue_limit: int = 0,
        is_first: bool = False,
    ) -> None:
        """`epoch` is random and names this life of the broker; `queue_limit` new jobs may wait."""
        self.state = BrokerState(
            broker_id=broker_id,
            epoch=epoch,
            new_execution_id=new_execution_id,
            timing=timing,
            queue_limit=queue_limit,
            is_first=is_first,
        )
        self._job_life = JobLife(self.state)
        self._worker_side = WorkerSide(self.state, self._job_life)
        self._frontend_side = FrontendSide(self.state, self._job_life)
        self._next_round_at: float | None = None
        self._told_ready = 0
        self._told_behind = False
        self._told_empty = False

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at the instant `now` (seconds of a monotonic clock) and say what is to be done."""
        self.state.advance(now)
        self._pardon_silence(now)
        self._end_rebuild(now)
        match event:
            case FromWorker(route=route, message=message):
                self._worker_side.receive(route, message, now)
            case FromFrontend(route=route, message=message):
                self._frontend_side.receive(route, message, now)
            case WorkerUnreachable(route=route):
                self._worker_side.unreachable(route, now)
            case FrontendUnreachable(route=route):
                self._frontend_side.unreachable(route, now)
            case HeardUntil(instant=instant):
                self._fall_behind(instant, now)
            case DrainRequested():
                self._drain()
            case TimerFired():
                pass  # A round is made below when it is due: a busy broker looks after its peers as well.
            case _:
                assert_never(event)
        is_round = self._next_round_at is not None and now >= self._next_round_at
        if is_round:
            self._make_round(now)
        self._job_life.dispatch(now)
        self._tell_readiness(is_round=is_round)
        self._tell_emptiness()
        self._arm(now)
        actions, self.state.outbox = self.state.outbox, []
        return actions

    def next_deadline(self) -> float | None:
        """When to send `TimerFired`, on the clock of `handle`; None while there is nobody to watch."""
        return self._next_round_at

    def check_invariants(self) -> None:
        """Raise AssertionError if the tables contradict each other."""
        check_tables(self.state)

    def _pardon_silence(self, now: float) -> None:
        """While the broker itself stood still it could hear nobody: that is no peer's silence."""
        due_at = self._next_round_at
        timing = self.state.timing
        if due_at is not None and (late_s := now - due_at) > timing.probe_interval_s:
            if late_s >= timing.heartbeat_interval_s:  # Less is nothing that an operator could act on.
                self.state.note("broker stood still", "warning", for_s=round(late_s, 3))
            self.state.pardon(late_s)

    def _fall_behind(self, heard_until: float | None, now: float) -> None:
        """What waits to be told is no silence of those who have sent it."""
        self.state.hear_until(heard_until)
        lag_s = now - self.state.silence_at
        if lag_s >= self.state.timing.probe_after_s and not self._told_behind:
            self._told_behind = True
            self.state.note("broker is behind", "warning", lag_s=round(lag_s, 3))
        elif heard_until is None and self._told_behind:
            self._told_behind = False
            self.state.note("broker has caught up")

    def _make_round(self, now: float) -> None:
        """Look after everybody. Rounds are `probe_interval_s` apart: nothing here is more punctual."""
        self._next_round_at = None
        self._worker_side.watch(now)
        self._frontend_side.watch(now)
        self._job_life.watch_all(now)

    def _end_rebuild(self, now: float) -> None:
        if self.state.is_rebuilt or self.state.is_rebuilding:
            return
        self.state.note("rebuilt", workers=len(self.state.workers), jobs=len(self.state.jobs))
        self._job_life.dispatch(now)  # The accepted go first, and then it is seen who is idle.
        self._frontend_side.judge_pending(now)
        for worker in self.state.workers:  # What was spared for calls that have not come is wanted no more.
            self.state.send_worker_view(worker)
        self._tell_frontends()

    def _arm(self, now: float) -> None:
        state = self.state
        watching = state.is_rebuilding or any(
            (state.workers, state.workers.lost, state.jobs, state.frontends)
        )
        if not watching:
            self._next_round_at = None
        elif self._next_round_at is None:
            self._next_round_at = now + state.timing.probe_interval_s
            if state.is_rebuilding:
                self._next_round_at = min(self._next_round_at, state.rebuilt_at)

    def _tell_readiness(self, *, is_round: bool) -> None:
        """That there is a worker, or none any more, at once; how many there are, with the next round.

        When a thousand workers come at once, each frontend need not hear of each.
        """
        ready = self.state.ready_workers()
        if bool(ready) != bool(self._told_ready) or (is_round and ready != self._told_ready):
            self._told_ready = ready
            self._tell_frontends()

    def _drain(self) -> None:
        if not self.state.draining:
            self.state.draining = True
            self.state.note("broker draining", jobs=len(self.state.jobs))
            self._tell_frontends()

    def _tell_emptiness(self) -> None:
        if self.state.draining and not self.state.jobs and not self._told_empty:
            self._told_empty = True
            self.state.outbox.append(Emptied())

    def _tell_frontends(self) -> None:
        for frontend in self.state.frontends:
            self.state.send_statuses(frontend)
