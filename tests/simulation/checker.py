"""Looks at the world from outside the cores: at calls, messages and engines. Tells the rules what it sees.

Some rules hold always. Others say what the service owes while nothing is wrong, and are judged only where
nothing was done to those concerned for a while: to the *calm* ones. A lost broker is no excuse in most of
them.
"""

from collections import Counter
from typing import TYPE_CHECKING

from simulation.call_rules import CallRules
from simulation.calls import Call
from simulation.dispatch_rules import DispatchRules
from simulation.fair_rules import FairRules
from simulation.hearing import Hearing
from simulation.held_rules import HeldRules
from simulation.invariants import MOVED, NOT_REFUSED, RIVAL
from simulation.key_rules import KeyRules
from simulation.ledger import Ledger
from simulation.network import Connection
from simulation.obedience import Obedience
from simulation.progress_rules import ProgressRules
from simulation.wish_rules import WishRules

from frontend.actions import JobEnd
from gpu_worker.engines.engine import EngineJob
from proto.failures import RefusalReason
from proto.messages import (
    FrontendReport,
    FrontendView,
    JobState,
    JobStatus,
    Message,
    Outcome,
    Refuse,
    Start,
    Submit,
    WorkerReport,
    WorkerView,
)
from proto.notes import Note

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.frontend_actor import FrontendActor
    from simulation.worker_actor import WorkerActor
    from simulation.world import World

TAKEN = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.ENDED})
ADMISSION = frozenset(
    {
        RefusalReason.CLIENT_BUSY,
        RefusalReason.CLIENT_QUEUE_FULL,
        RefusalReason.ALL_WORKERS_BUSY,
        RefusalReason.WORKERS_NOT_READY,
        RefusalReason.DEADLINE_TOO_SHORT,
    }
)
"""Reasons that do not concern a call that joins what is there."""


class Checker:
    def __init__(self, world: "World") -> None:
        self._ledger = Ledger(world)
        self._hearing = Hearing(world)
        self._calls = CallRules(self._ledger)
        self._keys = KeyRules(self._ledger)
        self._fair = FairRules(self._ledger)
        self._dispatches = DispatchRules(self._ledger)
        self._wishes = WishRules(self._ledger)
        self._held = HeldRules(self._ledger)
        self._obedience = Obedience(self._ledger, self._held)
        self._progress = ProgressRules(self._ledger)

    @property
    def open_calls(self) -> list[Call]:
        return list(self._ledger.open_calls.values())

    @property
    def begun_of(self) -> Counter[bytes]:
        """Executions that engines have begun, by job."""
        return self._dispatches.begun_of

    def count(self, invariant: str) -> None:
        """It was put to the test by somebody else."""
        self._ledger.count(invariant)

    def look_around(self) -> None:
        """Now and then, for what does not change with every step."""
        self._calls.look_around()
        self._wishes.look_around()
        self._progress.look_around()

    # --- Clients and frontends -----------------------------------------------------------------

    def opened(self, call: Call) -> None:
        self._ledger.open(call)

    def left(self, call: Call, how: str, *, is_abandoned: bool = False) -> None:
        """Its client does not wait any more, or (`is_abandoned`) its frontend is gone."""
        call.left = True
        self._ledger.close(call, how, is_abandoned=is_abandoned)
        if is_abandoned:
            self._ledger.abandon(call)

    def frontend_gone(self, call: Call) -> None:
        """The frontend of a call that is over has died, perhaps before it could tell."""
        self._ledger.frontend_gone(call)

    def answered(self, frontend: "FrontendActor", call: Call, end: JobEnd) -> None:
        self._calls.answered(frontend, call, end)

    def desk_sends(self, frontend: "FrontendActor", broker_index: int, message: Message) -> None:
        if isinstance(message, Submit):
            call = frontend.calls[message.claim.job_id]
            self._calls.submitted(call, message)
            if self._ledger.submitted(call, broker_index):
                self._ledger.count(MOVED)
                self._dispatches.forgotten(call)
                self._fair.moved(call)

    def desk_received(self, frontend: "FrontendActor", broker_index: int, message: Message) -> None:
        if not isinstance(message, FrontendView):
            return
        for status in message.jobs:
            call = frontend.calls.get(status.job_id)
            if call is None:
                continue
            call.attempts = max(call.attempts, status.attempts)
            call.crashes = max(call.crashes, status.crashes)
            if not call.is_open or status.state not in TAKEN:
                continue
            if call.at != broker_index:
                continue  # Late words of one that it has left: its frontend does not listen to them.
            if call.taken_at is None or call.taken_by != message.epoch:
                call.taken_at, call.taken_by = self._ledger.world.now, message.epoch
            if call.accepted_at is None:
                call.accepted_at, call.accepted_by = self._ledger.world.now, message.epoch
                self._note_taken_over(call, status)
                self._keys.accepted(call, self._ledger.world.brokers[broker_index])

    def _note_taken_over(self, call: Call, status: JobStatus) -> None:
        """It gets what is drawn already, or runs for another broker: it adds nothing to what the key has.

        So does a repeat that takes over what an earlier life of its broker began for another call.
        """
        execution = self._ledger.executions.get(status.execution_id or b"")
        if execution is None:
            return
        is_its_own = execution.claim.job_id == call.job_id
        has_rivals = len(self._ledger.world.brokers) > 1
        runs_elsewhere = execution.epoch != call.accepted_by and (has_rivals or not is_its_own)
        if runs_elsewhere or not (is_its_own or execution.is_drawing):
            self._ledger.unjudged.add(call.identity)

    # --- Workers -------------------------------------------------------------------------------

    def begun(self, worker: "WorkerActor", job: EngineJob) -> None:
        self._dispatches.begun(worker, job)

    def worker_received(self, worker: "WorkerActor", broker_index: int, message: Message) -> None:
        """Before it looks at it."""
        self._obedience.received(worker, broker_index, message)

    def worker_stepped(self, worker: "WorkerActor") -> None:
        """What it was given to do is done."""
        self._obedience.stepped(worker)

    def worker_sends(self, worker: "WorkerActor", broker_index: int, message: Message) -> None:
        match message:
            case Outcome():
                self._held.ended(worker, message)
                self._obedience.pushed(broker_index, message)
            case WorkerReport():
                self._held.reported(worker, message)
                self._obedience.reported(worker, broker_index, message)
            case _:
                pass

    def worker_exited(self, worker: "WorkerActor") -> None:
        """It may be turned away for another life of its name, if that was there at the same time."""
        if worker.exited is None or "worker_id" not in worker.exited.reason:
            return
        world = self._ledger.world
        self._ledger.count(RIVAL)
        others = (each for each in (*world.workers, *world.graves) if each.name == worker.name)
        if not any(each is not worker and each.died_at > worker.born_at for each in others):
            raise self._ledger.breaks(RIVAL, f"{worker.name}: {worker.exited.reason}")

    # --- The broker ----------------------------------------------------------------------------

    def broker_received(self, broker: "BrokerActor", message: Message) -> None:
        match message:
            case Submit(claim=claim, accepted=accepted):
                self._wishes.submitted(broker, message)
                if accepted and claim.job_id in self._ledger.calls:
                    self._ledger.calls[claim.job_id].submitted_accepted = broker.epoch
                    self._fair.submitted(broker, message)
            case FrontendReport():
                self._wishes.left(broker, message)
                self._dispatches.moved(broker, message)
            case WorkerReport():
                if self._hearing.takes(broker, message):
                    self._dispatches.reported(broker, message)
                    self._wishes.reported(broker, message)
            case Outcome():
                self._hearing.ended(broker, message)
                self._dispatches.ended(broker, message)
            case Refuse(execution_id=execution_id) if execution_id is not None:
                self._dispatches.refused(broker, execution_id)
            case _:
                pass

    def broker_sends(self, broker: "BrokerActor", message: Message, connection: Connection | None) -> None:
        match message:
            case Start():
                self._dispatches.sent(broker, message, connection)
                self._fair.started(broker, message)
            case Outcome():
                self._dispatches.passed_on(broker, message)
                self._fair.ended(broker, message)
            case Refuse(job_id=job_id) if job_id is not None:
                self._check_refuse(broker, message, self._ledger.calls[job_id])
            case FrontendView():
                self._note_ended(message)
                self._fair.told(message)
            case WorkerView() if connection is not None:
                self._wishes.viewed(broker, message, connection.peer)  # type: ignore[arg-type]
                self._dispatches.viewed(broker, message, connection.peer)  # type: ignore[arg-type]
            case _:
                pass

    def _check_refuse(self, broker: "BrokerActor", refuse: Refuse, call: Call) -> None:
        self._ledger.count(NOT_REFUSED)
        if call.is_waiting and call.submitted_accepted == broker.epoch:
            detail = f"REFUSE {refuse.reason.value} for {self._ledger.short(call.job_id)}"
            raise self._ledger.breaks(NOT_REFUSED, detail)
        if refuse.reason in ADMISSION:
            self._dispatches.refused_call(broker, call)

    def _note_ended(self, view: FrontendView) -> None:
        for status in view.jobs:
            call = self._ledger.calls.get(status.job_id)
            if call is not None and status.state is JobState.ENDED:
                self._ledger.unjudged.add(call.identity)

    def broker_noted(self, broker: "BrokerActor", note: Note) -> None:
        """Some of what it tells its operator says what it has given up."""
        if note.event in ("worker lost", "worker left"):
            self._hearing.worker_lost(broker, note.fields["worker_id"])
            self._dispatches.worker_lost(broker, note.fields["worker_id"])
        if note.event in ("job admitted", "image given again"):
            self._keys.admitted(broker, note.fields["job_id"])  # type: ignore[arg-type]
        if note.event in ("execution adopted", "image given again"):
            self._dispatches.adopted(broker, note.fields["execution_id"])  # type: ignore[arg-type]
        if note.event == "execution adopted":
            self._fair.adopted(broker, note.fields["job_id"])  # type: ignore[arg-type]
        if note.event in ("frontend lost", "frontend registered"):
            for frontend in self._ledger.world.frontends:
                if frontend.name == note.fields["frontend_id"]:
                    self._dispatches.frontend_lost(broker, frontend)
                    self._fair.frontend_lost(broker, frontend)

    def broker_died(self, broker: "BrokerActor") -> None:
        self._ledger.broker_died_at = self._ledger.world.now
        self._dispatches.broker_died(broker)
