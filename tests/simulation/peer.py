"""What workers and frontends have in common: links to all brokers."""

from typing import TYPE_CHECKING

from simulation.actor import Actor
from simulation.network import Connection, Link

from proto.messages import Message

if TYPE_CHECKING:
    from simulation.world import World


class Peer(Actor):
    """A process with a link to each broker."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.incarnation = world.new_id(name)
        self.links = [Link(self, broker.index) for broker in world.brokers]
        for link in self.links:
            world.network.connect(link)

    def is_calm_since(self, instant: float) -> bool:
        """Nor to any of its links."""
        return super().is_calm_since(instant) and all(link.is_calm_since(instant) for link in self.links)

    def is_calm_with(self, broker_index: int, instant: float) -> bool:
        """Nor to its link with this broker."""
        return super().is_calm_since(instant) and self.links[broker_index].is_calm_since(instant)

    def is_heard(self, connection: Connection) -> bool:
        """What waits in a socket that was closed is gone with it."""
        return connection.socket == connection.link.socket

    def send(self, broker_index: int, message: Message) -> None:
        if not self.springs(message):
            connection = self.links[broker_index].connection
            self.world.told_message(self.name, message, connection)
            self.world.network.to_broker(connection, message)

    def reconnect(self, broker_index: int) -> None:
        link = self.links[broker_index]
        link.socket += 1
        link.connection.is_open = False
        self.world.network.connect(link)

    def end(self) -> None:
        super().end()
        for link in self.links:
            link.connection.is_open = False

    def break_connections(self) -> None:
        if self.alive and self.frozen:
            for link in self.links:
                self.world.network.lose(link.connection)

    def went_on(self) -> None:
        for link in self.links:
            self.world.network.try_again(link)
