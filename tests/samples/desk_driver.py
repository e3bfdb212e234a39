"""A job desk that is driven by hand: time is an argument, and its state is checked after every step."""

from typing import Any

from samples.wire import EPOCH, PARAMETERS, frontend_view, identifier

from frontend.actions import EndJob, SendToBroker
from frontend.events import FromBroker, JobOpened, TimerFired, WaiterLeft
from frontend.job_desk import JobDesk
from frontend.validation import ValidJob
from proto.failures import RefusalReason
from proto.messages import FrontendReport, JobState, JobStatus, Refuse, Submit
from proto.timing import Timing

INCARNATION = identifier("frontend 1")


def epoch_of(broker: int) -> bytes:
    """Of the broker with this index."""
    return EPOCH if broker == 0 else identifier(f"epoch {broker}")


class DeskDriver:
    """Tells the desk things, and keeps what it did about the latest of them."""

    def __init__(self, max_open_jobs: int = 3, brokers: int = 1) -> None:
        self.now = 100.0
        self.timing = Timing()
        self.desk = JobDesk(
            frontend_id="frontend",
            incarnation=INCARNATION,
            timing=self.timing,
            started_at=self.now,
            max_open_jobs=max_open_jobs,
            brokers=brokers,
        )
        self.actions: list[Any] = []

    def tell(self, event: Any) -> list[Any]:
        self.actions = self.desk.handle(event, self.now)
        self.desk.check_invariants()
        deadline = self.desk.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline in the past"
        return self.actions

    def after(self, duration_s: float, *, answered: bool = True) -> list[Any]:
        """Let time pass; while `answered`, the broker has a view for every report, without jobs."""
        end, happened = self.now + duration_s, []
        while (deadline := self.desk.next_deadline()) is not None and deadline <= end:
            self.now = deadline
            happened += self.tell(TimerFired())
            if answered and self.sent(FrontendReport):
                happened += self.viewed()
        self.now = end
        self.actions = happened
        return happened

    def open(self, job: object = "job", remaining_s: float = 60.0, **changes: Any) -> list[Any]:
        valid = ValidJob(prompt="a cät", parameters=PARAMETERS, digest=identifier("digest"))
        event = JobOpened(
            job_id=identifier(job),
            key_fingerprint="key",
            job=valid,
            time_remaining_s=remaining_s,
            **changes,
        )
        return self.tell(event)

    def waiter_left(self, job: object = "job") -> list[Any]:
        return self.tell(WaiterLeft(job_id=identifier(job)))

    def heard(self, message: Any, broker: int = 0) -> list[Any]:
        return self.tell(FromBroker(broker=broker, message=message))

    def viewed(
        self, *statuses: JobStatus, echo: int | None = None, broker: int = 0, **changes: Any
    ) -> list[Any]:
        echo = self.desk.contacts[broker].contact.seq if echo is None else echo
        changes = {"epoch": epoch_of(broker), "broker_id": f"broker-{broker + 1}", **changes}
        return self.heard(frontend_view(jobs=statuses, echo=echo, **changes), broker)

    def status(
        self, state: JobState, job: object = "job", echo: int | None = None, broker: int = 0, **changes: Any
    ) -> list[Any]:
        of_view = {name: changes.pop(name) for name in ("draining", "epoch") if name in changes}
        status = JobStatus(job_id=identifier(job), state=state, **changes)
        return self.viewed(status, echo=echo, broker=broker, **of_view)

    def refused(
        self, reason: RefusalReason, job: object = "job", broker: int = 0, **changes: Any
    ) -> list[Any]:
        return self.heard(Refuse(reason=reason, job_id=identifier(job), **changes), broker)

    def sent(self, kind: type[Any], broker: int | None = None) -> list[Any]:
        """To this broker, or to any."""
        return [
            action.message
            for action in self.actions
            if isinstance(action, SendToBroker) and isinstance(action.message, kind)
            if broker in {None, action.broker}
        ]

    def submit(self) -> Submit:
        (submit,) = self.sent(Submit)
        return submit

    def report(self) -> FrontendReport:
        (report,) = self.sent(FrontendReport)
        return report

    def ends(self) -> dict[bytes, Any]:
        return {action.job_id: action.end for action in self.actions if isinstance(action, EndJob)}

    def end(self, job: object = "job") -> Any:
        return self.ends()[identifier(job)]

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]
