"""The life of the engine processes: one at a time, replaced when it dies, after a pause that grows.

Two different jobs in a row that cost an engine its life are a longer pause, the quarantine (`quarantine.py`).

Pure: it says what to start and what to kill; `session.py` puts that into actions.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import assert_never

from gpu_worker.limits import SessionLimits
from gpu_worker.quarantine import Quarantine
from proto.messages import ModelCard, WorkerPhase


@dataclass(frozen=True, slots=True)
class Down:
    """There is no process; the next is started at `restart_at`."""

    restart_at: float
    failures: int
    """In a row, without the engine having been ready in between."""
    reason: str
    quarantined: bool = False


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
    """Killed; it holds its device until it has ended."""

    child: int
    failures: int
    reason: str
    parameters_digest: bytes | None
    """Of the job that it was killed on, if there was one."""
    since: float


EngineState = Down | Loading | Ready | Dying


@dataclass(slots=True, kw_only=True)
class EngineKeeper:
    limits: SessionLimits
    started_at: float

    state: EngineState = field(init=False)
    quarantine: Quarantine = field(init=False)
    children: int = 0
    """Processes started so far; the latest one has this number."""
    never_ready: int = 0
    """Of these, the latest ones in a row that have not become ready, the present one included."""

    def __post_init__(self) -> None:
        self.state = Down(self.started_at, 0, "not started yet")
        self.quarantine = Quarantine(duration_s=self.limits.quarantine_s)

    @property
    def restarts(self) -> int:
        return max(0, self.children - 1)

    @property
    def is_given_up(self) -> bool:
        """Another process would not become ready either."""
        return isinstance(self.state, Down) and self.never_ready >= self.limits.engine_failures_max

    @property
    def is_quarantined(self) -> bool:
        return isinstance(self.state, Down) and self.state.quarantined

    @property
    def model(self) -> ModelCard | None:
        """Of the process that is ready."""
        return self.state.model if isinstance(self.state, Ready) else None

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
        self.never_ready += 1
        self.state = Loading(
            child=self.children, failures=self.state.failures, progress_at=now, activity="starting", percent=0
        )
        return self.children

    def hangs(self, now: float) -> bool:
        """Whether it loads without progress for too long."""
        return isinstance(self.state, Loading) and now >= self.state.progress_at + self.limits.load_s

    def immortal_at(self) -> float | None:
        """From when on a killed process that has not ended counts as one that never will."""
        return self.state.since + self.limits.kill_s if isinstance(self.state, Dying) else None

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
        self.never_ready = 0
        return True

    def image_finished(self) -> None:
        """By the present process; what a killed one had finished says nothing about its device."""
        if isinstance(self.state, Ready):
            self.quarantine.image_finished()

    def kill(self, reason: str, parameters_digest: bytes | None, now: float) -> int | None:
        """The number of the process to kill; None if there is none, or it is being killed already.

        `parameters_digest` is that of the job in it, if there is one.
        """
        if not isinstance(self.state, Loading | Ready):
            return None
        failures = self.state.failures if isinstance(self.state, Loading) else 0
        self.state = Dying(self.state.child, failures, reason, parameters_digest, now)
        return self.state.child

    def gone(
        self, reason: str, parameters_digest: bytes | None, now: float, *, temporary: bool = False
    ) -> float:
        """It has ended, with or without a job as for `kill`. Gives the seconds until the next is started.

        `temporary` as in `EngineExited`: such tries do not count.
        """
        if temporary:
            self.never_ready = 0
        if isinstance(self.state, Dying):
            # Its job may have come to an end in the meantime.
            parameters_digest = self.state.parameters_digest
        failures = self.state.failures + 1 if isinstance(self.state, Loading | Dying) else 1
        pause_s = self._backoff_s(failures)
        quarantined = False
        if parameters_digest is not None:
            self.quarantine.engine_died_on(parameters_digest)
            quarantined = self.quarantine.is_due
        if quarantined:
            pause_s = max(pause_s, self.quarantine.duration_s)
            reason = self.quarantine.reason(reason)
        self.state = Down(now + pause_s, failures, reason, quarantined)
        return pause_s

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        assert self.children or isinstance(self.state, Down), "an engine that was never started"
        assert not isinstance(self.state, Ready) or self.never_ready == 0, "ready, and never ready"
        assert not isinstance(self.state, Loading) or self.never_ready > 0, "a try that does not count"
        assert self.never_ready <= self.limits.engine_failures_max, "one try too many"
        assert not self.is_quarantined or self.quarantine.is_due, "in quarantine without a reason"

    def _backoff_s(self, failures: int) -> float:
        if failures <= 1:
            return 0.0
        return min(self.limits.backoff_s * 2.0 ** min(failures - 2, 30), self.limits.backoff_max_s)

    def report(self) -> tuple[WorkerPhase, str, int]:
        """What a report says of it: the phase, what it does, and percent of the loading."""
        match self.state:
            case Down(quarantined=True, reason=reason):
                return WorkerPhase.QUARANTINED, reason, 0
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
