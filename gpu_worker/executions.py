"""The executions of a worker: one in its slot, few whose PNG is being made, and those that have ended.

Pure: a part of the session (`session.py`). What there is to do goes into its outbox.
"""

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import Final, assert_never

from gpu_worker.actions import CancelJob, KillEngine, RunJob
from gpu_worker.broker_side import DETAIL_CHARACTERS, BrokerSide
from gpu_worker.brokers import Brokers
from gpu_worker.encoding import Encoding, Encodings
from gpu_worker.engine_keeper import Dying, EngineKeeper, Ready
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import EngineDrawn, EngineExited, EngineFailed, EngineFinished, EngineProgress
from gpu_worker.limits import SessionLimits
from gpu_worker.outbox import Outbox
from gpu_worker.outcomes import EndedExecution, OutcomeStore
from gpu_worker.slot import Busy, Free, Slot, Stopping, slot_deadlines
from gpu_worker.tally import Tally
from proto.failures import ENGINE_DEATHS, FailureCode, RefusalReason
from proto.latest import keep_latest
from proto.messages import (
    MAX_IMAGE_BYTES,
    ImageMade,
    JobClaim,
    JobFailed,
    JobPhase,
    Refuse,
    Start,
    WorkerView,
)

REMEMBERED_EXECUTIONS: Final = 256
"""Ended ones, so that a START that comes again begins nothing."""


@dataclass(slots=True, kw_only=True)
class Executions:
    limits: SessionLimits
    engine: EngineKeeper
    brokers: Brokers
    broker_side: BrokerSide
    outbox: Outbox
    idle_since: float
    """When the last of them ended, or was dropped."""

    slot: Slot = field(default_factory=Free)
    encoding: Encodings = field(default_factory=Encodings)
    held: OutcomeStore = field(init=False)
    tally: Tally = field(default_factory=Tally)
    _refused: dict[bytes, RefusalReason] = field(default_factory=dict)
    """Executions that it has not begun, oldest first, and why."""
    _ended: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EXECUTIONS))

    def __post_init__(self) -> None:
        limits = self.limits
        self.held = OutcomeStore(
            max_bytes=limits.held_bytes_max,
            max_age_s=limits.held_age_max_s,
            kept_max=limits.kept_max,
            kept_age_max_s=limits.kept_age_max_s,
        )

    @property
    def is_idle(self) -> bool:
        return isinstance(self.slot, Free) and not self.encoding

    def deadlines(self) -> list[float]:
        """When something has to be done about them."""
        instants = [self.held.next_expiry()]
        if not isinstance(self.engine.state, Dying):
            instants += [*slot_deadlines(self.slot, self.limits), self.encoding.next_deadline()]
        return [instant for instant in instants if instant is not None]

    def watch(self, now: float) -> None:
        """Stop what takes too long, and drop what was held for too long."""
        self._watch_job(now)
        self._watch_encoding(now)
        self.held.expire(now)

    def settle(self, broker: int, view: WorkerView, now: float) -> None:
        """What this broker wants of them. What another one wants as well goes on; it will say so again."""

        def may_end(execution_id: bytes) -> bool:
            return not self.brokers.is_wanted_elsewhere(execution_id, broker, now)

        for execution_id in filter(may_end, view.cancel):
            self._cancel(execution_id, FailureCode.CANCELLED, "cancelled", now)
        for execution_id in view.resend:
            ended = self.held.get(execution_id)
            if ended is not None:
                self.outbox.send(broker, self.broker_side.outcome(broker, ended))
        # Only now: what is kept can be the end of another that is kept.
        for execution_id in filter(may_end, view.keep):
            self.held.keep(execution_id, now)
        for execution_id in filter(may_end, view.release):
            self.held.release(execution_id)
            self._drop_encoding(execution_id, now)

    # --- The beginning -------------------------------------------------------------------------------

    def start(self, broker: int, start: Start, now: float, *, draining: bool) -> None:
        """Begin it, or say why not; one that is known already begins nothing."""
        if isinstance(self.slot, Busy) and self.slot.execution_id == start.execution_id:
            self._start_again(broker, self.slot, start, now)
            return
        if self._is_known(start.execution_id):
            return
        reason = self._refused.get(start.execution_id) or self._why_not(broker, start, draining=draining)
        if reason is not None:
            self._remember_refused(start.execution_id, reason)
            refuse = Refuse(reason=reason, job_id=start.claim.job_id, execution_id=start.execution_id)
            self.outbox.send(broker, refuse)
            self.brokers.contact(broker).report_soon(now)
            return
        self.brokers.started(broker, start.execution_id)
        job = EngineJob(
            execution_id=start.execution_id,
            job_id=start.claim.job_id,
            prompt=str(start.body, "utf-8"),
            parameters=start.parameters,
            attempts=start.claim.attempts,
        )
        self.slot = Busy(
            job=job,
            claim=start.claim,
            deadline=now + start.claim.remaining_ms / 1000,
            phase=JobPhase.TEXT,
            step=0,
            phase_since=now,
        )
        self.outbox.add(RunJob(child=self.engine.children, job=job, trace=start.trace))
        self.outbox.note("job started", job_id=job.job_id, execution_id=job.execution_id)
        self.brokers.report_soon(now, known_to=(broker,))

    def _remember_refused(self, execution_id: bytes, reason: RefusalReason) -> None:
        """Its broker will count it as not begun: then it must not begin when the same START comes again."""
        self._refused[execution_id] = reason
        keep_latest(self._refused, REMEMBERED_EXECUTIONS)

    def _start_again(self, broker: int, busy: Busy, start: Start, now: float) -> None:
        """Who wants the running execution may have changed since it began; it begins nothing."""
        if self._is_stale(broker, start):
            return
        self.brokers.started(broker, start.execution_id)
        # Some waiter may have been promised the longer time.
        deadline = max(busy.deadline, now + start.claim.remaining_ms / 1000)
        # Another broker may have counted more, and have promised that it goes on alone.
        claim = dataclasses.replace(
            start.claim,
            detach=start.claim.detach or busy.claim.detach,
            attempts=max(start.claim.attempts, busy.claim.attempts),
            crashes=max(start.claim.crashes, busy.claim.crashes),
        )
        self.slot = dataclasses.replace(busy, claim=claim, deadline=deadline)

    def _is_known(self, execution_id: bytes) -> bool:
        running = not isinstance(self.slot, Free) and self.slot.execution_id == execution_id
        has_left_it = execution_id in self.encoding or execution_id in self.held
        return running or has_left_it or execution_id in self._ended

    def _is_stale(self, broker: int, start: Start) -> bool:
        """Meant for another life of this worker, or sent by another life of the broker."""
        is_mine = start.incarnation == self.broker_side.incarnation
        return not is_mine or start.epoch != self.brokers.contact(broker).epoch

    def _why_not(self, broker: int, start: Start, *, draining: bool) -> RefusalReason | None:
        if self._is_stale(broker, start):
            return RefusalReason.STALE_START
        if draining:
            return RefusalReason.WORKER_DRAINING
        if not isinstance(self.engine.state, Ready):
            return RefusalReason.WORKER_NOT_READY
        return None if isinstance(self.slot, Free) else RefusalReason.WORKER_BUSY

    def _cancel(self, execution_id: bytes, code: FailureCode, detail: str, now: float) -> None:
        encoding = self.encoding.pop(execution_id)
        if encoding is not None:  # There is nothing to stop: whoever makes the PNG is not listened to.
            failure = JobFailed(code=code, detail=detail)
            self._end_execution(encoding.claim, execution_id, failure, b"", now)
            return
        if not isinstance(self.slot, Busy) or self.slot.execution_id != execution_id:
            return
        self.outbox.note("job stops", job_id=self.slot.job.job_id, reason=code.value)
        self.slot = Stopping(self.slot, code, detail, now)
        if isinstance(self.engine.state, Ready):
            self.outbox.add(CancelJob(child=self.engine.children, execution_id=execution_id))

    def _end_execution(
        self,
        claim: JobClaim,
        execution_id: bytes,
        result: ImageMade | JobFailed,
        png: bytes | memoryview,
        now: float,
    ) -> None:
        if isinstance(result, JobFailed) and result.code in ENGINE_DEATHS:
            claim = dataclasses.replace(claim, crashes=claim.crashes + 1)
        if not isinstance(self.slot, Free) and self.slot.execution_id == execution_id:
            self.slot = Free()
        self._remember(execution_id, now)
        ended = EndedExecution(execution_id=execution_id, claim=claim, result=result, png=png)
        self.held.add(ended, now)
        outcome = result.code.value if isinstance(result, JobFailed) else "image"
        self.outbox.note("job ended", job_id=claim.job_id, execution_id=execution_id, outcome=outcome)
        told = self.brokers.wanting(execution_id, now) or list(self.brokers)
        for broker in told:
            self.outbox.send(broker, self.broker_side.outcome(broker, ended))
        self.brokers.report_soon(now, known_to=told)

    def _drop_encoding(self, execution_id: bytes, now: float) -> None:
        """Nobody will ask for this image: it ends without an outcome."""
        if self.encoding.pop(execution_id) is not None:
            self._remember(execution_id, now)

    def _remember(self, execution_id: bytes, now: float) -> None:
        """It is over: a START of it that comes again begins nothing."""
        self.idle_since = now
        self._ended.append(execution_id)

    # --- The engine ----------------------------------------------------------------------------

    def from_job(
        self, event: EngineProgress | EngineDrawn | EngineFinished | EngineFailed, now: float
    ) -> None:
        match event:
            case EngineProgress():
                self._progressed(event, now)
            case EngineDrawn():
                self._drawn(event, now)
            case EngineFinished():
                self._finished(event, now)
            case EngineFailed():
                self._job_failed(event, now)
            case _:
                assert_never(event)

    def _progressed(self, event: EngineProgress, now: float) -> None:
        if isinstance(self.slot, Busy) and self.slot.execution_id == event.execution_id:
            self.slot = dataclasses.replace(self.slot, phase=event.phase, step=event.step, phase_since=now)

    def _drawn(self, event: EngineDrawn, now: float) -> None:
        match self.slot:
            case Busy(job=job, claim=claim) if job.execution_id == event.execution_id:
                self.encoding.add(
                    Encoding(
                        job=job,
                        claim=claim,
                        inference_time_s=event.inference_time_s,
                        steps_time_s=event.steps_time_s,
                        model=self.engine.model,
                        overdue_at=now + self.limits.decode_s,
                    )
                )
                self.slot = Free()
                self.brokers.report_soon(now)
            case Stopping() as stopping if stopping.execution_id == event.execution_id:
                self._end_stopped(stopping, now)
            case _:
                return
        self.tally.drawn(text_cached=event.text_cached)

    def _finished(self, event: EngineFinished, now: float) -> None:
        self.engine.image_finished()
        encoding = self.encoding.pop(event.execution_id)
        if encoding is None:
            return  # It was cancelled or released meanwhile.
        claim = encoding.claim
        if len(event.png) > MAX_IMAGE_BYTES:
            detail = f"a PNG of {len(event.png)} bytes, at most {MAX_IMAGE_BYTES}"
            failure = JobFailed(code=FailureCode.IMAGE_TOO_LARGE, detail=detail)
            self._end_execution(claim, event.execution_id, failure, b"", now)
            return
        image = ImageMade(
            inference_time_s=encoding.inference_time_s,
            seed=encoding.job.parameters.seed,
            model=encoding.model,
            steps_time_s=encoding.steps_time_s,
        )
        self._end_execution(claim, event.execution_id, image, event.png, now)

    def _job_failed(self, event: EngineFailed, now: float) -> None:
        failure = JobFailed(code=event.code, detail=event.detail[:DETAIL_CHARACTERS])
        encoding = self.encoding.pop(event.execution_id)
        if encoding is not None:
            self._end_execution(encoding.claim, event.execution_id, failure, b"", now)
            return
        match self.slot:
            case Busy(claim=claim) as busy if busy.execution_id == event.execution_id:
                self._end_execution(claim, event.execution_id, failure, b"", now)
            case Stopping() as stopping if stopping.execution_id == event.execution_id:
                self._end_stopped(stopping, now)
            case _:
                return
        if event.code is FailureCode.OUT_OF_MEMORY:
            # It has freed what it could, and tried again: what still fills the device goes with the process.
            self.kill_engine("out of memory", None, now)

    def _end_stopped(self, stopping: Stopping, now: float) -> None:
        failure = JobFailed(code=stopping.code, detail=stopping.detail)
        self._end_execution(stopping.busy.claim, stopping.execution_id, failure, b"", now)

    def engine_gone(self, event: EngineExited, now: float) -> None:
        """They end with it."""
        self._fail_encodings(event, now)
        self._fail_job(event, now)

    def _fail_job(self, event: EngineExited, now: float) -> None:
        match self.slot:
            case Busy(claim=claim, execution_id=execution_id):
                code = event.code or FailureCode.ENGINE_CRASHED
                failure = JobFailed(code=code, detail=event.reason[:DETAIL_CHARACTERS])
                self._end_execution(claim, execution_id, failure, b"", now)
            case Stopping() as stopping:
                self._end_stopped(stopping, now)
            case Free():
                pass

    def _fail_encodings(self, event: EngineExited, now: float) -> None:
        """It died on another job, or on none: theirs were drawn."""
        detail = f"the engine process ended before the PNG was made: {event.reason}"
        failure = JobFailed(code=FailureCode.WORKER_LOST, detail=detail[:DETAIL_CHARACTERS])
        for encoding in self.encoding:
            self.encoding.pop(encoding.job.execution_id)
            self._end_execution(encoding.claim, encoding.job.execution_id, failure, b"", now)

    # --- The watchdog --------------------------------------------------------------------------

    def _watch_job(self, now: float) -> None:
        if isinstance(self.engine.state, Dying):
            return
        match self.slot:
            case Busy(deadline=deadline, execution_id=execution_id) if now >= deadline:
                self._cancel(execution_id, FailureCode.DEADLINE_EXCEEDED, "its time is over", now)
            case Busy(phase=phase) as busy if now >= busy.hung_at(self.limits):
                detail = f"no progress in phase {phase.value} for {self.limits.of(phase):g} s"
                self.slot = Stopping(busy, FailureCode.ENGINE_HUNG, detail, now)
                self.kill_engine(detail, busy.claim, now)
            case Stopping(busy=busy) as stopping if now >= stopping.hung_at(self.limits):
                self.kill_engine(f"did not stop within {now - stopping.since:.1f} s", busy.claim, now)
            case _:
                pass

    def _watch_encoding(self, now: float) -> None:
        overdue = None if isinstance(self.engine.state, Dying) else self.encoding.overdue(now)
        if overdue is None:
            return
        reason = f"no PNG of a finished image for {self.limits.decode_s:g} s"
        if isinstance(self.slot, Busy):  # What it draws beside that is not to blame.
            self.slot = Stopping(self.slot, FailureCode.WORKER_LOST, f"engine killed: {reason}", now)
        self.kill_engine(reason, overdue.claim, now)

    def kill_engine(self, reason: str, blamed: JobClaim | None, now: float) -> None:
        """`blamed`: the job that it is killed on, if it is that job's fault or the device's."""
        child = self.engine.kill(reason, None if blamed is None else blamed.parameters_digest, now)
        if child is not None:
            job_id = None if blamed is None else blamed.job_id
            self.outbox.note("engine process killed", "error", reason=reason, job_id=job_id)
            self.outbox.add(KillEngine(child=child, reason=reason))
            self.brokers.report_soon(now)

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        if not isinstance(self.slot, Free):
            assert self.slot.execution_id not in self.held, "a job both running and ended"
            assert self.slot.execution_id not in self.encoding, "a job both running and drawn"
        for encoding in self.encoding:
            assert encoding.job.execution_id not in self.held, "a PNG both being made and finished"
            assert encoding.job.execution_id not in self._ended, "a PNG made for what has ended"
        self.held.check_invariants()
