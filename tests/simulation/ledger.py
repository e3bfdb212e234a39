"""What the checker has seen: the calls, the executions, and who was disturbed when."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulation.broken import InvariantBroken
from simulation.calls import Call, Identity
from simulation.invariants import CALM_S, DRIFT, MARGIN

from proto.messages import JobClaim

if TYPE_CHECKING:
    from simulation.actor import Actor
    from simulation.broker_actor import BrokerActor
    from simulation.peer import Peer
    from simulation.worker_actor import WorkerActor
    from simulation.world import World

TOGETHER_S = 3.0
"""Within this time, a broker may hear of two things in any order."""


@dataclass(slots=True, kw_only=True, eq=False)
class Execution:
    """As the messages of broker and worker tell of it."""

    execution_id: bytes
    claim: JobClaim
    identity: Identity
    epoch: bytes
    """Of the broker that dispatched it."""
    broker_index: int
    """Likewise, whichever of its lives."""
    worker: "WorkerActor"
    sent_at: float
    begun_at: float | None = None
    ended_at: float | None = None
    is_image: bool = False
    detached_at: set[bytes] = field(default_factory=set)
    """Epochs of the brokers that have told its worker, or were told by it, that it is detached."""
    cancelled_by: set[bytes] = field(default_factory=set)
    """Epochs of the brokers that have asked for its end."""
    owners: set[bytes] = field(default_factory=set)
    """Epochs of the brokers that began it, adopted it, or gave its image again."""
    released_at: float | None = None
    """When its worker was first told that nobody waits for its outcome."""
    current_for: bytes = b""
    """The epoch of the broker that dispatched it, while it counts on it, as far as its messages tell."""
    returned_at: float | None = None
    """When that broker learnt that it came to nothing."""
    image_told_to: set[bytes] = field(default_factory=set)
    """Epochs of the brokers that were told last that its worker holds its image, finished or not."""
    reported_to: dict[bytes, float] = field(default_factory=dict)
    """Since when which brokers, by epoch, have been told that it runs, and nothing else since."""
    listed_to: dict[bytes, float] = field(default_factory=dict)
    """Since when which brokers, by epoch, have been told that it is there: it runs, or its image is held."""
    unwanted_to: dict[bytes, float] = field(default_factory=dict)
    """Since when which brokers, by epoch, have been told that no other one wants it, on their clocks."""

    @property
    def is_detached(self) -> bool:
        """By its first claim, or by a later one."""
        return bool(self.detached_at)

    @property
    def is_running(self) -> bool:
        """In an engine, in truth: it is being drawn, or becomes a PNG."""
        return self.is_drawing or (self.worker.alive and self.worker.is_encoding(self.execution_id))

    @property
    def is_drawing(self) -> bool:
        return self.worker.alive and self.worker.running == self.execution_id

    @property
    def may_answer(self) -> bool:
        """A broker may well prefer it to a later one: it runs, or its image lies there."""
        return self.worker.alive and (self.is_running or self.is_image)


class Ledger:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.executions: dict[bytes, Execution] = {}
        self.alike: dict[Identity, list[Execution]] = {}
        """Executions that answer the same calls, in the order of their dispatch."""
        self.calls: dict[bytes, Call] = {}
        self.open_calls: dict[bytes, Call] = {}
        self.waiting: dict[Identity, list[Call]] = {}
        """The open ones."""
        self.last_wanted_at: dict[Identity, float] = {}
        """When the last call that waited was over."""
        self.last_left_at: dict[Identity, float] = {}
        """When one was over because its client had gone, or its time."""
        self.last_abandoned_at: dict[Identity, float] = {}
        """When one was over because its frontend was."""
        self.delivered: dict[Identity, Execution] = {}
        """The latest image of each."""
        self.unjudged: set[Identity] = set()
        """Jobs that may run beside others of their key, for good: their image was there and may have been
        lost since, their frontend was lost and came back, or they took over what was drawn or runs."""
        self.held_bytes: Counter[bytes] = Counter()
        """By worker: of all images that it has made."""
        self.broker_died_at = 0.0
        """When the last of them died."""

    def count(self, invariant: str) -> None:
        """It was put to the test."""
        self.world.stats.checked[invariant] += 1

    def breaks(self, invariant: str, detail: str) -> InvariantBroken:
        return self.world.breaks(invariant, detail)

    def short(self, identifier: bytes | None) -> str:
        return self.world.short(identifier)

    def is_calm(self, *actors: "Actor", for_s: float = CALM_S) -> bool:
        """Nothing was done to them or their links for so long."""
        since = self.world.now - for_s
        return all(actor.is_calm_since(since) for actor in actors)

    def is_linked(self, broker: "BrokerActor", *peers: "Peer", for_s: float = CALM_S) -> bool:
        """Nothing was done to the broker, to these peers or to their links with it for so long."""
        since = self.world.now - for_s
        return broker.is_calm_since(since) and all(peer.is_calm_with(broker.index, since) for peer in peers)

    def has_twin(self, worker: "WorkerActor") -> bool:
        """Another process of its name began at nearly the same time: drifting clocks cannot tell which."""
        world = self.world
        apart_s = DRIFT * (world.now - worker.born_at)
        return any(
            each is not worker
            and each.name == worker.name
            and each.died_at > worker.born_at
            and abs(each.born_at - worker.born_at) <= apart_s
            for each in (*world.workers, *world.graves)
        )

    # --- Calls ---------------------------------------------------------------------------------

    def open(self, call: Call) -> None:
        self.open_calls[call.job_id] = self.calls[call.job_id] = call
        self.waiting.setdefault(call.identity, []).append(call)

    def close(self, call: Call, how: str, *, is_abandoned: bool = False) -> None:
        self.last_wanted_at[call.identity] = self.world.now
        if not is_abandoned:
            self.last_left_at[call.identity] = self.world.now
        self.world.stats.endings[how] += 1
        if self.open_calls.pop(call.job_id, None) is not None:
            waiting = self.waiting[call.identity]
            waiting.remove(call)
            if not waiting:
                del self.waiting[call.identity]
        self.world.on_call_over(call)

    def submitted(self, call: Call, broker_index: int) -> bool:
        """True if it was at another broker before."""
        before, call.at = call.at, broker_index
        call.been_at.add(broker_index)
        if before is None or before == broker_index:
            return False
        call.left_at[before] = self.world.now
        call.was_taken_at.pop(before, None)
        if call.taken_at is not None:
            call.was_taken_at[before] = call.taken_at
        call.admitted_by.clear()
        call.moved_at, call.taken_at, call.passed_on, call.deaf_since = self.world.now, None, False, None
        return True

    def abandon(self, call: Call) -> None:
        """Its frontend cannot answer it, or is believed to be lost."""
        self.last_abandoned_at[call.identity] = self.world.now

    def frontend_gone(self, call: Call) -> None:
        if self.world.now - self.last_wanted_at[call.identity] < TOGETHER_S:
            self.abandon(call)

    def was_abandoned(self, identity: Identity) -> bool:
        """Its last waiter was lost with its frontend, and none has left at about that time."""
        abandoned_at = self.last_abandoned_at.get(identity, -1.0)
        left_at = self.last_left_at.get(identity, -TOGETHER_S - 1.0)
        return abandoned_at >= self.last_wanted_at.get(identity, 0.0) and abandoned_at - left_at > TOGETHER_S

    def is_nearly_over(self, call: Call, slack_s: float = 0.0) -> bool:
        """Somebody's clock may say that its time is up."""
        left_s = call.deadline_at - self.world.now
        return left_s <= slack_s + DRIFT * (call.deadline_at - call.opened_at)

    # --- Executions ----------------------------------------------------------------------------

    def dispatched(self, execution: Execution) -> None:
        self.executions[execution.execution_id] = execution
        self.alike.setdefault(execution.identity, []).append(execution)

    def rivals(self, execution: Execution) -> list[Execution]:
        """Others that answer the same calls: later ones, and earlier ones that are still good for it."""
        alike = self.alike[execution.identity]
        position = alike.index(execution)
        return [other for other in alike[:position] if other.may_answer] + alike[position + 1 :]

    def counts_on_another(self, broker: "BrokerActor", execution: Execution) -> bool:
        """Whether its call has another one at this broker, which wants no second one then.

        It has begun that, and was not told that it came to nothing: while its START is not answered, what its
        worker runs instead may be over when that arrives (PROTOCOL.md §5.3). Or it believes that it runs, and
        has begun or adopted it.
        """
        return any(
            other is not execution
            and (other.current_for == broker.epoch or self._is_believed_to_run(broker, other))
            for other in self.alike[execution.identity]
        )

    @staticmethod
    def _is_believed_to_run(broker: "BrokerActor", execution: Execution) -> bool:
        return (
            broker.epoch in execution.owners
            and broker.epoch in execution.reported_to
            and broker.epoch not in execution.cancelled_by
        )

    def patient_waiters(self, execution: Execution, broker: "BrokerActor") -> list[Call]:
        """Accepted calls with time left that this execution would answer; this broker must know of them."""
        if self.rivals(execution) or self.counts_on_another(broker, execution):
            return []
        return [
            call
            for call in self.waiting.get(execution.identity, ())
            if not call.passed_on
            and not self.is_nearly_over(call, 2.0)
            and self.is_linked(broker, call.frontend)
            and self._is_known_to(broker, call, execution)
        ]

    def _is_known_to(self, broker: "BrokerActor", call: Call, execution: Execution) -> bool:
        if call.at == broker.index:
            return self._is_taken(broker, call)
        if broker.index in call.been_at:
            return self._has_just_left(broker, call)
        return self._will_come(call, execution)

    def can_want(self, broker: "BrokerActor", execution: Execution) -> bool:
        """It has begun it, or was told of it so long ago that its views can say that a call waits for it.

        The first report of it counts, whatever has become of it since. Who has adopted it has heard its
        worker, though another process has the same name.
        """
        if execution.epoch == broker.epoch:
            return True
        since = execution.listed_to.get(broker.epoch)
        is_heard = broker.epoch in execution.owners or not self.has_twin(execution.worker)
        return is_heard and since is not None and since < self.world.now - 1.0

    def _has_just_left(self, broker: "BrokerActor", call: Call) -> bool:
        """The one that it went to has not had the time to want its execution."""
        taken_at = call.was_taken_at.get(broker.index)
        left_at = call.left_at.get(broker.index, -1.0)
        is_lately = self.world.now - left_at < MARGIN * self.world.timing.rebuild_s
        return is_lately and taken_at is not None and broker.born_at < taken_at < left_at - 1.0

    def _is_taken(self, broker: "BrokerActor", call: Call) -> bool:
        """This life of its broker knows that it was told."""
        return call.taken_at is not None and broker.born_at < call.taken_at < self.world.now - 1.0

    def _will_come(self, call: Call, execution: Execution) -> bool:
        """Its broker has died lately: it moves soon, to whoever is there, and finds the execution there."""
        if call.at is None or call.accepted_at is None or self.world.brokers[call.at].alive:
            return False
        is_accepted = self.world.now - call.accepted_at > 1.0
        return is_accepted and self.is_calm(call.frontend, execution.worker)

    def _others_of_key(self, identity: Identity) -> Iterator[Execution]:
        """Of calls with the same idempotency key and other parameters."""
        for other, executions in self.alike.items():
            if other[:2] == identity[:2] and other != identity:
                yield from executions

    def is_still_there(self, made: Execution, broker: "BrokerActor") -> bool:
        """Whether its worker must have this image, and this broker must know of it."""
        worker, now, limits = made.worker, self.world.now, self.world.limits
        if made.ended_at is None or worker.is_leaving:
            return False
        # Of two that were under way at the same time only one is kept.
        if any(other is not made and other.sent_at < made.ended_at for other in self.alike[made.identity]):
            return False
        # Nor of two with one idempotency key: of calls that brokers had accepted beside each other.
        over_at = now if made.released_at is None else made.released_at
        longest_s = limits.held_age_max_s + limits.kept_age_max_s
        for other in self._others_of_key(made.identity):
            may_be_there = other.ended_at is None or other.ended_at + longest_s > made.sent_at
            if may_be_there and other.sent_at < over_at:
                return False
        until = made.ended_at + MARGIN * limits.held_age_max_s
        if made.released_at is not None:
            until = made.released_at + MARGIN * limits.kept_age_max_s
        is_room = self.held_bytes[worker.incarnation] < limits.held_bytes_max / 2
        calm_since = min(made.ended_at, now - CALM_S)
        is_calm = worker.is_calm_with(broker.index, calm_since) and broker.is_calm_since(calm_since)
        return now < until and is_room and is_calm and worker.runs <= limits.kept_max
