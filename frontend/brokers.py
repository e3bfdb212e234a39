"""The brokers that a frontend is connected to: how each stands, and which one gets a call. Pure."""

from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Final

from proto.contact import BrokerContact, Contacts
from proto.messages import FrontendView


class Standing(IntEnum):
    """Of a broker, the best first. A call goes to the best one; of several, to the first in the settings."""

    LIVE = auto()
    """It answers, and knows of a worker that is ready."""
    WITHOUT_WORKERS = auto()
    """It answers, and would refuse."""
    REBUILDING = auto()
    """It has just started, and lets new calls wait."""
    UNHEARD = auto()
    """It has not answered yet, and was not given the time to."""
    DRAINING = auto()
    """It takes no calls any more."""
    SILENT = auto()
    """Nothing was heard of it for `broker_silent_s`."""


KEEPS_CALLS: Final = Standing.REBUILDING
"""A call stays with its broker as long as that one stands so or better, and is not cut off from workers."""


@dataclass(slots=True, kw_only=True)
class BrokerFacts:
    contact: BrokerContact
    ready_workers: int = 0
    """With a loaded model, idle or busy, as it said last."""
    changed_at: float = 0.0
    """When it last lost the last of them, or got the first one."""
    draining: bool = False
    rebuilding: bool = False
    calls: int = 0
    """Open ones that are there."""
    unreported_keys: set[str] = field(default_factory=set)
    """Keys with calls that are over, and that it still counts."""

    def viewed(self, view: FrontendView, now: float) -> bool:
        """Take what it says of itself; True if it has not answered so before (`BrokerContact.viewed`)."""
        if bool(view.ready_workers) != bool(self.ready_workers):
            self.changed_at = now
        self.ready_workers = view.ready_workers
        self.draining, self.rebuilding = view.draining, view.rebuilding
        return self.contact.viewed(view, now)

    def standing(self, now: float) -> Standing:
        if self.contact.is_unreachable(now):
            return Standing.SILENT
        if self.contact.epoch is None:
            return Standing.UNHEARD
        if self.draining:
            return Standing.DRAINING
        if self.rebuilding:
            return Standing.REBUILDING
        return Standing.LIVE if self.ready_workers else Standing.WITHOUT_WORKERS


@dataclass(slots=True, kw_only=True)
class Brokers(Contacts):
    """What is known of each."""

    _known: tuple[BrokerFacts, ...] = field(init=False)

    def __post_init__(self) -> None:
        Contacts.__post_init__(self)
        self._known = tuple(BrokerFacts(contact=contact) for contact in self._contacts)

    def __getitem__(self, broker: int) -> BrokerFacts:
        return self._known[broker]

    def best(self, now: float) -> int:
        """The one that gets a new call. Whether it can take one is another thing."""
        return min(self, key=lambda broker: (self.standing(broker, now), broker))

    def standing(self, broker: int, now: float) -> Standing:
        return Standing.SILENT if self.is_double(broker, now) else self[broker].standing(now)

    def keeps_calls(self, broker: int, now: float) -> bool:
        """Whether its calls are to stay there."""
        return self.standing(broker, now) <= KEEPS_CALLS and not self._is_cut_off(broker, now)

    def _is_cut_off(self, broker: int, now: float) -> bool:
        """It has long known of no ready worker, and another one of some: the workers cannot reach it."""
        if self.standing(broker, now) is not Standing.WITHOUT_WORKERS or not self._is_settled(broker, now):
            return False
        return any(
            self.standing(other, now) is Standing.LIVE and self._is_settled(other, now) for other in self
        )

    def _is_settled(self, broker: int, now: float) -> bool:
        """It is not about to see what another one has seen a moment earlier."""
        return now - self[broker].changed_at >= self.timing.broker_silent_s

    def has_namesake(self, broker: int, now: float) -> bool:
        """Another broker has its `broker_id`, which is to tell them apart in logs and metrics."""
        own = self[broker].contact
        others = [self[other].contact for other in self if other != broker]
        return any(
            each.broker_id == own.broker_id and each.epoch != own.epoch and each.is_heard(now)
            for each in others
        )

    def heard(self, now: float) -> list[int]:
        """Those that have answered, and were heard of lately."""
        return [
            broker
            for broker in self
            if self[broker].contact.is_heard(now) and not self.is_double(broker, now)
        ]

    def ready_workers(self, now: float) -> int:
        """As the one knows that gets new calls."""
        best = self.best(now)
        return self[best].ready_workers if self.standing(best, now) <= KEEPS_CALLS else 0
