"""The life of the engine processes: one at a time, replaced when it dies, after a pause that grows.

Pure: it says what to start and what to kill; `session.py` puts that into actions.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import assert_never

from gpu_worker.limits import SessionLimits
from proto.messages import ModelCard, WorkerPhase


@dataclass(frozen=True, slots=True)
class Down:
    """There is no process; the next is started at `restart_at`."""

    restart_at: float
    failures: int
    """In a row, without the engine having been ready in between."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    child: int
    failures: int
    progress_at: float
    activity: str
    percent: int


@dataclass(frozen=True, slots=True)
class Ready:
    child: int
    model: ModelCard


@dataclass(frozen=True, slots=True)
class Dying:
    """Killed; it holds its device until it is reaped."""

    child: int
    failures: int
    reason: str


EngineState = Down | Loading | Ready | Dying


@dataclass(slots=True, kw_only=True)
class EngineKeeper:
    limits: SessionLimits
    started_at: float

    state: EngineState = field(init=False)
    children: int = 0
    """Processes started so far; the latest one has this number."""

    def __post_init__(self) -> None:
        self.state = Down(self.started_at, 0, "not started yet")

    @property
    def restarts(self) -> int:
        return max(0, self.children - 1)

    def is_present(self, child: int) -> bool:
        """Whether this process lives, as far as is known: words of others are those of the dead."""
        return not isinstance(self.state, Down) and self.state.child == child

    def next_deadline(self) -> float | None:
        match self.state:
            case Down(restart_at=restart_at):
                return restart_at
            case Loading(progress_at=progress_at):
                return progress_at + self.limits.load_s
            case Ready() | Dying():
                return None
            case _:
                assert_never(self.state)

    def start_if_due(self, now: float) -> int | None:
        """The number of the process to start now, if one is to be started."""
        if not isinstance(self.state, Down) or now < self.state.restart_at:
            return None
        self.children += 1
        self.state = Loading(
            child=self.children, failures=self.state.failures, progress_at=now, activity="starting", percent=0
        )
        return self.children

    def hangs(self, now: float) -> bool:
        """Whether it loads without progress for too long."""
        return isinstance(self.state, Loading) and now >= self.state.progress_at + self.limits.load_s

    def loading(self, activity: str, percent: int, now: float) -> bool:
        """True if there is something new to report."""
        if not isinstance(self.state, Loading):
            return False
        percent = min(max(percent, 0), 100)
        is_new = (activity, percent) != (self.state.activity, self.state.percent)
        self.state = dataclasses.replace(self.state, progress_at=now, activity=activity, percent=percent)
        return is_new

    def ready(self, model: ModelCard) -> bool:
        """False if it is too late: a killed process does not come back."""
        if not isinstance(self.state, Loading):
            return False
        self.state = Ready(self.state.child, model)
        return True

    def kill(self, reason: str) -> int | None:
        """The number of the process to kill; None if there is none, or it is being killed already."""
        if not isinstance(self.state, Loading | Ready):
            return None
        failures = self.state.failures if isinstance(self.state, Loading) else 0
        self.state = Dying(self.state.child, failures, reason)
        return self.state.child

    def gone(self, reason: str, now: float) -> float:
        """It was reaped. Gives the seconds until its successor is started."""
        failures = self.state.failures + 1 if isinstance(self.state, Loading | Dying) else 1
        pause_s = 0.0
        if failures > 1:
            pause_s = min(self.limits.backoff_s * 2.0 ** min(failures - 2, 30), self.limits.backoff_max_s)
        self.state = Down(now + pause_s, failures, reason)
        return pause_s

    def report(self) -> tuple[WorkerPhase, str, int]:
        """What a report says of it: the phase, what it does, and percent of the loading."""
        match self.state:
            case Down(failures=failures, reason=reason):
                return (WorkerPhase.LOADING if failures == 0 else WorkerPhase.FAILED), reason, 0
            case Loading(activity=activity, percent=percent):
                return WorkerPhase.LOADING, activity, percent
            case Ready():
                return WorkerPhase.READY, "", 0
            case Dying(reason=reason):
                return WorkerPhase.LOADING, reason, 0
            case _:
                assert_never(self.state)
