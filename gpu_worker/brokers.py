"""The brokers that a worker serves: its contact with each, and what each wants of its executions. Pure.

The slot is the truth, so the fence between brokers is here: none may end what another one wants.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from proto.contact import BrokerContact
from proto.messages import WorkerView
from proto.timing import Timing

GATHER_S: Final = 0.01
"""What a broker knows already is reported to it together with what else happens within this time."""
STARTED_MAX: Final = 16
"""A worker has one slot, and each view tells anew what is wanted."""


@dataclass(slots=True, kw_only=True)
class KnownBroker:
    contact: BrokerContact
    wanted: set[bytes] = field(default_factory=set)
    """Executions that its last view wanted, and those it has told to start since."""
    started: dict[bytes, int] = field(default_factory=dict)
    """Those, and the number of the latest message to it then."""
    echo: int = 0
    """Of its latest view."""


@dataclass(slots=True, kw_only=True)
class Brokers:
    """By their index in the settings."""

    timing: Timing
    started_at: float
    count: int
    _known: tuple[KnownBroker, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._known = tuple(
            KnownBroker(contact=BrokerContact(timing=self.timing, started_at=self.started_at))
            for _ in range(self.count)
        )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def of(self, broker: int) -> BrokerContact:
        return self._known[broker].contact

    def is_double(self, broker: int, now: float) -> bool:
        """Another endpoint leads to the same broker, which would take this worker for two at one time.

        Not once that one is silent: this endpoint, an address that moves perhaps, may lead elsewhere by now.
        """
        epoch = self.of(broker).epoch
        others = [self.of(other) for other in range(broker)]
        return epoch is not None and any(each.epoch == epoch and each.is_heard(now) for each in others)

    def report_soon(self, now: float, *, known_to: Collection[int] = ()) -> None:
        """What this worker is, or what it does, has changed.

        At once, but not to those that know it already: they sent the START, or were sent the outcome.
        """
        for broker, known in enumerate(self._known):
            if broker in known_to:
                known.contact.report_within(now, GATHER_S)
            else:
                known.contact.report_soon(now)

    def viewed(self, broker: int, view: WorkerView, now: float) -> bool:
        """Take what it wants from its view; True if it is the first one on this connection."""
        known = self._known[broker]
        if view.echo >= known.echo:  # Otherwise a later one has come before it.
            # A view that was sent before the START, and overtaken by it, says nothing of what that one began.
            known.started = {
                execution_id: seq
                for execution_id, seq in known.started.items()
                if view.echo <= seq and execution_id not in view.cancel
            }
            known.wanted, known.echo = {*view.wanted, *known.started}, view.echo
        return known.contact.viewed(view, now)

    def started(self, broker: int, execution_id: bytes) -> None:
        """It wants this execution, though no view has said so yet."""
        known = self._known[broker]
        known.wanted.add(execution_id)
        known.started[execution_id] = known.contact.seq
        if len(known.started) > STARTED_MAX:
            del known.started[next(iter(known.started))]

    def wanting(self, execution_id: bytes, now: float) -> list[int]:
        """Those that want it. Of one that is silent nobody knows any more what it wants."""
        return [
            broker
            for broker, known in enumerate(self._known)
            if known.contact.is_heard(now) and execution_id in known.wanted
        ]

    def is_wanted_elsewhere(self, execution_id: bytes, broker: int, now: float) -> bool:
        """Whether another one than this wants it."""
        return any(other != broker for other in self.wanting(execution_id, now))

    def next_deadline(self) -> float:
        """When a report or a fresh connection is due."""
        return min(
            instant
            for known in self._known
            for instant in (known.contact.next_report_at, known.contact.silent_at)
        )

    @property
    def interval_s(self) -> float:
        """The longest between two reports."""
        return max(known.contact.interval_s for known in self._known)
