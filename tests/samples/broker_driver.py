"""A broker core that is driven by hand: time is an argument, and its tables are checked after every step."""

from typing import Any

from samples.wire import (
    EPOCH,
    failure_outcome,
    frontend_report,
    identifier,
    image_outcome,
    leave,
    running,
    submit,
    worker_report,
)

from broker.actions import SendToFrontend, SendToWorker
from broker.core import Broker
from broker.events import FromFrontend, FromWorker, TimerFired, WorkerUnreachable
from proto.messages import FrontendView, JobFailed, Refuse, Start, WorkerView
from proto.notes import Note
from proto.timing import Timing


class Driver:
    """Tells the broker things and keeps what it answers to the latest of them."""

    def __init__(self, queue_limit: int = 0, rebuild_s: float = 0, *, is_first: bool = False) -> None:
        """By default the broker judges new jobs from its first moment on."""
        self.now = 100.0
        self.timing = Timing(rebuild_s=rebuild_s)
        self.executions = 0
        self.core = Broker(
            broker_id="broker",
            epoch=EPOCH,
            new_execution_id=self._new_execution_id,
            timing=self.timing,
            queue_limit=queue_limit,
            is_first=is_first,
        )
        self.actions: list[Any] = []
        self._seqs: dict[bytes, int] = {}

    def _new_execution_id(self) -> bytes:
        self.executions += 1
        return identifier(f"execution {self.executions}")

    # --- Telling it ----------------------------------------------------------------------------

    def tell(self, event: Any) -> list[Any]:
        self.actions = self.core.handle(event, self.now)
        self.core.check_invariants()
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline in the past"
        return self.actions

    def seq(self, peer: bytes) -> int:
        self._seqs[peer] = self._seqs.get(peer, 0) + 1
        return self._seqs[peer]

    def from_worker(self, message: Any, route: bytes | None = None) -> list[Any]:
        return self.tell(FromWorker(route=route or b"to worker", message=message))

    def from_frontend(self, message: Any, route: bytes | None = None) -> list[Any]:
        return self.tell(FromFrontend(route=route or b"to frontend", message=message))

    def worker(self, worker: str = "worker", *, life: int = 1, **changes: Any) -> list[Any]:
        """A report with the next number."""
        incarnation = identifier(f"{worker} {life}")
        changes = {"incarnation": incarnation, "seq": self.seq(incarnation), **changes}
        return self.from_worker(worker_report(worker, **changes), b"to " + worker.encode())

    def image(
        self, execution: bytes, job: object = "job", worker: str = "worker", **changes: Any
    ) -> list[Any]:
        incarnation = identifier(f"{worker} 1")
        outcome = image_outcome(execution, job, worker, **{"seq": self.seq(incarnation), **changes})
        return self.from_worker(outcome, b"to " + worker.encode())

    def failure(
        self, execution: bytes, code: Any, job: object = "job", worker: str = "worker", **changes: Any
    ) -> list[Any]:
        incarnation = identifier(f"{worker} 1")
        changes = {"seq": self.seq(incarnation), "worker_id": worker, "incarnation": incarnation, **changes}
        outcome = failure_outcome(execution, JobFailed(code=code, detail="as told"), job, **changes)
        return self.from_worker(outcome, b"to " + worker.encode())

    def leaves(self, peer: str, life: int = 1) -> list[Any]:
        return self.from_worker(leave(identifier(f"{peer} {life}")))

    def submit(self, job: object = "job", frontend: str = "frontend", **changes: Any) -> list[Any]:
        incarnation = identifier(frontend)
        changes = {"incarnation": incarnation, "seq": self.seq(incarnation), **changes}
        return self.from_frontend(submit(job, frontend_id=frontend, **changes), b"to " + frontend.encode())

    def frontend(self, *jobs: object, frontend: str = "frontend", **changes: Any) -> list[Any]:
        """A report of these open jobs, with the next number."""
        incarnation = identifier(frontend)
        changes = {"incarnation": incarnation, "seq": self.seq(incarnation), **changes}
        report = frontend_report(*jobs, frontend_id=frontend, **changes)
        return self.from_frontend(report, b"to " + frontend.encode())

    def moved(self, *jobs: object, frontend: str = "frontend", **changes: Any) -> list[Any]:
        """A report that says of these calls that they wait at another broker now."""
        return self.frontend(frontend=frontend, elsewhere=tuple(map(identifier, jobs)), **changes)

    def unreachable(self, worker: str = "worker") -> list[Any]:
        return self.tell(WorkerUnreachable(route=b"to " + worker.encode()))

    def after(self, duration_s: float) -> list[Any]:
        """Let time pass, with a timer whenever the broker wants one; gives all that it did meanwhile."""
        end, happened = self.now + duration_s, []
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = deadline
            happened += self.tell(TimerFired())
        self.now = end
        self.actions = happened
        return happened

    # --- What it did ---------------------------------------------------------------------------

    def to_worker(self, kind: type[Any], worker: str = "worker") -> list[Any]:
        return self._sent(SendToWorker, b"to " + worker.encode(), kind)

    def to_frontend(self, kind: type[Any], frontend: str = "frontend") -> list[Any]:
        return self._sent(SendToFrontend, b"to " + frontend.encode(), kind)

    def _sent(self, action: type[Any], route: bytes, kind: type[Any]) -> list[Any]:
        return [
            sent.message
            for sent in self.actions
            if isinstance(sent, action) and sent.route == route and isinstance(sent.message, kind)
        ]

    def started(self, worker: str = "worker") -> Start:
        """The one START that the latest step sent to this worker."""
        (start,) = self.to_worker(Start, worker)
        return start

    def starts(self) -> list[Start]:
        return [
            action.message
            for action in self.actions
            if isinstance(action, SendToWorker) and isinstance(action.message, Start)
        ]

    def view(self, worker: str = "worker") -> WorkerView:
        (view,) = self.to_worker(WorkerView, worker)
        return view

    def statuses(self, frontend: str = "frontend") -> dict[bytes, Any]:
        """By job: the states that the latest step told."""
        return {
            status.job_id: status.state
            for view in self.to_frontend(FrontendView, frontend)
            for status in view.jobs
        }

    def refusal(self, frontend: str = "frontend") -> Refuse:
        (refuse,) = self.to_frontend(Refuse, frontend)
        return refuse

    def sent(self) -> list[Any]:
        return [action for action in self.actions if isinstance(action, SendToWorker | SendToFrontend)]

    def notes(self) -> list[str]:
        return [action.event for action in self.actions if isinstance(action, Note)]

    # --- What it knows -------------------------------------------------------------------------

    def job(self, job: object = "job") -> Any:
        return self.core.state.jobs.get(identifier(job))

    @property
    def counters(self) -> Any:
        return self.core.state.counters

    def registered(self) -> set[str]:
        return {worker.worker_id for worker in self.core.state.workers}

    # --- Beginnings ----------------------------------------------------------------------------

    def run_job(self, job: object = "job", worker: str = "worker", **changes: Any) -> bytes:
        """Submit a job that this worker gets, and report that it runs."""
        self.submit(job, **changes)
        execution_id = self.started(worker).execution_id
        self.runs(execution_id, job, worker)
        return execution_id

    def runs(
        self,
        execution_id: bytes,
        job: object = "job",
        worker: str = "worker",
        step: int = 0,
        held: tuple[Any, ...] = (),
        **changes: Any,
    ) -> list[Any]:
        """Reports that it runs this; `changes` are those of the running execution."""
        return self.worker(worker, running=running(execution_id, job, step, **changes), held=held)
