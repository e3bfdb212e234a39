"""One life of a frontend, with the calls that came to it."""

from typing import TYPE_CHECKING, Any, Final, assert_never

from simulation.calls import Call
from simulation.network import Connection
from simulation.peer import Peer

from frontend.actions import EndJob, ReconnectToBroker, SendToBroker, SnapshotArrived
from frontend.events import DrainRequested, FromBroker, JobOpened, LeaveRequested, TimerFired, WaiterLeft
from frontend.job_desk import JobDesk
from proto.messages import FrontendReport, Message, TraceContext
from proto.notes import Note

if TYPE_CHECKING:
    from simulation.world import World

DETACHED_S: Final = 60.0
"""How long a detached job may take, whatever the deadline of its call."""

TRACE: Final = TraceContext(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class FrontendActor(Peer):
    timer_fired = TimerFired()

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.core = self.desk = JobDesk(
            frontend_id=name,
            incarnation=self.incarnation,
            timing=world.timing,
            started_at=self.reading(),
            brokers=len(world.brokers),
        )
        self.calls: dict[bytes, Call] = {}
        self.reports = 0
        self.is_draining = False
        self.listens_to: int | None = None
        """The broker whose message it looks at."""
        self.lost_at: dict[int, float] = {}
        """When which broker last gave it up."""

    @property
    def is_open(self) -> bool:
        """A client would choose it."""
        return self.alive and not self.is_draining

    def event_of(self, connection: Connection, message: Message) -> object:
        index = self.listens_to = connection.link.broker_index
        self.world.checker.desk_received(self, index, message)
        return FromBroker(broker=index, message=message)  # type: ignore[arg-type]

    def perform(self, action: Any) -> object | None:
        match action:
            case SendToBroker(broker=index, message=message):
                self.reports += isinstance(message, FrontendReport)
                self.world.checker.desk_sends(self, index, message)
                self.send(index, message)
            case ReconnectToBroker(broker=index):
                self.reconnect(index)
            case EndJob(job_id=job_id, end=end):
                self.world.checker.answered(self, self.calls[job_id], end)
            case SnapshotArrived():
                pass
            case Note():
                self.world.noted(self.name, action)
            case _:
                assert_never(action)
        return None

    def open(self, call: Call) -> None:
        """An RPC has come in. A frozen frontend reads it later, with the time that is left then."""
        if not self.alive:
            return
        if self.frozen:
            self.world.after(max(0.01, self.thaw_at - self.world.now + 0.001), self.open, call)
            return
        left_s = call.deadline_at - self.world.now
        if call.left or left_s <= 0:
            if not call.left:
                self.world.checker.left(call, "left")
            return
        self.calls[call.job_id] = call
        call.answer_by = self.reading() + left_s
        self.world.checker.opened(call)
        wish = call.wish
        self.tell(
            JobOpened(
                job_id=call.job_id,
                key_fingerprint=wish.key,
                job=wish.job,
                time_remaining_s=left_s,
                key_job_limit=wish.key_limit,
                key_queue_share=wish.queue_share,
                idempotency_hash=wish.idempotency_hash,
                detach=wish.detach,
                job_time_s=DETACHED_S if wish.detach else None,
                trace=TRACE if call.job_id[0] % 2 else None,  # Nothing depends on it.
            )
        )

    def leave(self, call: Call) -> None:
        """Its client has gone."""
        if call.is_open:
            self.world.tell(self.name, f"the client of {self.world.short(call.job_id)} leaves")
            self.world.checker.left(call, "left")
            if call.job_id in self.calls:
                self.tell(WaiterLeft(job_id=call.job_id))

    def _step(self, event: object) -> None:
        if isinstance(event, WaiterLeft):
            self.calls[event.job_id].is_left_known = True
        super()._step(event)
        self.listens_to = None

    def end(self) -> None:
        """Its clients see their connections end."""
        super().end()
        for call in list(self.calls.values()):
            if call.is_open:
                self.world.checker.left(call, "frontend gone", is_abandoned=True)
            else:
                self.world.checker.frontend_gone(call)

    def drain(self) -> None:
        """As its shell does: no new calls, and after a while those that are open are given up."""
        self.world.tell(self.name, "is told to end")
        self.is_draining = True
        self.tell(DrainRequested())
        self.world.after(self.world.rng.uniform(0.5, 8.0), self._leave)

    def _leave(self) -> None:
        if self.frozen:
            self.world.after(0.5, self._leave)
        elif self.alive:
            self.tell(LeaveRequested())
            if self.alive:
                self.end()
