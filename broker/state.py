"""All that the broker knows, and the actions that pile up while it handles one event."""

from collections.abc import Callable
from dataclasses import dataclass, field

from broker.actions import Action, SendToFrontend, SendToWorker
from broker.estimates import RunTimes
from broker.frontends import Frontend, FrontendTable
from broker.jobs import JobTable
from broker.snapshot import Counters
from broker.views import ViewMaker
from broker.workers import Worker, WorkerTable
from proto.messages import JobStatus, ToFrontend, ToWorker
from proto.notes import Note, NoteLevel
from proto.timing import Timing


@dataclass(slots=True, kw_only=True)
class BrokerState:
    broker_id: str
    epoch: bytes
    """This life of the broker."""
    new_execution_id: Callable[[], bytes]
    timing: Timing
    queue_limit: int
    """New jobs that may wait for a worker to become idle."""

    workers: WorkerTable = field(default_factory=WorkerTable)
    jobs: JobTable = field(default_factory=JobTable)
    frontends: FrontendTable = field(default_factory=FrontendTable)
    run_times: RunTimes = field(default_factory=RunTimes)
    counters: Counters = field(default_factory=Counters)
    draining: bool = False
    now: float = 0.0
    """Of the event that is handled."""
    started_at: float | None = None
    """Of the first event."""
    views: ViewMaker = field(init=False)
    outbox: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views = ViewMaker(
            broker_id=self.broker_id,
            epoch=self.epoch,
            heartbeat_interval_s=self.timing.heartbeat_interval_s,
        )

    def advance(self, now: float) -> None:
        """An event has come."""
        self.now = now
        if self.started_at is None:
            self.started_at = now

    @property
    def is_young(self) -> bool:
        """So short a time after the start that workers of an earlier broker may not have found this one."""
        age_s = 0.0 if self.started_at is None else self.now - self.started_at
        return age_s < self.timing.broker_silent_s + self.timing.heartbeat_interval_s

    def ready_workers(self) -> int:
        """Those with a loaded model, idle or busy, that can be heard."""
        return sum(worker.is_serving(self.now, self.timing.probe_after_s) for worker in self.workers)

    def send_worker(self, route: bytes, message: ToWorker) -> None:
        self.outbox.append(SendToWorker(route=route, message=message))

    def send_frontend(self, route: bytes, message: ToFrontend) -> None:
        self.outbox.append(SendToFrontend(route=route, message=message))

    def send_worker_view(self, worker: Worker) -> None:
        self.send_worker(worker.route, self.views.for_worker(worker, self.jobs))

    def send_statuses(self, frontend: Frontend, *statuses: JobStatus) -> None:
        view = self.views.for_frontend(frontend, statuses, self.ready_workers(), self.draining)
        self.send_frontend(frontend.route, view)

    def note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self.outbox.append(Note(event, fields, level))
