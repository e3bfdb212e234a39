"""One life of a broker."""

from typing import TYPE_CHECKING, Any, Final

from simulation.actor import Actor
from simulation.network import Connection
from simulation.worker_actor import WorkerActor

from broker.actions import SendToFrontend, SendToWorker
from broker.core import Broker
from broker.events import (
    DrainRequested,
    FromFrontend,
    FromWorker,
    FrontendUnreachable,
    TimerFired,
    WorkerUnreachable,
)
from proto.messages import Message
from proto.notes import Note

if TYPE_CHECKING:
    from simulation.world import World

BROKER_NAMES: Final = "bcd"
"""In the order in which peers know them; "b2" is the second life of the first."""
DRAIN_LINGER_S: Final = 1.0
"""Within this a draining broker ends."""


class BrokerActor(Actor):
    timer_fired = TimerFired()

    def __init__(self, world: "World", index: int, life: int) -> None:
        super().__init__(world, f"{BROKER_NAMES[index]}{life}")
        self.index, self.life = index, life
        self.epoch = world.new_id(self.name)
        self.core = Broker(
            broker_id=BROKER_NAMES[index],
            epoch=self.epoch,
            new_execution_id=lambda: world.new_id("x"),
            timing=world.timing,
            queue_limit=world.queue_limit,
        )
        self.routes: dict[bytes, Connection] = {}
        self.first_reading: float | None = None
        self.is_draining = False

    def age_s(self) -> float:
        """Since its first event, on its own clock."""
        return 0.0 if self.first_reading is None else self._last_reading - self.first_reading

    def event_of(self, connection: Connection, message: Message) -> object:
        if self.first_reading is None:
            self.first_reading = self.reading()
        self.world.checker.broker_received(self, message)
        if isinstance(connection.peer, WorkerActor):
            return FromWorker(route=connection.route, message=message)  # type: ignore[arg-type]
        return FromFrontend(route=connection.route, message=message)  # type: ignore[arg-type]

    def perform(self, action: Any) -> object | None:
        match action:
            case SendToWorker(route=route, message=message) | SendToFrontend(route=route, message=message):
                if self.springs(message):
                    return None
                connection = self.routes.get(route)
                self.world.checker.broker_sends(self, message, connection)
                self.world.told_message(self.name, message, connection)
                if self.world.network.to_peer(connection, message):
                    return None
                lost = WorkerUnreachable if isinstance(action, SendToWorker) else FrontendUnreachable
                return lost(route=route)
            case Note():
                self.world.checker.broker_noted(self, action)
                self.world.noted(self.name, action)
        return None

    def end(self) -> None:
        super().end()
        self.world.checker.broker_died(self)
        for connection in self.routes.values():
            if connection.is_open:
                self.world.network.lose(connection)

    def drain(self) -> None:
        """As its shell does: it says so, and ends within a second."""
        self.world.tell(self.name, "is told to end")
        self.is_draining = True
        self.tell(DrainRequested())
        self.world.after(self.world.rng.uniform(0.0, DRAIN_LINGER_S), self._leave)

    def _leave(self) -> None:
        if self.frozen:
            self.world.after(0.5, self._leave)
        elif self.alive:
            self.world.tell(self.name, "ends")
            self.end()

    def break_connections(self) -> None:
        if self.alive and self.frozen:
            for connection in self.routes.values():
                if connection.is_open:
                    self.world.network.lose(connection)

    def went_on(self) -> None:
        for peer in self.world.peers():
            self.world.network.try_again(peer.links[self.index])
