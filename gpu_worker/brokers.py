"""The brokers that a worker serves: its contact with each, and what each wants of its executions. Pure.

The slot is the truth, so the fence between brokers is here: none may end what another one wants.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from proto.contact import BrokerContact, Contacts
from proto.latest import keep_latest
from proto.messages import WorkerView

GATHER_S: Final = 0.01
"""What a broker knows already is reported to it together with what else happens within this time."""
STARTED_MAX: Final = 16
"""A worker has one slot, and each view tells anew what is wanted."""


@dataclass(slots=True, kw_only=True)
class BrokerWants:
    contact: BrokerContact
    wanted: set[bytes] = field(default_factory=set)
    """Executions that its last view wanted, and those it has told to start since."""
    started: dict[bytes, int] = field(default_factory=dict)
    """Those, and the number of the latest message to it then."""
    echo: int = 0
    """Of its latest view."""


@dataclass(slots=True, kw_only=True)
class Brokers(Contacts):
    """And what each wants."""

    _known: tuple[BrokerWants, ...] = field(init=False)

    def __post_init__(self) -> None:
        Contacts.__post_init__(self)
        self._known = tuple(BrokerWants(contact=contact) for contact in self._contacts)

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
        keep_latest(known.started, STARTED_MAX)

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

    @property
    def interval_s(self) -> float:
        """The longest between two reports."""
        return max(known.contact.interval_s for known in self._known)
