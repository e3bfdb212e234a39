"""What the frontend needs of the rest of the service. `BrokerClient` provides it, tests script it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from frontend.actions import JobEnd
from frontend.events import JobOpened
from proto.failures import RefusalReason
from proto.messages import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePicture:
    """The latest that is known of the whole service."""

    snapshot: Snapshot | None
    """None until a broker has answered for the first time."""
    age_s: float
    """How long ago the broker sent it; without meaning where there is none."""
    broker_alive: bool
    """A broker has been heard of lately."""
    own_refusals: Mapping[RefusalReason, int] = field(default_factory=dict)
    """What this frontend refused itself since it started; no broker counts these."""
    own_shed: Mapping[str, int] = field(default_factory=dict)
    """What this frontend dropped since it started, by kind; likewise."""


class Cluster(Protocol):
    """The broker and the workers behind it."""

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
        """Ask the broker; answers with the last picture if it does not reply soon."""

    def drain(self) -> None:
        """Refuse new jobs from now on; the open ones go on."""

    async def close(self) -> None:
        """Answer what is open, say good-bye to the broker and end; a second time nothing happens."""
