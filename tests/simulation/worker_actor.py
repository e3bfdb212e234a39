"""One life of a worker, with its engine processes."""

from typing import TYPE_CHECKING

from simulation.broken import InvariantBroken
from simulation.engine import Engine
from simulation.invariants import CORES
from simulation.network import Connection
from simulation.peer import Peer

from gpu_worker.actions import (
    Action,
    CancelJob,
    Exit,
    KillEngine,
    ReconnectToBroker,
    RunJob,
    SendToBroker,
    StartEngine,
)
from gpu_worker.events import DrainRequested, FromBroker, TimerFired
from gpu_worker.session import Session
from gpu_worker.slot import Free
from proto.messages import Message
from proto.notes import Note

if TYPE_CHECKING:
    from simulation.world import World


class WorkerActor(Peer):
    timer_fired = TimerFired()

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.core = self.session = Session(
            worker_id=name,
            incarnation=self.incarnation,
            host=f"host-{name}",
            timing=world.timing,
            limits=world.limits,
            started_at=self.reading(),
            brokers=len(world.brokers),
        )
        self.engine: Engine | None = None
        self.is_engine_frozen = False
        self.runs = 0
        self.is_leaving = False
        self.exited: Exit | None = None

    @property
    def running(self) -> bytes | None:
        """The execution that its engine draws."""
        job = None if self.engine is None else self.engine.job
        return None if job is None else job.execution_id

    def is_encoding(self, execution_id: bytes) -> bool:
        """Its image is drawn, and the PNG not there yet."""
        return execution_id in self.session.encoding

    @property
    def is_free(self) -> bool:
        """Its engine is ready and does nothing, and it takes jobs."""
        ready = self.engine is not None and self.engine.alive and self.engine.ready
        return ready and not self.is_leaving and isinstance(self.session.slot, Free)

    def event_of(self, connection: Connection, message: Message) -> object:
        index = connection.link.broker_index
        self.world.checker.worker_received(self, index, message)
        return FromBroker(broker=index, message=message)  # type: ignore[arg-type]

    def perform(self, action: Action) -> object | None:
        match action:
            case SendToBroker(broker=index, message=message):
                self.world.checker.worker_sends(self, index, message)
                self.send(index, message)
            case ReconnectToBroker(broker=index):
                self.reconnect(index)
            case Exit():
                self.world.tell(self.name, f"exits with {action.code}: {action.reason}")
                self.exited = action
                self.end()
                self.world.worker_exited(self)
            case Note():
                self.world.noted(self.name, action)
            case _:
                self._drive(action)
        return None

    def _drive(
        self,
        action: (StartEngine | KillEngine | RunJob | CancelJob),
    ) -> None:
        """What the session wants of its engine process, dead or alive."""
        match action, self.engine:
            case StartEngine(child=child), _:
                self.engine = Engine(self, child)
            case KillEngine(), Engine() as engine:
                engine.die("killed by SIGKILL")
            case RunJob(job=job), Engine() as engine:
                self.world.checker.begun(self, job)
                self.runs += 1
                engine.run(job)
            case CancelJob(execution_id=execution_id), Engine() as engine:
                engine.cancel(execution_id)
            case _:
                raise InvariantBroken(CORES, f"{self.name} has no engine for {action}")

    def _step(self, event: object) -> None:
        super()._step(event)
        if self.alive:
            self.world.checker.worker_stepped(self)

    def end(self) -> None:
        super().end()
        if self.engine is not None:
            self.engine.alive, self.engine.job = False, None

    def crash_engine(self, reason: str = "killed by SIGSEGV") -> None:
        if self.engine is not None and self.engine.alive:
            self.world.tell(self.name, f"its engine is {reason}")
            self.engine.die(reason)

    def drain(self) -> None:
        self.world.tell(self.name, "is told to end")
        self.is_leaving = True
        self.tell(DrainRequested())

    def freeze(self, duration_s: float, *, breaks: bool = False, engine_too: bool = True) -> None:
        self.is_engine_frozen = self.is_engine_frozen or engine_too
        super().freeze(duration_s, breaks=breaks)

    def went_on(self) -> None:
        super().went_on()
        self.is_engine_frozen = False
        if self.engine is not None:
            self.engine.thaw()
