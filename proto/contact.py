"""A peer's contact with its broker: when to report, when the broker counts as silent, which life answers.

Pure: the same rules for workers and frontends (PROTOCOL.md §4), on the caller's clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from proto.messages import FrontendView, WorkerView
from proto.timing import Timing

UNANSWERED_REPORTS_PER_INTERVAL: Final = 4
"""A peer that waits for its first view reports this often, so that a start takes no whole interval."""
SHORTEST_INTERVAL_S: Final = 0.01
LONGEST_INTERVAL_S: Final = 60.0
SILENT: Final = "broker silent, connecting anew"
NEVER_HEARD: Final = "broker has not answered yet"


@dataclass(slots=True, kw_only=True)
class BrokerContact:
    timing: Timing
    started_at: float

    epoch: bytes | None = None
    """The life of the broker that was heard last."""
    broker_id: str = ""
    """Its name."""
    interval_s: float = field(init=False)
    """Between two reports, as the broker told."""
    last_heard_at: float = field(init=False)
    """On any connection; the start counts as once."""
    next_report_at: float = field(init=False)
    _connected_at: float = field(init=False)
    _refused: str | None = None
    """Why the broker does not serve this peer, as it said last."""
    _is_answered: bool = False
    """A view has come on the present connection."""
    _was_in_vain: bool = False
    """A fresh connection has been made since a view came last, or since the start."""
    _seq: int = 0

    def __post_init__(self) -> None:
        self.last_heard_at = self.next_report_at = self._connected_at = self.started_at
        self.interval_s = self.timing.heartbeat_interval_s

    @property
    def silent_at(self) -> float:
        """When a fresh connection is due unless something is heard."""
        since = self.last_heard_at if self._is_answered else self._connected_at
        return since + self.timing.broker_silent_s

    def is_unreachable(self, now: float) -> bool:
        """Nothing was heard for `broker_silent_s`, on whatever connection."""
        return now >= self.unreachable_at

    def is_heard(self, now: float) -> bool:
        """It has answered, and was heard of within `broker_silent_s`."""
        return self.epoch is not None and not self.is_unreachable(now)

    @property
    def unreachable_at(self) -> float:
        return self.last_heard_at + self.timing.broker_silent_s

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    @property
    def seq(self) -> int:
        """Of the latest message."""
        return self._seq

    def heard(self, now: float) -> None:
        self.last_heard_at = now

    def refused(self, reason: str) -> bool:
        """The broker does not serve this peer, which is as good as silence; True if that is news."""
        is_news, self._refused = reason != self._refused, reason
        return is_news

    def viewed(self, view: WorkerView | FrontendView, now: float) -> bool:
        """Take the timing and the epoch from a view; True if this connection, or this life of the
        broker, had not answered before.
        """
        is_new = not self._is_answered or view.epoch != self.epoch
        self._is_answered, self._was_in_vain, self._refused = True, False, None
        self.broker_id = view.broker_id
        self.heard(now)
        self.interval_s = min(max(view.heartbeat_interval_ms / 1000, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
        if view.epoch != self.epoch:
            self.epoch = view.epoch
            self.report_soon(now)
        return is_new

    def report_soon(self, now: float) -> None:
        self.next_report_at = min(self.next_report_at, now)

    def report_within(self, now: float, delay_s: float) -> None:
        """Soon, and together with what else happens until then."""
        self.next_report_at = min(self.next_report_at, now + delay_s)

    def reported(self, now: float) -> None:
        self.next_report_at = now + self.interval_s / (
            1 if self._is_answered else UNANSWERED_REPORTS_PER_INTERVAL
        )

    def reconnected(self, now: float) -> str | None:
        """A fresh connection is made. The event for the log, unless the last one was made in vain too."""
        event = NEVER_HEARD if self.epoch is None else SILENT
        is_news, self._is_answered, self._was_in_vain = not self._was_in_vain, False, True
        self._connected_at = now
        self.report_soon(now)
        return event if is_news else None


@dataclass(slots=True, kw_only=True)
class Contacts:
    """With all brokers of the settings, by their index there."""

    timing: Timing
    started_at: float
    count: int
    _contacts: tuple[BrokerContact, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._contacts = tuple(
            BrokerContact(timing=self.timing, started_at=self.started_at) for _ in range(self.count)
        )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def contact(self, broker: int) -> BrokerContact:
        return self._contacts[broker]

    def is_double(self, broker: int, now: float) -> bool:
        """An earlier endpoint leads to the same broker, for which two reports would contradict each other.

        Not once that one is silent: this endpoint, an address that moves perhaps, may lead elsewhere by now.
        """
        epoch = self._contacts[broker].epoch
        others = self._contacts[:broker]
        return epoch is not None and any(each.epoch == epoch and each.is_heard(now) for each in others)

    def doubles(self, epoch: bytes, now: float) -> list[int]:
        """Endpoints that lead to the broker of this epoch beside an earlier one."""
        return [each for each in self if self._contacts[each].epoch == epoch and self.is_double(each, now)]

    def next_deadline(self) -> float:
        """When a report or a fresh connection is due."""
        return min(min(each.next_report_at, each.silent_at) for each in self._contacts)
