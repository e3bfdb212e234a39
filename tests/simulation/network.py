"""The network between brokers and their peers: it loses, delays, doubles and reorders, and is cut one way.

A *link* is what a peer has with one of the brokers. A *connection* is one life of a TCP connection; a
*socket* outlives connections, as libzmq connects again by itself, and ends when its owner makes a fresh one.
As with `IMMEDIATE`, what is sent without a connection is dropped; as with `ROUTER_MANDATORY`, the broker is
told when there is none.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proto.codec import decode, encode
from proto.messages import Message

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.peer import Peer
    from simulation.world import World

LATE_S = 0.5
"""A delay from which on a peer counts as disturbed."""
LATE_COPIES = 0.3
"""How likely the second copy of a message takes much longer than the first."""
BROKEN_AFTER_S = 4.0
"""How long a connection lives through which nothing comes: TCP ends it."""
RECONNECT_MAX_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What happens to a message. Times in seconds, the rest are probabilities."""

    delay_s: float = 0.001
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    """With jitter, messages also overtake each other."""
    stragglers: float = 0.0
    """Those that take up to `straggler_s`."""
    straggler_s: float = 4.0


PERFECT = Conditions()
LOSSY = Conditions(jitter_s=0.3, loss=0.1, duplicates=0.1)


@dataclass(slots=True, eq=False)
class Link:
    """Of a peer with one broker, through all lives of that one."""

    peer: "Peer"
    broker_index: int
    socket: int = 0
    """Which of the sockets that it has had."""
    cut_up: bool = False
    cut_down: bool = False
    cut_until: float = 0.0
    disturbed_at: float = -float("inf")
    """When the world last did something to it, or will have done so."""
    connection: "Connection" = field(init=False)
    """The latest one."""

    @property
    def is_cut(self) -> bool:
        return self.cut_up or self.cut_down

    def disturb(self, instant: float) -> None:
        self.disturbed_at = max(self.disturbed_at, instant)

    def is_calm_since(self, instant: float) -> bool:
        return self.disturbed_at < instant and not self.is_cut


@dataclass(slots=True, eq=False)
class Connection:
    route: bytes
    """Its address at the broker."""
    link: Link
    socket: int
    """Which of the peer's sockets."""
    broker: "BrokerActor | None" = None
    """None until it is established."""
    is_open: bool = True

    @property
    def peer(self) -> "Peer":
        return self.link.peer

    @property
    def is_established(self) -> bool:
        return self.is_open and self.broker is not None

    @property
    def is_latest(self) -> bool:
        return self is self.link.connection


class Network:
    def __init__(self, world: "World", conditions: Conditions, *, through_codec: bool) -> None:
        self._world = world
        self.conditions = conditions
        self._through_codec = through_codec

    # --- Connections ---------------------------------------------------------------------------

    def connect(self, link: Link) -> Connection:
        """A connection that is established now if it can be, or else when something changes."""
        link.connection = Connection(self._world.new_id("route"), link, link.socket)
        self._establish(link.connection)
        return link.connection

    def _establish(self, connection: Connection) -> None:
        link, peer = connection.link, connection.peer
        broker = self._world.brokers[link.broker_index]
        usable = broker.alive and not broker.frozen and peer.alive and not peer.frozen and not link.is_cut
        if connection.is_latest and connection.is_open and connection.broker is None and usable:
            connection.broker = broker
            broker.routes[connection.route] = connection

    def try_again(self, link: Link) -> None:
        """Something has changed: libzmq will find out."""
        if not link.connection.is_established:
            delay_s = self._world.rng.uniform(0.001, RECONNECT_MAX_S)
            self._world.after(delay_s, self._establish, link.connection)

    def lose(self, connection: Connection) -> None:
        """Both ends notice that it is gone; the peer's socket makes another."""
        connection.is_open = False
        if connection.peer.alive and connection.is_latest:
            self.connect(connection.link)

    def cut(self, link: Link, *, up: bool, down: bool, duration_s: float) -> None:
        """Nothing from (`up`) or to (`down`) its peer arrives; neither end is told."""
        link.cut_up, link.cut_down = link.cut_up or up, link.cut_down or down
        world = self._world
        link.disturb(world.now)
        link.cut_until = max(link.cut_until, world.now + duration_s)
        world.after(duration_s, self._heal, link)
        if duration_s > BROKEN_AFTER_S:
            world.after(BROKEN_AFTER_S, self._break, link.connection)

    def _break(self, connection: Connection) -> None:
        if connection.peer.alive and connection.link.is_cut and connection.is_latest:
            self.lose(connection)

    def _heal(self, link: Link) -> None:
        if link.is_cut and self._world.now >= link.cut_until - 1e-9:
            link.cut_up = link.cut_down = False
            link.disturb(self._world.now)
            self.try_again(link)

    def heal(self, link: Link) -> None:
        link.cut_until = self._world.now
        self._heal(link)

    # --- Messages ------------------------------------------------------------------------------

    def to_broker(self, connection: Connection, message: Message) -> None:
        if not connection.is_established:
            self._world.stats.messages["unsent"] += 1
            return
        self._carry(connection, message, is_cut=connection.link.cut_up, arrive=self._reach_broker)

    def to_peer(self, connection: Connection | None, message: Message) -> bool:
        """False if there is no such connection."""
        if connection is None or not connection.is_open:
            return False
        self._carry(connection, message, is_cut=connection.link.cut_down, arrive=self._reach_peer)
        return True

    def _carry(self, connection, message: Message, *, is_cut: bool, arrive) -> None:
        conditions, rng, counted = self.conditions, self._world.rng, self._world.stats.messages
        counted["sent"] += 1
        copies = 0 if is_cut or (conditions.loss and rng.random() < conditions.loss) else 1
        if conditions.duplicates and rng.random() < conditions.duplicates and not is_cut:
            copies += 1
        if copies == 0:
            counted["cut off" if is_cut else "lost"] += 1
            connection.link.disturb(self._world.now)
            return
        if copies == 2:
            counted["doubled"] += 1
        if self._through_codec:
            message = decode(encode(message))
        for number in range(copies):
            delay_s = self._delay_s(is_copy=number > 0)
            if delay_s > LATE_S and number == 0:
                connection.link.disturb(self._world.now + delay_s)
            self._world.after(delay_s, arrive, connection, message)

    def _delay_s(self, *, is_copy: bool) -> float:
        conditions, rng = self.conditions, self._world.rng
        delay_s = conditions.delay_s
        if conditions.jitter_s:
            delay_s += rng.random() * conditions.jitter_s
        straggles = LATE_COPIES if is_copy else conditions.stragglers
        if straggles and rng.random() < straggles:
            self._world.stats.messages["late"] += 1
            delay_s += rng.random() * conditions.straggler_s
        return delay_s

    def _reach_broker(self, connection: Connection, message: Message) -> None:
        broker = connection.broker
        if broker is not None and broker.alive:
            broker.receive(connection, message)

    def _reach_peer(self, connection: Connection, message: Message) -> None:
        """The last words of a broker that was killed may have left it, or not."""
        arrives = connection.is_open or self._world.rng.random() < 0.5
        if arrives and connection.peer.alive and connection.socket == connection.link.socket:
            connection.peer.receive(connection, message)
