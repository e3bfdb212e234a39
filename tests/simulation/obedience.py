"""What a worker makes of the wishes of several brokers: it ends only what no other one wants."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulation.calls import Call
from simulation.held_rules import HeldRules
from simulation.invariants import MARGIN, OBEYED, PUSHED, TRULY, WANTED
from simulation.ledger import Execution, Ledger

from gpu_worker.slot import Busy, Stopping, in_engine
from proto.failures import FailureCode
from proto.messages import Message, Outcome, Refuse, Start, WorkerReport, WorkerView

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.worker_actor import WorkerActor


@dataclass(slots=True)
class Wants:
    """What one broker wants of one worker, as far as that has heard."""

    heard_at: float
    """On the worker's clock."""
    wanted: set[bytes] = field(default_factory=set)
    started: dict[bytes, int] = field(default_factory=dict)
    """What it has told to start, and the number of the worker's latest message to it then."""
    echo: int = 0
    """Of its latest view: one that comes after it and is older says nothing."""
    epoch: bytes | None = None
    """Of its last view: a START of another life of the broker says nothing of what this one wants."""


@dataclass(slots=True)
class Glance:
    """At a worker, just before it reads a view."""

    worker: "WorkerActor"
    broker_index: int
    view: WorkerView
    named: set[bytes]
    """What the broker would see ended."""
    spared: set[bytes]
    """What of that it must not let go of, for another broker's sake."""
    drawn: bytes
    """What its engine was drawing."""
    encoded: set[bytes]
    """Of what is named, the PNGs that it was making."""
    held: dict[bytes, bool]
    """Of that, the outcomes that it held; True: and lists as released."""


class Obedience:
    def __init__(self, ledger: Ledger, held: HeldRules) -> None:
        self._ledger, self._held = ledger, held
        self._wants: dict[bytes, dict[int, Wants]] = {}
        """By worker and broker."""
        self._glance: Glance | None = None
        self._started: tuple[int, bytes, int] | None = None
        """By which broker a worker is told to start what, after which of its messages to that one."""
        self._pushed: dict[bytes, set[int]] = {}
        """New outcomes of this step, and the brokers that were sent them."""

    def received(self, worker: "WorkerActor", broker_index: int, message: Message) -> None:
        if isinstance(message, Refuse):
            return
        wants = self._wants.setdefault(worker.incarnation, {}).setdefault(broker_index, Wants(0.0))
        wants.heard_at = worker.reading()
        match message:
            case WorkerView(wanted=wanted):
                if message.echo >= wants.echo:
                    wants.started = {
                        each: seq
                        for each, seq in wants.started.items()
                        if message.echo <= seq and each not in message.cancel
                    }
                    wants.wanted, wants.echo = {*wanted, *wants.started}, message.echo
                wants.epoch = message.epoch
                glance = self._glance = self._look_at(worker, broker_index, message)
                # By its own clock, and without a margin: what it does not spare it lets go of for good.
                spared = {
                    each for each in glance.named if self._others_who_want(worker, each, broker_index, 1)
                }
                self._held.viewed(worker, message, spared)
            case Start(execution_id=execution_id, epoch=wants.epoch) if not self._is_stopping(
                worker, execution_id
            ):
                seq = worker.session.contacts.contact(broker_index).seq
                self._started = (broker_index, execution_id, seq)
            case _:
                pass

    @staticmethod
    def _is_stopping(worker: "WorkerActor", execution_id: bytes) -> bool:
        """Then a START of it that comes late changes nothing."""
        slot = worker.session.slot
        return isinstance(slot, Stopping) and slot.execution_id == execution_id

    def _look_at(self, worker: "WorkerActor", broker_index: int, view: WorkerView) -> Glance:
        named = {*view.cancel, *view.release, *view.keep}
        encoded = {each for each in named if each in worker.session.encoding}
        slot = worker.session.slot
        drawn = slot.execution_id if isinstance(slot, Busy) else b""
        spared = {each for each in named if self._others_who_want(worker, each, broker_index)}
        return Glance(worker, broker_index, view, named, spared, drawn, encoded, self._held_by(worker, named))

    @staticmethod
    def _held_by(worker: "WorkerActor", named: set[bytes]) -> dict[bytes, bool]:
        if not named:
            return {}
        listed = {outcome.execution_id: outcome.released for outcome in worker.session.held.listed()}
        return {each: listed[each] for each in named if each in listed}

    def pushed(self, broker_index: int, outcome: Outcome) -> None:
        """It sends an outcome; only a new one has to go to all who want it."""
        if self._ledger.executions[outcome.execution_id].ended_at == self._ledger.world.now:
            self._pushed.setdefault(outcome.execution_id, set()).add(broker_index)

    def reported(self, worker: "WorkerActor", broker_index: int, report: WorkerReport) -> None:
        """It says truly whether another broker wants what it runs and holds."""
        self._note_started(worker)
        running = () if report.running is None else (report.running,)
        for each in (*running, *report.held) if len(worker.links) > 1 else ():
            self._ledger.count(TRULY)
            wanting = self._others_who_want(worker, each.execution_id, broker_index, MARGIN)
            perhaps = self._others_who_want(worker, each.execution_id, broker_index, 1 / MARGIN)
            if (wanting and not each.wanted_elsewhere) or (each.wanted_elsewhere and not perhaps):
                detail = f"{self._ledger.short(each.execution_id)} of {worker.name}: {each.wanted_elsewhere}"
                raise self._ledger.breaks(TRULY, f"{detail}, to {self._name(broker_index)}")

    def stepped(self, worker: "WorkerActor") -> None:
        glance, self._glance = self._glance, None
        pushed, self._pushed = self._pushed, {}
        self._note_started(worker)
        if len(worker.links) > 1:
            for execution_id, brokers in pushed.items():
                self._check_pushed(worker, execution_id, brokers)
        if glance is not None and glance.worker is worker:  # Otherwise its worker ended before it read that.
            self._check_spared(worker, glance)

    def _note_started(self, worker: "WorkerActor") -> None:
        """What it was told to start counts as wanted, unless it has ignored or refused that."""
        started, self._started = self._started, None
        busy = in_engine(worker.session.slot)
        if started is not None and busy is not None and busy.execution_id == started[1]:
            wants = self._wants[worker.incarnation][started[0]]
            wants.wanted.add(started[1])
            wants.started[started[1]] = started[2]

    def _others_who_want(
        self, worker: "WorkerActor", execution_id: bytes, than: int | None, share: float = MARGIN
    ) -> list[int]:
        """Brokers other `than` this one, heard within this `share` of `broker_silent_s`."""
        now, within_s = worker.reading(), share * self._ledger.world.timing.broker_silent_s
        return [
            index
            for index, wants in self._wants.get(worker.incarnation, {}).items()
            if index != than and execution_id in wants.wanted and now < wants.heard_at + within_s
        ]

    def _check_pushed(self, worker: "WorkerActor", execution_id: bytes, brokers: set[int]) -> None:
        self._ledger.count(PUSHED)
        for index in self._others_who_want(worker, execution_id, None):
            if index not in brokers:
                detail = f"{self._ledger.short(execution_id)} of {worker.name}"
                raise self._ledger.breaks(PUSHED, f"{detail} is not sent to {self._name(index)}")

    def _check_spared(self, worker: "WorkerActor", glance: Glance) -> None:
        held = self._held_by(worker, glance.named)
        for execution_id in sorted(glance.named):
            if execution_id in glance.spared:
                self._ledger.count(OBEYED)
            if not self._has_ended(worker, glance, execution_id, held):
                continue
            ended = f"{self._name(glance.broker_index)} ends {self._ledger.short(execution_id)}"
            if execution_id in glance.spared:
                raise self._ledger.breaks(OBEYED, f"{ended} of {worker.name}, and another broker wants it")
            self._check_waiters(worker, glance, execution_id, ended)

    @staticmethod
    def _has_ended(
        worker: "WorkerActor", glance: Glance, execution_id: bytes, held: dict[bytes, bool]
    ) -> bool:
        """Whether the worker has let go of it for this view."""
        slot = worker.session.slot
        if isinstance(slot, Stopping) and slot.execution_id == execution_id:
            return execution_id == glance.drawn and slot.code is FailureCode.CANCELLED
        if execution_id in glance.encoded:
            return execution_id not in worker.session.encoding
        if execution_id not in glance.held:
            return False
        if glance.held[execution_id] and execution_id not in glance.view.release:
            return False  # It was kept already: told so again, it can only have given way to another one.
        return execution_id not in held or (held[execution_id] and not glance.held[execution_id])

    def _check_waiters(self, worker: "WorkerActor", glance: Glance, execution_id: bytes, ended: str) -> None:
        """Whatever the brokers have said: nobody waits for it at another one that is there."""
        ledger, execution = self._ledger, self._ledger.executions[execution_id]
        if execution.ended_at is not None and not execution.is_image:
            return  # A failure, which nobody needs.
        for broker in ledger.world.brokers:
            if broker.index != glance.broker_index and ledger.is_linked(broker, worker):
                ledger.count(WANTED)
                for call in ledger.patient_waiters(execution, broker):
                    if self._could_be_told(call, broker, execution, glance.view.epoch):
                        waiter = ledger.short(call.job_id)
                        raise ledger.breaks(WANTED, f"{ended}, and {waiter} waits at {broker.name}")

    def _could_be_told(self, call: Call, broker: "BrokerActor", execution: Execution, ender: bytes) -> bool:
        """Whether the one that ends it, of this epoch, could know of the call.

        Its broker wants what it was told of, not what has just begun for another one's call. While a call
        moves nobody wants what it waits for: who has begun or adopted it for another call of its own ends it
        with that one (PROTOCOL.md §10); all others leave it alone for a while.
        """
        if call.at == broker.index:
            return self._ledger.can_want(broker, execution)
        return ender not in execution.owners

    def _name(self, broker_index: int) -> str:
        return self._ledger.world.brokers[broker_index].name
