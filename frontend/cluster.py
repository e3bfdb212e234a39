"""What the frontend needs of the rest of the service. `BrokerClient` provides it, tests script it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from frontend.actions import JobEnd
from frontend.brokers import Standing
from frontend.events import JobOpened
from proto.messages import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPicture:
    """The latest that one broker has told."""

    broker_id: str
    """Empty until it has answered for the first time."""
    endpoint: str
    standing: Standing
    gets_calls: bool
    """New calls go there at present."""
    snapshot: Snapshot | None = None
    """None until one has come."""
    age_s: float = 0.0
    """How long ago it came; without meaning where there is none."""

    @property
    def is_alive(self) -> bool:
        """It has been heard of lately."""
        return self.standing not in {Standing.UNHEARD, Standing.SILENT}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLife:
    """A broker from its start on, once, however many endpoints lead to it."""

    name: str
    """That no other one has."""
    snapshot: Snapshot
    """The latest."""
    age_s: float
    is_alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePicture:
    """The latest that is known of the whole service."""

    brokers: tuple[BrokerPicture, ...]
    """In the order of the settings."""
    own_refusals: Mapping[str, int] = field(default_factory=dict)
    """What this frontend refused itself since it started, by reason; no broker counts these."""
    own_shed: Mapping[str, int] = field(default_factory=dict)
    """What this frontend dropped since it started, by kind; likewise."""

    @property
    def broker_alive(self) -> bool:
        """A broker has been heard of lately."""
        return any(broker.is_alive for broker in self.brokers)

    def lives(self) -> list[BrokerLife]:
        """Of each broker that has told anything; in the order of the settings."""
        alive: dict[bytes, bool] = {}
        latest: dict[bytes, tuple[BrokerPicture, Snapshot]] = {}
        for broker in self.brokers:
            if (snapshot := broker.snapshot) is not None:
                alive[snapshot.epoch] = alive.get(snapshot.epoch, False) or broker.is_alive
                known = latest.get(snapshot.epoch)
                if known is None or broker.age_s < known[0].age_s:
                    latest[snapshot.epoch] = (broker, snapshot)
        named: dict[str, BrokerLife] = {}
        for epoch, (broker, snapshot) in latest.items():
            is_taken = snapshot.broker_id in named
            name = f"{snapshot.broker_id} at {broker.endpoint}" if is_taken else snapshot.broker_id
            named[name] = BrokerLife(name=name, snapshot=snapshot, age_s=broker.age_s, is_alive=alive[epoch])
        return list(named.values())


class Cluster(Protocol):
    """The brokers and the workers behind them."""

    @property
    def ready_workers(self) -> int:
        """Workers that have a loaded model, idle or busy; 0 while no broker answers."""

    @property
    def broker_alive(self) -> bool:
        """A broker has been heard of lately."""

    @property
    def is_late(self) -> bool:
        """What it wanted to do at some time is long overdue: something keeps failing."""

    async def start(self) -> None:
        """Connect. Nothing needs to be there yet."""

    async def draw(self, opened: JobOpened) -> JobEnd:
        """Have the job done. Cancelling this coroutine takes a waiter away from it, which may be its end."""

    async def service_picture(self) -> ServicePicture:
        """Ask the brokers; of one that does not reply soon it has what it told last."""

    def drain(self) -> None:
        """Refuse new jobs from now on; the open ones go on."""

    async def close(self) -> None:
        """Answer what is open, say good-bye to the broker and end; a second time nothing happens."""
