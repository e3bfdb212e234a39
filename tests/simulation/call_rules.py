"""How calls end: in time, once, and with what was asked for, or a reason."""

from typing import TYPE_CHECKING

from simulation.calls import Call
from simulation.invariants import (
    CARRIED,
    DRIFT,
    EXPLICIT,
    IN_TIME,
    LATE_S,
    MARGIN,
    MISMATCH,
    NOT_REFUSED,
    ONCE,
    OWN_CONTENT,
    OWN_EXECUTION,
    PRESENT,
    REACHABLE,
    SAME_BYTES,
)
from simulation.key_rules import is_other_of_key
from simulation.ledger import Execution, Ledger

from frontend.actions import ImageDelivered, JobEnd, JobGivenUp, JobRefused
from proto.failures import FailureCode, RefusalReason
from proto.messages import Submit

if TYPE_CHECKING:
    from simulation.frontend_actor import FrontendActor

OWN_REASONS = (
    RefusalReason.BROKER_UNREACHABLE,
    RefusalReason.FRONTEND_DRAINING,
    RefusalReason.FRONTEND_FULL,
)
"""That a frontend finds itself."""
NO_BROKER = (RefusalReason.BROKER_UNREACHABLE, RefusalReason.BROKER_DRAINING)


class CallRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def answered(self, frontend: "FrontendActor", call: Call, end: JobEnd) -> None:
        ledger = self._ledger
        ledger.count(ONCE)
        if call.left and not call.is_left_known:
            return  # Nobody hears the answer.
        if not call.is_open:
            raise ledger.breaks(ONCE, f"{ledger.short(call.job_id)} was over: {call.ending()}")
        self._check_time(call, frontend.reading())
        self._check_source(call, frontend, end)
        call.end, call.ended_at = end, ledger.world.now
        ledger.world.tell(frontend.name, f"answers {ledger.short(call.job_id)}: {call.ending()}")
        match end:
            case ImageDelivered(png=png, seed=seed):
                self._check_image(call, bytes(png), seed)
            case JobRefused(reason=reason):
                self._check_refusal(call, frontend, reason)
            case JobGivenUp(code=code):
                self._check_failure(call, frontend, code)
        is_abandoned = isinstance(end, JobRefused) and end.reason is RefusalReason.FRONTEND_DRAINING
        ledger.close(call, call.ending(), is_abandoned=is_abandoned)

    def submitted(self, call: Call, submit: Submit) -> None:
        """Its frontend carries along what it was told, to whichever broker."""
        ledger, claim = self._ledger, submit.claim
        ledger.count(CARRIED)
        if call.accepted_at is not None and not submit.accepted:
            raise ledger.breaks(CARRIED, f"{ledger.short(call.job_id)} as a new one, which was accepted")
        if claim.attempts < call.attempts or claim.crashes < call.crashes:
            detail = f"{ledger.short(call.job_id)} with {claim.attempts} attempts, {claim.crashes} crashes"
            raise ledger.breaks(CARRIED, f"{detail} of {call.attempts} and {call.crashes}")

    # --- In time -------------------------------------------------------------------------------

    def look_around(self) -> None:
        for call in self._ledger.open_calls.values():
            if not call.frontend.frozen:
                self._check_time(call, call.frontend.clock.reading_at(self._ledger.world.now))

    def _check_time(self, call: Call, reading: float) -> None:
        """A frontend that was frozen gets its time after the thaw."""
        frontend = call.frontend
        self._ledger.count(IN_TIME)
        latest = max(call.answer_by, frontend.clock.reading_at(frontend.thaw_at)) + LATE_S
        if reading > latest:
            detail = f"{self._ledger.short(call.job_id)} of {frontend.name}, {reading - latest:.3f} s late"
            raise self._ledger.breaks(IN_TIME, detail)

    def _check_source(self, call: Call, frontend: "FrontendActor", end: JobEnd) -> None:
        """An image is one from anywhere. Whether there will be none, only the broker knows that it is at."""
        ledger = self._ledger
        if isinstance(end, ImageDelivered) or frontend.listens_to is None:
            return
        if frontend.listens_to == call.at:
            ledger.count(PRESENT)
            return
        is_own = call.answer_by <= frontend.reading() or getattr(end, "reason", None) in OWN_REASONS
        if not is_own:
            detail = f"{ledger.short(call.job_id)}: {end}"
            raise ledger.breaks(PRESENT, detail)

    # --- Without an image ----------------------------------------------------------------------

    def _check_refusal(self, call: Call, frontend: "FrontendActor", reason: RefusalReason) -> None:
        ledger = self._ledger
        ledger.count(NOT_REFUSED)
        if reason is RefusalReason.IDEMPOTENCY_MISMATCH:
            ledger.count(MISMATCH)
            if not any(is_other_of_key(other, call) for other in ledger.calls.values()):
                raise ledger.breaks(MISMATCH, f"{ledger.short(call.job_id)} is refused without a reason")
        if reason in NO_BROKER:
            self._check_no_broker(call, frontend)
        leaves = reason is RefusalReason.FRONTEND_DRAINING and frontend.is_draining
        if leaves:
            ledger.abandon(call)
        elif call.accepted_at is not None:
            raise ledger.breaks(NOT_REFUSED, f"{ledger.short(call.job_id)}: {reason.value}")

    def _check_no_broker(self, call: Call, frontend: "FrontendActor") -> None:
        """Not while there is a broker that the frontend must have heard."""
        ledger = self._ledger
        ledger.count(REACHABLE)
        patience_s = 2 * ledger.world.timing.broker_silent_s / MARGIN + 2.0
        for broker in ledger.world.brokers:
            is_old = max(broker.born_at, frontend.born_at) < ledger.world.now - patience_s
            if is_old and not broker.is_draining and ledger.is_linked(broker, frontend, for_s=patience_s):
                raise ledger.breaks(REACHABLE, f"{ledger.short(call.job_id)}, and {broker.name} is there")

    def _check_failure(self, call: Call, frontend: "FrontendActor", code: FailureCode) -> None:
        ledger = self._ledger
        ledger.count(EXPLICIT)
        if code is FailureCode.CANCELLED:
            raise ledger.breaks(EXPLICIT, f"{ledger.short(call.job_id)} was cancelled, and its client waits")
        left_s = call.answer_by - frontend.reading()
        is_early = left_s > 1.0 + DRIFT * (call.deadline_at - call.opened_at)
        if code is FailureCode.DEADLINE_EXCEEDED and is_early:
            raise ledger.breaks(EXPLICIT, f"{ledger.short(call.job_id)} had {left_s:.1f} s left")

    # --- With an image -------------------------------------------------------------------------

    def _check_image(self, call: Call, png: bytes, seed: int) -> None:
        ledger = self._ledger
        ledger.world.stats.delivered += 1
        *content, execution = png.decode().split("|")
        asked, wanted = call.wish.job, call.wish.job.parameters
        expected = [asked.prompt, wanted.width, wanted.height, wanted.steps, wanted.guidance, wanted.seed]
        ledger.count(OWN_CONTENT)
        if content != [str(part) for part in expected] or seed != wanted.seed:
            raise ledger.breaks(OWN_CONTENT, f"{ledger.short(call.job_id)} wanted {expected}, got {content}")
        drawn = ledger.executions[bytes.fromhex(execution)]
        ledger.count(OWN_EXECUTION)
        if drawn.identity != call.identity:
            detail = f"{ledger.short(call.job_id)} of {call.wish.key} got {ledger.short(drawn.execution_id)}"
            raise ledger.breaks(OWN_EXECUTION, f"{detail} of {drawn.claim.key_fingerprint}")
        self._check_repeat(call, drawn)
        ledger.delivered[call.identity] = drawn

    def _check_repeat(self, call: Call, drawn: Execution) -> None:
        """While the worker of the first image lives undisturbed, and has it still, nobody gets another.

        Every broker that the call was at must know of that: any may have begun what was drawn. So must the
        one that did begin it, perhaps for an earlier call: if it does not hear the first image's worker, its
        own is kept as well, and of two that were given repeats get the one with the smaller identifier. That
        may have been at any time since; so whatever has happened to it excuses.
        """
        ledger, brokers = self._ledger, self._ledger.world.brokers
        first = ledger.delivered.get(call.identity)
        if first is None:
            return
        concerned = call.been_at | {drawn.broker_index}
        if first is drawn:
            ledger.count(SAME_BYTES)
        elif call.been_at and all(ledger.is_still_there(first, brokers[index]) for index in concerned):
            ledger.count(SAME_BYTES)
            detail = f"{ledger.short(call.job_id)} got {ledger.short(drawn.execution_id)}"
            raise ledger.breaks(SAME_BYTES, f"{detail}, and {ledger.short(first.execution_id)} was there")
