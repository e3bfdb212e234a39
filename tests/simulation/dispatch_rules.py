"""Executions: how many there may be of a job, where, when, and which of them delivers."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.calls import Call, identity_of
from simulation.invariants import (
    ATTEMPTS,
    BEGUN_ONCE,
    CALM_S,
    CRASHES,
    FENCE,
    JOINED,
    ONE_A_SLOT,
    ONE_AT_A_TIME,
    OWN_EXECUTION,
    RETRIED,
    WINDOW,
)
from simulation.ledger import Execution, Ledger
from simulation.network import Connection

from broker.jobs import MAX_ATTEMPTS, MAX_CRASHES
from gpu_worker.engines.engine import EngineJob
from proto.failures import ENGINE_DEATHS, RETRYABLE_FAILURES, FailureCode
from proto.messages import FrontendReport, Outcome, Start, WorkerReport, WorkerView

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.frontend_actor import FrontendActor
    from simulation.worker_actor import WorkerActor


@dataclass(slots=True)
class Offer:
    """A START that its worker has not answered yet, by a report of that execution, its end or a refusal."""

    execution_id: bytes
    sent_at: float
    """The last time, on the broker's clock."""
    beside: Execution | None = None
    """What the worker's latest report said that it runs instead, begun by another broker: it may have crossed
    the START."""


class DispatchRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sent_to: dict[bytes, list[Execution]] = {}
        """By worker."""
        self._offers: dict[tuple[bytes, bytes], Offer] = {}
        """By epoch and worker."""
        self._dispatched_of: Counter[bytes] = Counter()
        self.begun_of: Counter[bytes] = Counter()
        """By job."""
        self._allowance: Counter[bytes] = Counter()
        """By job: executions beyond the limit, those that nobody was left to know of."""
        self._crashes_of: Counter[tuple[bytes, bytes]] = Counter()
        """By epoch and job: what this broker was told."""
        self._given_up: set[bytes] = set()
        """Outcomes that brokers have made themselves: such a one may be passed on again much later."""

    # --- START ---------------------------------------------------------------------------------

    def sent(self, broker: "BrokerActor", start: Start, connection: Connection | None) -> None:
        known = self._ledger.executions.get(start.execution_id)
        of = (broker.epoch, start.incarnation)
        offer = self._offers.get(of)
        if known is None or (offer is not None and offer.execution_id == start.execution_id):
            self._offers[of] = Offer(start.execution_id, broker.reading())
        if known is not None:
            if known.epoch == broker.epoch:
                known.current_for = broker.epoch  # It had given it up, perhaps; now it counts on it again.
            if start.claim.detach:
                known.detached_at.add(broker.epoch)
        elif connection is not None:  # Otherwise it reaches nobody.
            self._check_start(broker, start)
            self._dispatch(broker, start, connection)

    def _check_start(self, broker: "BrokerActor", start: Start) -> None:
        ledger = self._ledger
        ledger.count(WINDOW)
        if broker.age_s() < ledger.world.timing.rebuild_s - 1e-6:
            detail = f"{ledger.short(start.execution_id)} after {broker.age_s():.3f} s"
            raise ledger.breaks(WINDOW, detail)
        ledger.count(CRASHES)
        job_id = start.claim.job_id
        crashes = max(start.claim.crashes, self._crashes_of[(broker.epoch, job_id)])
        if crashes >= MAX_CRASHES:
            raise ledger.breaks(CRASHES, f"{ledger.short(job_id)} after {crashes} of them")

    def _dispatch(self, broker: "BrokerActor", start: Start, connection: Connection) -> None:
        ledger = self._ledger
        execution = Execution(
            execution_id=start.execution_id,
            claim=start.claim,
            identity=identity_of(start.claim),
            epoch=broker.epoch,
            broker_index=broker.index,
            worker=connection.peer,  # type: ignore[arg-type]
            sent_at=ledger.world.now,
            detached_at={broker.epoch} if start.claim.detach else set(),
            current_for=broker.epoch,
            owners={broker.epoch},
        )
        self._check_alone(broker, execution)
        self._check_only(broker, execution)
        if any(call.passed_on for call in ledger.waiting.get(execution.identity, ())):
            ledger.unjudged.add(execution.identity)  # Its image was lost on its way, and with its worker.
        self._dispatched_of[start.claim.job_id] += 1
        primary = ledger.calls.get(start.claim.job_id)
        if primary is not None and primary.at != broker.index:
            # Its frontend has turned to another broker, and this one does not know it yet.
            self._allowance[start.claim.job_id] += 1
        self._sent_to.setdefault(execution.worker.incarnation, []).append(execution)
        ledger.dispatched(execution)

    def _check_alone(self, broker: "BrokerActor", execution: Execution) -> None:
        """Nothing runs already that would answer the same calls."""
        ledger = self._ledger
        ledger.count(ONE_AT_A_TIME)
        for other in ledger.alike.get(execution.identity, ()):
            engine = other.worker.engine
            is_known = broker.epoch in other.reported_to and broker.epoch not in other.cancelled_by
            if not other.is_running or not is_known or engine is None or engine.hangs:
                continue
            if ledger.has_twin(other.worker):
                continue
            since = min(other.sent_at, ledger.world.now - CALM_S)
            if other.worker.is_calm_with(broker.index, since) and ledger.is_calm(broker):
                detail = f"{ledger.short(execution.execution_id)} beside {ledger.short(other.execution_id)}"
                raise ledger.breaks(ONE_AT_A_TIME, f"{detail} on {other.worker.name}")

    def _check_only(self, broker: "BrokerActor", execution: Execution) -> None:
        """It has been told that whatever it began for this very job has come to nothing."""
        ledger = self._ledger
        for other in self._current_ones(broker, execution):
            detail = f"{ledger.short(execution.execution_id)}, and {ledger.short(other.execution_id)}"
            raise ledger.breaks(ONE_AT_A_TIME, f"{detail} is still the current one for {broker.name}")

    def _current_ones(self, broker: "BrokerActor", execution: Execution) -> list[Execution]:
        """Others of the same job."""
        return [
            other
            for other in self._ledger.alike.get(execution.identity, ())
            if other.current_for == broker.epoch
            and other.claim.job_id == execution.claim.job_id
            and other is not execution
        ]

    # --- In the engine -------------------------------------------------------------------------

    def begun(self, worker: "WorkerActor", job: EngineJob) -> None:
        ledger, execution = self._ledger, self._ledger.executions[job.execution_id]
        ledger.world.stats.executions += 1
        ledger.count(BEGUN_ONCE)
        if execution.begun_at is not None:
            raise ledger.breaks(BEGUN_ONCE, ledger.short(job.execution_id))
        execution.begun_at = ledger.world.now
        ledger.count(ONE_A_SLOT)
        if worker.running is not None:
            detail = f"{worker.name} begins another beside {ledger.short(worker.running)}"
            raise ledger.breaks(ONE_A_SLOT, detail)
        ledger.count(ATTEMPTS)
        self.begun_of[job.job_id] += 1
        most = MAX_ATTEMPTS + self._allowance[job.job_id]
        if self.begun_of[job.job_id] > most:
            detail = f"{self.begun_of[job.job_id]} of {ledger.short(job.job_id)}, {most} allowed"
            raise ledger.breaks(ATTEMPTS, detail)

    # --- What the broker learns ----------------------------------------------------------------

    def reported(self, broker: "BrokerActor", report: WorkerReport) -> None:
        """What a worker says of the executions that were sent to it."""
        listed = {outcome.execution_id for outcome in report.held}
        offer = self._open_offer(broker, report)
        running = {outcome.execution_id for outcome in report.held if outcome.is_unfinished}
        if report.running is not None:
            execution = self._ledger.executions[report.running.execution_id]
            if report.running.stopping:
                execution.reported_to.pop(broker.epoch, None)
            elif offer is not None and broker.epoch not in execution.owners:
                offer.beside = execution
            else:
                running.add(execution.execution_id)
        if offer is not None:
            listed.add(offer.execution_id)  # It may still begin.
        for execution_id in running:
            listed.add(execution_id)
            known_since = self._ledger.executions[execution_id].reported_to
            known_since.setdefault(broker.epoch, self._ledger.world.now)
        images = {each.execution_id for each in report.held if each.failure is None}
        for execution in self._sent_to.get(report.incarnation, ()):
            if execution.execution_id not in listed:
                self._came_to_nothing(broker, execution)
            if offer is None or offer.beside is not execution:
                self._note_listed(broker, execution, running, images)

    def _note_listed(
        self, broker: "BrokerActor", execution: Execution, running: set[bytes], images: set[bytes]
    ) -> None:
        """What a report makes the broker believe of it. An image that was drawn there is still there."""
        if execution.execution_id in images:
            execution.image_told_to.add(broker.epoch)
        else:
            execution.image_told_to.discard(broker.epoch)
        if execution.execution_id in running | images:
            execution.listed_to.setdefault(broker.epoch, self._ledger.world.now)
        else:
            execution.listed_to.pop(broker.epoch, None)
        if execution.execution_id not in running:
            execution.reported_to.pop(broker.epoch, None)

    def _open_offer(self, broker: "BrokerActor", report: WorkerReport) -> Offer | None:
        """A START that this report may have crossed, as it knows nothing of it.

        Until it is answered, or has been on its way for too long, the broker does not count on anything else
        that another one has begun there (PROTOCOL.md §5.3, and §10 of what is not promised).
        """
        of = (broker.epoch, report.incarnation)
        offer = self._offers.get(of)
        if offer is None:
            return None
        running = () if report.running is None else (report.running,)
        is_answered = any(each.execution_id == offer.execution_id for each in (*running, *report.held))
        is_late = broker.reading() - offer.sent_at >= self._ledger.world.timing.repeat_after_s
        offer.beside = None
        if not is_answered and not is_late:
            return offer
        if is_answered or report.running is not None:  # Otherwise it is sent again.
            del self._offers[of]
        return None

    def _close_offer(self, broker: "BrokerActor", execution: Execution) -> Execution | None:
        """It has ended, or was refused. Gives what its worker said that it runs instead."""
        of = (broker.epoch, execution.worker.incarnation)
        offer = self._offers.get(of)
        if offer is None or offer.execution_id != execution.execution_id:
            return None
        del self._offers[of]
        return offer.beside

    def viewed(self, broker: "BrokerActor", view: WorkerView, worker: "WorkerActor") -> None:
        """What it does not want where nobody waits is over for it; another broker may go on with it."""
        for execution in self._sent_to.get(worker.incarnation, ()):
            if execution.current_for != broker.epoch or execution.execution_id in view.wanted:
                continue
            waiting = self._ledger.waiting.get(execution.identity, ())
            if not any(call.at == broker.index for call in waiting):
                execution.current_for = b""

    def ended(self, broker: "BrokerActor", outcome: Outcome) -> None:
        execution = self._ledger.executions[outcome.execution_id]
        is_death = outcome.failure is not None and outcome.failure.code in ENGINE_DEATHS
        if is_death and execution.current_for == broker.epoch:
            self._crashes_of[(broker.epoch, execution.claim.job_id)] += 1
        self._close_offer(broker, execution)
        self._came_to_nothing(broker, execution)
        execution.reported_to.pop(broker.epoch, None)

    def refused(self, broker: "BrokerActor", execution_id: bytes) -> None:
        execution = self._ledger.executions[execution_id]
        beside = self._close_offer(broker, execution)
        if beside is not None:
            beside.reported_to.setdefault(broker.epoch, self._ledger.world.now)
            beside.listed_to.setdefault(broker.epoch, self._ledger.world.now)
        self._came_to_nothing(broker, execution)

    def refused_call(self, broker: "BrokerActor", call: Call) -> None:
        """It joins what runs, or is spared, for a call of its key, if the broker has been told of that."""
        ledger = self._ledger
        ledger.count(JOINED)
        for execution in ledger.alike.get(call.identity, ()):
            since = execution.reported_to.get(broker.epoch)
            if since is None or not execution.is_running or broker.epoch in execution.cancelled_by:
                continue
            if ledger.has_twin(execution.worker):
                continue  # This one may not be heard.
            if broker.is_calm_since(since) and execution.worker.is_calm_with(broker.index, since):
                detail = f"{ledger.short(call.job_id)}, and {ledger.short(execution.execution_id)} runs"
                raise ledger.breaks(JOINED, f"{detail} on {execution.worker.name}")

    def adopted(self, broker: "BrokerActor", execution_id: bytes) -> None:
        """Or its image is given again."""
        self._ledger.executions[execution_id].owners.add(broker.epoch)

    def worker_lost(self, broker: "BrokerActor", worker_id: object) -> None:
        for executions in self._sent_to.values():
            for execution in executions:
                if execution.worker.name == worker_id:
                    self._offers.pop((broker.epoch, execution.worker.incarnation), None)
                    self._came_to_nothing(broker, execution)
                    execution.image_told_to.discard(broker.epoch)
                    if not self._ledger.is_linked(broker, execution.worker):  # It has a reason.
                        execution.reported_to.pop(broker.epoch, None)
                        execution.listed_to.pop(broker.epoch, None)

    def _came_to_nothing(self, broker: "BrokerActor", execution: Execution) -> None:
        if execution.current_for == broker.epoch:
            execution.current_for, execution.returned_at = b"", self._ledger.world.now

    # --- Outcomes ------------------------------------------------------------------------------

    def passed_on(self, broker: "BrokerActor", outcome: Outcome) -> None:
        """The broker sends an outcome to a frontend."""
        ledger = self._ledger
        call = ledger.calls.get(outcome.job_id)
        if call is None:
            raise ledger.breaks(OWN_EXECUTION, f"an outcome for {ledger.short(outcome.job_id)}: no call")
        call.passed_on = True
        execution = ledger.executions.get(outcome.execution_id)
        if execution is not None and outcome.image is not None:
            self._check_fence(broker, execution)
        elif execution is not None:
            self._check_failure_fence(broker, execution)
        elif outcome.failure is not None and outcome.execution_id not in self._given_up:
            self._given_up.add(outcome.execution_id)
            self._check_given_up(broker, call, outcome, outcome.failure.code)

    def _check_fence(self, broker: "BrokerActor", execution: Execution) -> None:
        ledger = self._ledger
        ledger.count(FENCE)
        for later in ledger.alike[execution.identity]:
            if later.current_for == broker.epoch and later.sent_at > execution.sent_at:
                detail = f"{ledger.short(execution.execution_id)}, and {ledger.short(later.execution_id)}"
                raise ledger.breaks(FENCE, f"{detail} was started since")

    def _check_failure_fence(self, broker: "BrokerActor", execution: Execution) -> None:
        ledger = self._ledger
        ledger.count(FENCE)
        for other in self._current_ones(broker, execution):
            detail = f"the failure of {ledger.short(execution.execution_id)}"
            raise ledger.breaks(FENCE, f"{detail}, and {ledger.short(other.execution_id)} is the current one")

    def _check_given_up(self, broker: "BrokerActor", call: Call, outcome: Outcome, code: FailureCode) -> None:
        """By the broker itself: after all attempts, or when no worker came in time for another."""
        ledger = self._ledger
        executions = [each for each in ledger.alike.get(call.identity, ()) if each.epoch == broker.epoch]
        if not executions or code not in RETRYABLE_FAILURES or outcome.attempts >= MAX_ATTEMPTS:
            return
        ledger.count(RETRIED)
        last = executions[-1]
        if last.returned_at is None:
            return
        waited_s = ledger.world.now - last.returned_at
        if waited_s < 0.9 * ledger.world.timing.retry_wait_s:
            raise ledger.breaks(RETRIED, f"{ledger.short(call.job_id)} after {waited_s:.3f} s")

    # --- What is forgotten ---------------------------------------------------------------------

    def moved(self, broker: "BrokerActor", report: FrontendReport) -> None:
        """What this broker knew of its calls that wait elsewhere is gone, should they come back."""
        for job_id in report.elsewhere:
            self._job_forgotten(broker, job_id)

    def broker_died(self, broker: "BrokerActor") -> None:
        for call in self._ledger.open_calls.values():
            if broker.index in call.been_at:
                self.forgotten(call)

    def frontend_lost(self, broker: "BrokerActor", frontend: "FrontendActor") -> None:
        """Or back again: what was dispatched for it in the meantime, it has not heard of."""
        frontend.lost_at[broker.index] = self._ledger.world.now
        for call in frontend.calls.values():
            if call.is_open and broker.index in call.been_at:
                self._ledger.abandon(call)
                self._ledger.unjudged.add(call.identity)
                self._job_forgotten(broker, call.job_id)
                self.forgotten(call)

    def _job_forgotten(self, broker: "BrokerActor", job_id: bytes) -> None:
        self._crashes_of[(broker.epoch, job_id)] = 0
        for execution in self._ledger.alike.get(self._ledger.calls[job_id].identity, ()):
            if execution.claim.job_id == job_id and execution.current_for == broker.epoch:
                execution.current_for = b""

    def forgotten(self, call: Call) -> None:
        """Who has seen a dispatch may be gone or not be asked any more, and its frontend has not."""
        known = call.frontend.desk.jobs.get(call.job_id)
        attempts = 0 if known is None else known.attempts
        unseen = self._dispatched_of[call.job_id] - attempts
        self._allowance[call.job_id] = max(self._allowance[call.job_id], unseen)
