"""A worker session that is driven by hand: time is an argument, and its state is checked after every step."""

from typing import Any

from samples.wire import CARD, EPOCH, claim, identifier, start, worker_view

from gpu_worker.actions import CancelJob, Exit, KillEngine, RunJob, SendToBroker, StartEngine
from gpu_worker.brokers import GATHER_S
from gpu_worker.engine_keeper import Loading
from gpu_worker.events import (
    DrainRequested,
    EngineDrawn,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
    FromBroker,
    TimerFired,
)
from gpu_worker.limits import SessionLimits
from gpu_worker.session import Session
from proto.failures import FailureCode
from proto.messages import JobPhase, Leave, Outcome, Refuse, WorkerReport
from proto.notes import Note
from proto.timing import Timing

INCARNATION = identifier("worker 1")


def epoch_of(broker: int) -> bytes:
    """Of the broker with this index."""
    return EPOCH if broker == 0 else identifier(f"epoch {broker}")


class SessionDriver:
    """Tells the session things, and keeps what it did about the latest of them."""

    def __init__(self, brokers: int = 1, **limits: Any) -> None:
        self.now = 100.0
        self.timing = Timing()
        self.limits = SessionLimits(
            **{
                "load_s": 50.0,
                "text_s": 5.0,
                "step_s": 6.0,
                "decode_s": 7.0,
                "cancel_s": 4.0,
                "backoff_s": 1.0,
                "backoff_max_s": 5.0,
                "held_bytes_max": 1000,
                "held_age_max_s": 120.0,
                "kept_max": 2,
                "kept_age_max_s": 300.0,
                **limits,
            }
        )
        self.session = Session(
            worker_id="worker",
            incarnation=INCARNATION,
            host="host",
            timing=self.timing,
            limits=self.limits,
            started_at=self.now,
            brokers=brokers,
        )
        self.actions: list[Any] = []

    def tell(self, event: Any) -> list[Any]:
        self.actions = self.session.handle(event, self.now)
        self.session.check_invariants()
        deadline = self.session.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline in the past"
        return self.actions

    def after(self, duration_s: float, *, answered: bool = True) -> list[Any]:
        """Let time pass, with a timer whenever the session wants one; gives all that it did meanwhile.

        While `answered`, the broker has a view for every report.
        """
        end, happened = self.now + duration_s, []
        while (deadline := self.session.next_deadline()) is not None and deadline <= end:
            self.now = deadline
            happened += self.tell(TimerFired())
            if answered and self.reports():
                happened += self.viewed()
        self.now = end
        self.actions = happened
        return happened

    # --- The broker ----------------------------------------------------------------------------

    def viewed(self, broker: int = 0, **changes: Any) -> list[Any]:
        changes = {"epoch": epoch_of(broker), "echo": self.session.contacts.contact(broker).seq, **changes}
        return self.tell(FromBroker(broker=broker, message=worker_view(**changes)))

    def start(
        self, execution: object = "execution", job: object = "job", broker: int = 0, **changes: Any
    ) -> list[Any]:
        changes = {"epoch": epoch_of(broker), **changes}
        return self.tell(FromBroker(broker=broker, message=start(execution, job, **changes)))

    # --- The engine ----------------------------------------------------------------------------

    @property
    def child(self) -> int:
        return self.session.engine.children

    def loading(self, activity: str = "weights", percent: int = 10, child: int | None = None) -> list[Any]:
        return self.tell(EngineLoading(child=child or self.child, activity=activity, percent=percent))

    def ready(self, child: int | None = None) -> list[Any]:
        return self.tell(EngineReady(child=child or self.child, model=CARD))

    def progress(
        self, step: int, phase: JobPhase = JobPhase.STEP, execution: object = "execution"
    ) -> list[Any]:
        event = EngineProgress(child=self.child, execution_id=identifier(execution), phase=phase, step=step)
        return self.tell(event)

    def drawn(
        self, execution: object = "execution", child: int | None = None, *, text_cached: bool | None = None
    ) -> list[Any]:
        event = EngineDrawn(
            child=child or self.child,
            execution_id=identifier(execution),
            inference_time_s=1.5,
            steps_time_s=1.2,
            text_cached=text_cached,
        )
        return self.tell(event)

    def encoded(
        self, execution: object = "execution", png: bytes = b"png", child: int | None = None
    ) -> list[Any]:
        return self.tell(
            EngineFinished(child=child or self.child, execution_id=identifier(execution), png=png)
        )

    def finished(
        self, execution: object = "execution", png: bytes = b"png", child: int | None = None
    ) -> list[Any]:
        """The pixels and then their PNG. Kept is what ended the execution."""
        ended = self.drawn(execution, child)
        if self.sent(Outcome):
            self.encoded(execution, png, child)
            assert self.deeds() == [], "an end after the end"
            self.actions = ended
        else:
            self.encoded(execution, png, child)
        return self.actions

    def failed(
        self, code: FailureCode, detail: str = "so it said", execution: object = "execution"
    ) -> list[Any]:
        event = EngineFailed(child=self.child, execution_id=identifier(execution), code=code, detail=detail)
        return self.tell(event)

    def exited(
        self, reason: str = "killed by SIGSEGV", *, child: int | None = None, **changes: Any
    ) -> list[Any]:
        return self.tell(EngineExited(child=child or self.child, reason=reason, **changes))

    def wait_for_engine(self) -> float:
        """Until one is being started, if it has not been already; gives the seconds that it took."""
        began = self.now
        while not isinstance(self.session.engine.state, Loading):
            assert self.now < began + 1000, "no engine is started"
            self.after(0.25)
        return self.now - began

    def drain(self) -> list[Any]:
        return self.tell(DrainRequested())

    # --- Beginnings ----------------------------------------------------------------------------

    def become_ready(self) -> None:
        """The engine is up and the broker has answered."""
        self.tell(TimerFired())
        self.viewed(epoch=EPOCH)
        self.ready()
        self.viewed()

    def run_job(self, execution: object = "execution", job: object = "job", **changes: Any) -> None:
        self.become_ready()
        self.start(execution, job, **changes)
        assert self.of(RunJob)

    def start_with(self, digest: object, execution: object = "execution", **changes: Any) -> None:
        """A job of its own parameters; `changes` are to its claim."""
        parameters = {"parameters_digest": identifier(digest), **changes}
        self.start(execution, claim=claim(**parameters))
        assert self.of(RunJob)

    def draw(self, execution: object = "execution", **finish: Any) -> None:
        """One whole job."""
        self.start(execution)
        assert self.of(RunJob)
        self.finished(execution, **finish)

    # --- What it did ---------------------------------------------------------------------------

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def sent(self, kind: type[Any], broker: int | None = None) -> list[Any]:
        """To this broker, or to any."""
        return [
            action.message
            for action in self.actions
            if isinstance(action, SendToBroker) and isinstance(action.message, kind)
            if broker in {None, action.broker}
        ]

    def deeds(self) -> list[Any]:
        """All but notes."""
        return [action for action in self.actions if not isinstance(action, Note)]

    def reports(self) -> list[WorkerReport]:
        return self.sent(WorkerReport)

    def report(self) -> WorkerReport:
        (report,) = self.reports()
        return report

    def next_report(self) -> WorkerReport:
        """What is told in a moment, to a broker that knows already what has changed."""
        self.after(GATHER_S, answered=False)
        return self.report()

    def outcome(self) -> Outcome:
        (outcome,) = self.sent(Outcome)
        return outcome

    def refusal(self) -> Refuse:
        (refuse,) = self.sent(Refuse)
        return refuse

    def exit(self) -> Exit:
        (over,) = self.of(Exit)
        assert self.session.next_deadline() is None
        return over

    def started(self) -> list[int]:
        return [action.child for action in self.of(StartEngine)]

    def killed(self) -> list[int]:
        return [action.child for action in self.of(KillEngine)]

    def cancelled(self) -> list[bytes]:
        return [action.execution_id for action in self.of(CancelJob)]

    def left(self) -> bool:
        return bool(self.sent(Leave))
