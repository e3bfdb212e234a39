"""What must hold in the world, as seen from outside the cores: from calls, messages and engines.

Some rules hold always. Others say what the service owes while nothing is wrong, and so are judged only where
nothing was done to those concerned for a while: the *calm* ones. A lost broker is no excuse in most of them.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from broker.jobs import MAX_ATTEMPTS, MAX_CRASHES
from frontend.actions import ImageDelivered, JobEnd, JobGivenUp, JobRefused
from gpu_worker.engines.engine import EngineJob
from gpu_worker.slot import Busy
from proto.failures import ENGINE_DEATHS, RETRYABLE_FAILURES, FailureCode, RefusalReason
from proto.messages import (
    FrontendView,
    ImageParameters,
    JobClaim,
    JobState,
    Message,
    Outcome,
    Refuse,
    Start,
    Submit,
    WorkerReport,
    WorkerView,
)
from proto.notes import Note
from simulation.calls import Call, Identity, identity_of
from simulation.network import Connection

if TYPE_CHECKING:
    from simulation.actors import Actor, BrokerActor, FrontendActor, WorkerActor
    from simulation.world import World

IN_TIME: Final = "a call ends in time"
OWN_CONTENT: Final = "an image is the one asked for"
OWN_EXECUTION: Final = "an image was drawn for the same key and parameters"
SAME_BYTES: Final = "a repeat gets the same bytes"
ONCE: Final = "a call is answered once"
NOT_REFUSED: Final = "an accepted call is not refused"
EXPLICIT: Final = "an accepted call ends with a reason of its own"
ATTEMPTS: Final = "at most three attempts"
CRASHES: Final = "a poison job costs two engines"
ONE_A_SLOT: Final = "one job a slot"
BEGUN_ONCE: Final = "an execution begins once"
ONE_A_KEY: Final = "one active job a key"
FENCE: Final = "only the current execution delivers"
ONE_AT_A_TIME: Final = "a job runs once at a time"
WINDOW: Final = "nothing is dispatched in the rebuild window"
WANTED: Final = "what somebody waits for is neither cancelled nor dropped"
UNWANTED: Final = "what nobody waits for is stopped"
DETACHED: Final = "what is detached is not cancelled"
HELD: Final = "an outcome is held until it is released"
KEPT: Final = "a kept image is kept"
GRACE: Final = "what a lost frontend leaves behind goes on for a while"
RETRIED: Final = "an attempt that failed is tried again while a worker may come"
MISMATCH: Final = "a key with other parameters is refused"
NOTICED: Final = "a dead peer is noticed"
PROGRESS: Final = "an accepted job gets on"
CORES: Final = "cores agree with themselves"
AGREE: Final = "views agree when all is over"
RELEASED: Final = "nothing is left when all is over"
FRESH: Final = "a fresh call gets its image when all is over"
INVARIANTS: Final = [
    IN_TIME, OWN_CONTENT, OWN_EXECUTION, SAME_BYTES, ONCE, NOT_REFUSED, EXPLICIT, ATTEMPTS, CRASHES, ONE_A_SLOT,
    BEGUN_ONCE, ONE_A_KEY, FENCE, ONE_AT_A_TIME, WINDOW, WANTED, UNWANTED, DETACHED, GRACE, RETRIED, HELD, KEPT, MISMATCH,
    NOTICED, PROGRESS, CORES, AGREE, RELEASED, FRESH,
]  # fmt: skip

LATE_S: Final = 1.0
"""How long after its deadline a call may end, on its frontend's clock."""
CALM_S: Final = 15.0
"""Without a disturbance for so long, no peer is behind: longer than `peer_lost_s` and a rebuild window."""
STOP_S: Final = 6.0
"""A waiter's leaving reaches the engine by then, a slow step included."""
STUCK_S: Final = 10.0
"""How long an accepted job may be left alone beside an idle worker: a rebuild window and two repetitions."""
MARGIN: Final = 0.97
"""Of durations that somebody else's clock measures."""


@dataclass(slots=True, kw_only=True, eq=False)
class Execution:
    execution_id: bytes
    claim: JobClaim
    parameters: ImageParameters
    prompt: bytes
    identity: Identity
    epoch: bytes
    worker: "WorkerActor"
    sent_at: float
    begun_at: float | None = None
    ended_at: float | None = None
    png: bytes | None = None
    cancelled: bool = False
    """A broker has asked for its end."""
    released_at: float | None = None
    """When its worker was first told that nobody waits for its outcome."""
    detached: bool = False
    current_for: bytes = b""
    """The epoch of the broker that counts on it, as far as its messages tell."""
    returned_at: float | None = None
    """When that broker learnt that it came to nothing."""
    reported_to: bytes = b""
    """The epoch of the broker that was told last that it runs."""


class Checker:
    def __init__(self, world: "World") -> None:
        self._world = world
        self.checked = world.stats.checked
        self.executions: dict[bytes, Execution] = {}
        self.by_identity: dict[Identity, list[Execution]] = {}
        self.open_calls: dict[bytes, Call] = {}
        self.calls: dict[bytes, Call] = {}
        self.waiting: dict[Identity, list[Call]] = {}
        """Open calls."""
        self.last_wanted_at: dict[Identity, float] = {}
        self.last_abandoned_at: dict[Identity, float] = {}
        """By a frontend that was gone."""
        self.delivered: dict[Identity, Execution] = {}
        """The latest image of each."""
        self.begun_of: Counter[bytes] = Counter()
        self.dispatched_of: Counter[bytes] = Counter()
        self.allowance: Counter[bytes] = Counter()
        """Executions beyond the limit: those that nobody was left to know of."""
        self.unjudged: set[Identity] = set()
        """Jobs that may run beside others of their key: their image was there and may be lost since, or their
        frontend was lost and came back."""
        self.crashes_of: Counter[tuple[bytes, bytes]] = Counter()
        """By epoch and job: what this broker was told."""
        self.broker_started_at = 0.0
        self._owed: dict[bytes, dict[bytes, float]] = {}
        """By worker: when it finished what it must list until released."""
        self._kept: dict[bytes, dict[bytes, float]] = {}
        """By worker: when it was told to keep what."""
        self._held_bytes: Counter[bytes] = Counter()
        self._free_since: dict[bytes, tuple[int, float]] = {}
        self._sent_to: dict[bytes, list[Execution]] = {}
        """By worker: what may be current there."""

    def count(self, invariant: str) -> None:
        self.checked[invariant] += 1

    def breaks(self, invariant: str, detail: str) -> AssertionError:
        return self._world.breaks(invariant, detail)

    def _is_calm(self, *actors: "Actor", for_s: float = CALM_S) -> bool:
        since = self._world.now - for_s
        return all(actor.is_calm_since(since) for actor in actors)

    def _short(self, identifier: bytes | None) -> str:
        return self._world.short(identifier)

    # --- Calls ---------------------------------------------------------------------------------

    def opened(self, frontend: "FrontendActor", call: Call) -> None:
        self.open_calls[call.job_id] = self.calls[call.job_id] = call
        self.waiting.setdefault(call.identity, []).append(call)

    def left(self, call: Call, how: str) -> None:
        """Its client does not wait any more, or cannot be answered."""
        call.left = True
        self._over(call, how)
        if how != "left":
            self.last_abandoned_at[call.identity] = self._world.now

    def answered(self, frontend: "FrontendActor", call: Call, end: JobEnd) -> None:
        self.count(ONCE)
        if call.left and not call.is_left_known:
            return  # Nobody hears the answer.
        if not call.is_open:
            raise self.breaks(ONCE, f"{self._short(call.job_id)} was over: {call.ending()}")
        call.end, call.ended_at = end, self._world.now
        self._world.tell(frontend.name, f"answers {self._short(call.job_id)}: {call.ending()}")
        match end:
            case ImageDelivered(png=png, seed=seed):
                self._world.stats.delivered += 1
                self._check_image(call, bytes(png), seed)
            case JobRefused(reason=reason):
                self._check_refusal(call, frontend, reason)
                if reason is RefusalReason.FRONTEND_DRAINING:
                    self.last_abandoned_at[call.identity] = self._world.now
            case JobGivenUp(code=code):
                self._check_failure(call, frontend, code)
        self._over(call, call.ending())

    def _over(self, call: Call, how: str) -> None:
        self.last_wanted_at[call.identity] = self._world.now
        self._world.stats.endings[how] += 1
        if self.open_calls.pop(call.job_id, None) is not None:
            waiting = self.waiting[call.identity]
            waiting.remove(call)
            if not waiting:
                del self.waiting[call.identity]
        self._world.on_call_over(call)

    def _check_refusal(self, call: Call, frontend: "FrontendActor", reason: RefusalReason) -> None:
        self.count(NOT_REFUSED)
        if reason is RefusalReason.IDEMPOTENCY_MISMATCH:
            self.count(MISMATCH)
            if not any(self._is_other_of_key(other, call) for other in self.calls.values()):
                raise self.breaks(MISMATCH, f"{self._short(call.job_id)} is refused without a reason")
        leaves = reason is RefusalReason.FRONTEND_DRAINING and frontend.is_draining
        if call.accepted_at is not None and not leaves:
            raise self.breaks(NOT_REFUSED, f"{self._short(call.job_id)}: {reason.value}")

    def _check_failure(self, call: Call, frontend: "FrontendActor", code: FailureCode) -> None:
        self.count(EXPLICIT)
        if code is FailureCode.CANCELLED:
            raise self.breaks(EXPLICIT, f"{self._short(call.job_id)} was cancelled, and its client waits")
        if code is FailureCode.DEADLINE_EXCEEDED:
            total_s = call.deadline_at - call.opened_at
            left_s = call.answer_by - frontend.reading()
            if left_s > 1.0 + 0.06 * total_s:
                raise self.breaks(EXPLICIT, f"{self._short(call.job_id)} had {left_s:.1f} s left")

    def _check_time(self) -> None:
        for call in self.open_calls.values():
            frontend = call.frontend
            if frontend.frozen:
                continue
            self.count(IN_TIME)
            since_thaw = frontend.clock.reading_at(frontend._thaw_at)
            latest = max(call.answer_by, since_thaw) + LATE_S
            if frontend.clock.reading_at(self._world.now) > latest:
                raise self.breaks(IN_TIME, f"{self._short(call.job_id)} of {frontend.name} is still open")

    # --- Images --------------------------------------------------------------------------------

    def _check_image(self, call: Call, png: bytes, seed: int) -> None:
        *content, execution = png.decode().split("|")
        asked, wanted = call.wish.job, call.wish.job.parameters
        expected = [asked.prompt, wanted.width, wanted.height, wanted.steps, wanted.guidance, wanted.seed]
        self.count(OWN_CONTENT)
        if content != [str(part) for part in expected] or seed != wanted.seed:
            raise self.breaks(OWN_CONTENT, f"{self._short(call.job_id)} wanted {expected}, got {content}")
        drawn = self.executions[bytes.fromhex(execution)]
        self.count(OWN_EXECUTION)
        if drawn.identity != call.identity:
            detail = f"{self._short(call.job_id)} of {call.wish.key} got {self._short(drawn.execution_id)}"
            raise self.breaks(OWN_EXECUTION, f"{detail} of {drawn.claim.key_fingerprint}")
        self._check_repeat(call, drawn)
        self.delivered[call.identity] = drawn

    def _check_repeat(self, call: Call, drawn: Execution) -> None:
        """While the worker of the first image lives undisturbed, and has it still, nobody gets another."""
        first = self.delivered.get(call.identity)
        if first is None:
            return
        if first is drawn:
            self.count(SAME_BYTES)
        elif self._is_still_there(first):
            self.count(SAME_BYTES)
            detail = f"{self._short(call.job_id)} got {self._short(drawn.execution_id)}"
            raise self.breaks(SAME_BYTES, f"{detail}, and {self._short(first.execution_id)} was there")

    def _is_still_there(self, made: Execution) -> bool:
        """Whether its worker must have it, and its broker must know."""
        worker, broker, limits, now = made.worker, self._world.broker, self._world.limits, self._world.now
        if made.ended_at is None or worker.is_leaving:
            return False
        rivals = [each for each in self.by_identity[made.identity] if each is not made]
        if any(each.sent_at < made.ended_at for each in rivals):
            return False
        until = made.ended_at + MARGIN * limits.held_age_max_s
        if made.released_at is not None:
            until = made.released_at + MARGIN * limits.kept_age_max_s
        is_young = now < until
        is_room = self._held_bytes[worker.incarnation] < limits.held_bytes_max / 2
        calm_since = min(made.ended_at, now - CALM_S)
        is_calm = worker.is_calm_since(calm_since) and broker.is_calm_since(calm_since)
        return (
            is_young and is_room and is_calm and len(self._kept.get(worker.incarnation, {})) < limits.kept_max
        )

    # --- What the broker hears and says --------------------------------------------------------

    def broker_received(self, broker: "BrokerActor", message: Message) -> None:
        match message:
            case Submit(claim=claim, accepted=True):
                call = self.calls.get(claim.job_id)
                if call is not None:
                    call.submitted_accepted = broker.epoch
            case WorkerReport():
                self._told_of(broker, message)
            case Outcome(failure=failure, execution_id=execution_id):
                execution = self.executions[execution_id]
                is_death = failure is not None and failure.code in ENGINE_DEATHS
                if is_death and execution.current_for == broker.epoch:
                    self.crashes_of[(broker.epoch, execution.claim.job_id)] += 1
                self._came_to_nothing(execution)
            case Refuse(execution_id=execution_id) if execution_id is not None:
                self._came_to_nothing(self.executions[execution_id])
            case _:
                pass

    def broker_sends(self, broker: "BrokerActor", message: Message, connection: Connection | None) -> None:
        match message:
            case Start():
                self._check_start(broker, message, connection)
            case Outcome():
                self._check_outcome(broker, message)
            case Refuse(job_id=job_id, reason=reason) if job_id is not None:
                self.count(NOT_REFUSED)
                call = self.calls[job_id]
                if call.is_waiting and call.submitted_accepted == broker.epoch:
                    raise self.breaks(NOT_REFUSED, f"REFUSE {reason.value} for {self._short(job_id)}")
            case WorkerView(cancel=cancel, release=release):
                for execution_id in cancel:
                    self._check_cancel(self.executions[execution_id])
                for execution_id in release:
                    self._check_release(self.executions[execution_id])
            case _:
                pass

    def _check_start(self, broker: "BrokerActor", start: Start, connection: Connection | None) -> None:
        known = self.executions.get(start.execution_id)
        if known is not None:
            known.detached = known.detached or start.claim.detach
            return
        if connection is None:
            return  # It reaches nobody.
        self.count(WINDOW)
        if broker.age_s() < self._world.timing.rebuild_s - 1e-6:
            raise self.breaks(WINDOW, f"{self._short(start.execution_id)} after {broker.age_s():.3f} s")
        self.count(CRASHES)
        job_id = start.claim.job_id
        crashes = max(start.claim.crashes, self.crashes_of[(broker.epoch, job_id)])
        if crashes >= MAX_CRASHES:
            raise self.breaks(CRASHES, f"{self._short(job_id)} after {crashes} of them")
        identity = identity_of(start.claim)
        execution = Execution(
            execution_id=start.execution_id,
            claim=start.claim,
            parameters=start.parameters,
            prompt=bytes(start.body),
            identity=identity,
            epoch=broker.epoch,
            worker=connection.peer,  # type: ignore[arg-type]
            sent_at=self._world.now,
            detached=start.claim.detach,
            current_for=broker.epoch,
        )
        self._check_alone(execution)
        if any(call.passed_on for call in self.waiting.get(identity, ())):
            self.unjudged.add(identity)  # Its image was lost on its way, and with its worker.
        self.dispatched_of[job_id] += 1
        self.executions[start.execution_id] = execution
        self.by_identity.setdefault(identity, []).append(execution)
        self._sent_to.setdefault(execution.worker.incarnation, []).append(execution)

    def _check_alone(self, execution: Execution) -> None:
        """Nothing runs already that would answer the same calls."""
        for other in self.by_identity.get(execution.identity, ()):
            if (
                not self._runs(other)
                or other.cancelled
                or other.worker.engine is None
                or other.worker.engine.hangs
            ):
                continue
            if other.reported_to != execution.epoch:
                continue
            since = min(other.sent_at, self._world.now - CALM_S)
            if other.worker.is_calm_since(since) and self._is_calm(self._world.broker):
                self.count(ONE_AT_A_TIME)
                detail = f"{self._short(execution.execution_id)} beside {self._short(other.execution_id)}"
                raise self.breaks(ONE_AT_A_TIME, f"{detail} on {other.worker.name}")
        self.count(ONE_AT_A_TIME)

    def _check_outcome(self, broker: "BrokerActor", outcome: Outcome) -> None:
        call = self.calls.get(outcome.job_id)
        if call is None:
            raise self.breaks(
                OWN_EXECUTION, f"an outcome for {self._short(outcome.job_id)}, which is no call"
            )
        call.passed_on = True
        if outcome.failure is not None and outcome.worker_id == "broker":
            self._check_given_up(broker, call, outcome, outcome.failure.code)
        execution = self.executions.get(outcome.execution_id)
        if outcome.image is None or execution is None:
            return
        self.count(FENCE)
        rivals = [
            each
            for each in self.by_identity[execution.identity]
            if each.current_for == broker.epoch and each.sent_at > execution.sent_at
        ]
        if rivals:
            detail = f"{self._short(execution.execution_id)}, and {self._short(rivals[-1].execution_id)}"
            raise self.breaks(FENCE, f"{detail} was started since")

    def _check_given_up(self, broker: "BrokerActor", call: Call, outcome: Outcome, code: FailureCode) -> None:
        """By the broker itself: after all attempts, or when no worker came in time for another."""
        executions = self.by_identity.get(call.identity)
        if not executions or code not in RETRYABLE_FAILURES or outcome.attempts >= MAX_ATTEMPTS:
            return
        self.count(RETRIED)
        last = executions[-1]
        if last.epoch != broker.epoch or last.returned_at is None:
            return
        waited_s = self._world.now - last.returned_at
        if waited_s < 0.9 * self._world.timing.retry_wait_s:
            raise self.breaks(RETRIED, f"{self._short(call.job_id)} after {waited_s:.3f} s")

    def _told_of(self, broker: "BrokerActor", report: WorkerReport) -> None:
        """What a worker's report says of the executions that were sent to it."""
        listed = {outcome.execution_id for outcome in report.held}
        if report.running is not None and not report.running.stopping:
            listed.add(report.running.execution_id)
            self.executions[report.running.execution_id].reported_to = broker.epoch
        for execution in self._sent_to.get(report.incarnation, ()):
            if execution.execution_id not in listed and execution.current_for == broker.epoch:
                self._came_to_nothing(execution)

    def _nothing_current(self, worker_id: object) -> None:
        for executions in self._sent_to.values():
            for execution in executions:
                if execution.worker.name == worker_id:
                    self._came_to_nothing(execution)

    def _came_to_nothing(self, execution: Execution) -> None:
        if execution.current_for:
            execution.current_for, execution.returned_at = b"", self._world.now

    def _patient_waiters(self, execution: Execution) -> list[Call]:
        """Accepted calls with time left that this execution would answer, and that its broker must know of."""
        now, alike = self._world.now, self.by_identity[execution.identity]
        if alike[-1] is not execution or any(self._runs(other) for other in alike[:-1]):
            return []
        return [
            call
            for call in self.waiting.get(execution.identity, ())
            if call.accepted_at is not None
            and not call.passed_on
            and now - call.accepted_at > 1.0
            and call.deadline_at - now > 2.0 + 0.06 * (call.deadline_at - call.opened_at)
            and self._is_calm(call.frontend)
        ]

    @staticmethod
    def _runs(execution: Execution) -> bool:
        return execution.worker.alive and execution.worker.running == execution.execution_id

    def _check_cancel(self, execution: Execution) -> None:
        execution.cancelled, execution.current_for = True, b""
        slot = execution.worker.session.slot
        if not isinstance(slot, Busy) or slot.execution_id != execution.execution_id:
            return  # It has ended already.
        if not self._is_calm(execution.worker, self._world.broker):
            return
        self.count(WANTED)
        waiters = self._patient_waiters(execution)
        if waiters:
            detail = f"{self._short(execution.execution_id)} is cancelled"
            raise self.breaks(WANTED, f"{detail}, and {self._short(waiters[0].job_id)} waits")
        self._check_detached(execution)
        self._check_grace(execution)

    def _check_grace(self, execution: Execution) -> None:
        """Its last waiter was lost with its frontend; a client with an idempotency key may come back."""
        world, identity, slot = self._world, execution.identity, execution.worker.session.slot
        abandoned_at = self.last_abandoned_at.get(identity)
        if execution.claim.idempotency_hash is None or identity in self.waiting or not isinstance(slot, Busy):
            return
        if abandoned_at is None or abandoned_at < self.last_wanted_at[identity]:
            return
        is_alone = self.by_identity[identity] == [execution] and execution.epoch == world.broker.epoch
        if not is_alone or slot.deadline - execution.worker.reading() < 4.0:
            return
        self.count(GRACE)
        if world.now - abandoned_at < 0.9 * world.timing.orphan_grace_s:
            detail = f"{self._short(execution.execution_id)} is cancelled"
            raise self.breaks(GRACE, f"{detail} after {world.now - abandoned_at:.1f} s")

    def _check_detached(self, execution: Execution) -> None:
        slot = execution.worker.session.slot
        if not execution.detached or not isinstance(slot, Busy):
            return
        self.count(DETACHED)
        is_latest = self.by_identity[execution.identity][-1] is execution
        if is_latest and slot.deadline - execution.worker.reading() > 4.0:
            raise self.breaks(DETACHED, f"{self._short(execution.execution_id)} is cancelled")

    def _check_release(self, execution: Execution) -> None:
        if execution.png is None or not self._is_calm(execution.worker, self._world.broker):
            return
        self.count(WANTED)
        waiters = self._patient_waiters(execution)
        if waiters:
            detail = f"{self._short(execution.execution_id)} is dropped"
            raise self.breaks(WANTED, f"{detail}, and {self._short(waiters[0].job_id)} waits")

    # --- What a broker's end, or a frontend's, makes forgotten ---------------------------------

    def broker_died(self, broker: "BrokerActor") -> None:
        self.broker_started_at = self._world.now
        for call in self.open_calls.values():
            self._forgotten(call)

    def broker_noted(self, broker: "BrokerActor", note: Note) -> None:
        if note.event in ("worker lost", "worker left"):
            self._nothing_current(note.fields["worker_id"])
        if note.event in ("frontend lost", "frontend registered"):
            for frontend in self._world.frontends:
                if frontend.name == note.fields["frontend_id"]:
                    self._frontend_lost(broker, frontend)

    def _frontend_lost(self, broker: "BrokerActor", frontend: "FrontendActor") -> None:
        """Or back again: what was dispatched for it in the meantime, it has not heard of."""
        frontend.lost_at = self._world.now
        for call in frontend.calls.values():
            if call.is_open:
                self.last_abandoned_at[call.identity] = self._world.now
                self.unjudged.add(call.identity)
                self.crashes_of[(broker.epoch, call.job_id)] = 0
                self._forgotten(call)

    def _forgotten(self, call: Call) -> None:
        """Who has seen a dispatch may be gone, and its frontend has not."""
        known = call.frontend.desk.jobs.get(call.job_id)
        attempts = 0 if known is None else known.attempts
        unseen = self.dispatched_of[call.job_id] - attempts
        self.allowance[call.job_id] = max(self.allowance[call.job_id], unseen)

    # --- Frontends -----------------------------------------------------------------------------

    def desk_received(self, frontend: "FrontendActor", message: Message) -> None:
        if not isinstance(message, FrontendView):
            return
        for status in message.jobs:
            if status.state in (JobState.QUEUED, JobState.RUNNING, JobState.ENDED):
                call = frontend.calls.get(status.job_id)
                if call is not None and call.is_open and call.accepted_at is None:
                    call.accepted_at, call.accepted_by = self._world.now, message.epoch
                    if status.state is JobState.ENDED:
                        self.unjudged.add(call.identity)
                    self._accepted(call)

    def _accepted(self, call: Call) -> None:
        rivals = {
            other.identity: other
            for other in self.open_calls.values()
            if other.wish.key == call.wish.key
            and other.identity != call.identity
            and other.identity not in self.unjudged
            and self._is_active_beside(other, call)
        }
        self.count(ONE_A_KEY)
        if len(rivals) >= call.wish.key_limit and not call.passed_on and call.identity not in self.unjudged:
            names = ", ".join(self._short(other.job_id) for other in rivals.values())
            raise self.breaks(ONE_A_KEY, f"{call.wish.key} has {names} beside {self._short(call.job_id)}")
        for other in self.open_calls.values():
            if self._is_other_of_key(other, call):
                self.count(MISMATCH)
                if self._is_active_beside(other, call) and not call.passed_on:
                    detail = f"{self._short(call.job_id)} is taken beside {self._short(other.job_id)}"
                    raise self.breaks(MISMATCH, detail)
        self._check_kept_key(call)

    @staticmethod
    def _is_other_of_key(other: Call, call: Call) -> bool:
        hashed = call.wish.idempotency_hash
        same_key = other.wish.key == call.wish.key and other.wish.idempotency_hash == hashed
        return hashed is not None and same_key and other.identity != call.identity

    def _check_kept_key(self, call: Call) -> None:
        """An image of the same key, with other parameters, lies at a worker."""
        hashed = call.wish.idempotency_hash
        if hashed is None:
            return
        for identity, made in self.delivered.items():
            if identity[:2] == (call.wish.key, hashed) and identity != call.identity:
                was_there = made.ended_at is not None and made.ended_at < call.opened_at - 2.0
                if was_there and made.released_at is not None and self._is_still_there(made):
                    self.count(MISMATCH)
                    detail = f"{self._short(call.job_id)} is taken beside {self._short(made.execution_id)}"
                    raise self.breaks(MISMATCH, detail)

    def _is_active_beside(self, other: Call, call: Call) -> bool:
        """Whether the broker that took the call must have known the other one, and counted it."""
        if other.accepted_at is None or other.passed_on or other.frontend.frozen or call is other:
            return False
        if other.frontend.lost_at >= other.accepted_at:
            return False
        if self._world.now >= other.deadline_at - 0.06 * (other.deadline_at - other.opened_at):
            return False
        return other.accepted_by == call.accepted_by or self._is_calm(other.frontend, for_s=2 * CALM_S)

    # --- Workers -------------------------------------------------------------------------------

    def begun(self, worker: "WorkerActor", job: EngineJob) -> None:
        execution = self.executions[job.execution_id]
        self.count(BEGUN_ONCE)
        if execution.begun_at is not None:
            raise self.breaks(BEGUN_ONCE, self._short(job.execution_id))
        self.count(ONE_A_SLOT)
        if worker.running is not None:
            raise self.breaks(
                ONE_A_SLOT, f"{worker.name} begins another beside {self._short(worker.running)}"
            )
        execution.begun_at = self._world.now
        self._world.stats.executions += 1
        self.begun_of[job.job_id] += 1
        self.count(ATTEMPTS)
        most = MAX_ATTEMPTS + self.allowance[job.job_id]
        if self.begun_of[job.job_id] > most:
            detail = f"{self.begun_of[job.job_id]} of {self._short(job.job_id)}, {most} allowed"
            raise self.breaks(ATTEMPTS, detail)

    def worker_received(self, worker: "WorkerActor", message: Message) -> None:
        if not isinstance(message, WorkerView):
            return
        owed, kept = (
            self._owed.setdefault(worker.incarnation, {}),
            self._kept.setdefault(worker.incarnation, {}),
        )
        for execution_id in message.keep:
            if execution_id in owed:
                del owed[execution_id]
                execution = self.executions[execution_id]
                execution.released_at = self._world.now
                if execution.png is not None:
                    kept[execution_id] = worker.reading()
        for execution_id in message.release:
            for listed in (owed, kept):
                if listed.pop(execution_id, None) is not None:
                    self.executions[execution_id].released_at = self._world.now - 1e9

    def worker_sends(self, worker: "WorkerActor", message: Message) -> None:
        match message:
            case Outcome(execution_id=execution_id, image=image, body=body):
                execution = self.executions[execution_id]
                if execution.ended_at is None:
                    execution.ended_at = self._world.now
                    self._owed.setdefault(worker.incarnation, {})[execution_id] = worker.reading()
                    if image is not None:
                        execution.png = bytes(body)
                        self._world.stats.images += 1
                        self._held_bytes[worker.incarnation] += len(body)
            case WorkerReport():
                self._check_held(worker, message)
            case _:
                pass

    def _check_held(self, worker: "WorkerActor", report: WorkerReport) -> None:
        limits = self._world.limits
        if report.outcomes_shed or self._held_bytes[worker.incarnation] > limits.held_bytes_max / 2:
            return
        listed, reading = {outcome.execution_id: outcome for outcome in report.held}, worker.reading()
        for execution_id, finished_at in self._owed.get(worker.incarnation, {}).items():
            self.count(HELD)
            if execution_id not in listed and reading < finished_at + limits.held_age_max_s:
                raise self.breaks(HELD, f"{self._short(execution_id)} of {worker.name}")
        kept = self._kept.get(worker.incarnation, {})
        for execution_id, kept_at in kept.items():
            if reading >= kept_at + limits.kept_age_max_s or len(kept) > limits.kept_max:
                continue
            self.count(KEPT)
            if execution_id not in listed or not listed[execution_id].released:
                raise self.breaks(KEPT, f"{self._short(execution_id)} of {worker.name}")

    # --- From time to time ---------------------------------------------------------------------

    def look_around(self) -> None:
        self._check_time()
        self._check_graves()
        for worker in self._world.workers:
            self._check_unwanted(worker)
        self._check_progress()

    def _check_graves(self) -> None:
        """A dead peer is unknown to the broker after `peer_lost_s`."""
        world, broker = self._world, self._world.broker
        patience_s = world.timing.peer_lost_s / MARGIN + 2.0
        if not broker.alive or not world.graves or not self._is_calm(broker, for_s=patience_s):
            return
        state = broker.core.state
        known = {worker.incarnation for worker in state.workers} | set(state.frontends.known)
        for grave in list(world.graves):
            if world.now - max(grave.died_at, broker.born_at) > patience_s:
                self.count(NOTICED)
                if grave.incarnation in known:
                    raise self.breaks(NOTICED, f"{grave.name}, dead for {world.now - grave.died_at:.1f} s")
                if world.now - max(grave.died_at, grave.disturbed_at) > 3 * patience_s:
                    world.graves.remove(grave)

    def _check_unwanted(self, worker: "WorkerActor") -> None:
        """It goes on with something that nobody waits for, although everybody was told."""
        slot, world = worker.session.slot, self._world
        if not isinstance(slot, Busy) or worker.running != slot.execution_id:
            return
        if worker.engine is None or worker.engine.hangs:
            return
        execution = self.executions[slot.execution_id]
        if execution.identity in self.waiting:
            return
        self.count(DETACHED if execution.detached else UNWANTED)
        if self.last_abandoned_at.get(execution.identity, -1.0) >= self.last_wanted_at.get(
            execution.identity, 0.0
        ):
            self.count(GRACE)
        if execution.detached:
            return
        timing = world.timing
        wanted_at = self.last_wanted_at.get(execution.identity, execution.sent_at)
        since = max(wanted_at, self.broker_started_at, world.broker.born_at, execution.sent_at)
        patience_s = STOP_S + timing.rebuild_s
        abandoned_at = self.last_abandoned_at.get(execution.identity)
        is_keyed = execution.claim.idempotency_hash is not None
        if abandoned_at is not None or (is_keyed and world.broker.born_at > 0):
            patience_s += timing.peer_lost_s + (timing.orphan_grace_s if is_keyed else 0.0)
        if world.now - since <= patience_s / MARGIN:
            return
        if self._is_calm(worker, world.broker, for_s=patience_s) and all(
            each.is_calm_since(since) for each in world.frontends
        ):
            raise self.breaks(UNWANTED, f"{self._short(slot.execution_id)} on {worker.name}")

    def _check_progress(self) -> None:
        """An accepted job lies about while a worker has nothing to do."""
        world, broker = self._world, self._world.broker
        idle = [
            worker for worker in world.workers if worker.is_free and worker.is_calm_since(world.now - STUCK_S)
        ]
        free_since = {}
        for worker in idle:
            runs, since = self._free_since.get(worker.incarnation, (worker.runs, world.now))
            free_since[worker.incarnation] = (worker.runs, since if runs == worker.runs else world.now)
        self._free_since = free_since
        long_idle = any(world.now - since > STUCK_S for _, since in free_since.values())
        running = {worker.running for worker in world.workers}
        for call in self.open_calls.values():
            runs = any(each.execution_id in running for each in self.by_identity.get(call.identity, ()))
            calm = broker.alive and self._is_calm(broker, call.frontend, for_s=STUCK_S)
            if call.accepted_at is None or runs or not calm or not long_idle:
                call.stuck_since = None
            elif call.stuck_since is None:
                call.stuck_since = world.now
            elif world.now - max(call.stuck_since, broker.born_at) > STUCK_S:
                raise self.breaks(PROGRESS, f"{self._short(call.job_id)} lies about")
            else:
                self.count(PROGRESS)
