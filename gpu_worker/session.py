"""The worker's decisions, without sockets, processes and clock: `events.py` in, `actions.py` out.

Its slot is the truth about what runs (DESIGN.md). It registers by reporting, runs one job at a time in an
engine process that it replaces when it dies or hangs, and holds each outcome until the broker releases it;
some images longer, for repeats of their call. The slot ends with the pixels: the PNG is made beside the next
job.
"""

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import Final, assert_never

from gpu_worker.actions import (
    Action,
    CancelJob,
    Exit,
    KillEngine,
    ReconnectToBroker,
    RunJob,
    SendToBroker,
    StartEngine,
)
from gpu_worker.broker_side import DETAIL_CHARACTERS, BrokerSide
from gpu_worker.drain import Drain
from gpu_worker.encoding import Encoding, Encodings
from gpu_worker.engine_keeper import Dying, EngineKeeper, Ready
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    DrainRequested,
    EngineDrawn,
    EngineEvent,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
    Event,
    FromBroker,
    ReadingsTaken,
    TimerFired,
)
from gpu_worker.limits import SessionLimits
from gpu_worker.outcomes import EndedExecution, OutcomeStore
from gpu_worker.slot import Busy, Free, Slot, Stopping, in_engine, slot_deadlines
from gpu_worker.tally import Tally
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.failures import ENGINE_DEATHS, FailureCode, RefusalReason
from proto.messages import (
    MAX_IMAGE_BYTES,
    ImageMade,
    JobClaim,
    JobFailed,
    JobPhase,
    Refuse,
    Start,
    ToBrokerFromWorker,
    ToWorker,
    WorkerView,
)
from proto.notes import Note, NoteLevel
from proto.timing import Timing

REMEMBERED_EXECUTIONS: Final = 256
"""Ended ones, so that a START that comes again begins nothing."""
EXIT_ENGINE_FAILED: Final = 1
"""No engine became ready, again and again. A fresh worker, or a person, may do better."""


@dataclass(slots=True, kw_only=True)
class Session:
    worker_id: str
    incarnation: bytes
    """This life of the worker process."""
    host: str
    timing: Timing
    limits: SessionLimits
    started_at: float

    engine: EngineKeeper = field(init=False)
    slot: Slot = field(default_factory=Free)
    encoding: Encodings = field(default_factory=Encodings)
    held: OutcomeStore = field(init=False)
    broker: BrokerSide = field(init=False)
    drain: Drain | None = None
    """Set while draining."""
    tally: Tally = field(default_factory=Tally)
    _idle_since: float = field(init=False)
    _ended: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EXECUTIONS))
    _over: bool = False
    _actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = self.limits
        self.engine = EngineKeeper(limits=limits, started_at=self.started_at)
        self.held = OutcomeStore(
            max_bytes=limits.held_bytes_max,
            max_age_s=limits.held_age_max_s,
            kept_max=limits.kept_max,
            kept_age_max_s=limits.kept_age_max_s,
        )
        self.broker = BrokerSide(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            host=self.host,
            timing=self.timing,
            started_at=self.started_at,
        )
        self._idle_since = self.started_at

    # --- In and out ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at the instant `now` (seconds of a monotonic clock) and say what is to be done."""
        if self._over:
            return []
        match event:
            case FromBroker(message=message):
                self._from_broker(message, now)
            case ReadingsTaken(readings=readings):
                self.broker.take_readings(readings, now)
            case DrainRequested():
                self._begin_drain(now)
            case TimerFired():
                pass  # Whatever is due is done below, after every event.
            case _:
                self._from_engine(event, now)
        self._do_what_is_due(now)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When to send `TimerFired`, on the clock of `handle`; None once the session is over."""
        if self._over:
            return None
        instants = [self.broker.contact.next_report_at, self.broker.contact.silent_at]
        if self.drain is not None:
            instants.append(self._leaves_at(self.drain))
        elif (engine_deadline := self.engine.next_deadline()) is not None:
            instants.append(engine_deadline)
        if (expiry := self.held.next_expiry()) is not None:
            instants.append(expiry)
        if not isinstance(self.engine.state, Dying):
            instants += slot_deadlines(self.slot, self.limits)
            if (overdue_at := self.encoding.next_deadline()) is not None:
                instants.append(overdue_at)
        return min(instants)

    def _do_what_is_due(self, now: float) -> None:
        if self._over:
            return
        self._watch_engine(now)
        self._watch_job(now)
        self._watch_encoding(now)
        self.held.expire(now)
        if self.drain is not None and now >= self._leaves_at(self.drain):
            self._leave("the time to drain is over" if now >= self.drain.deadline else "drained")
            return
        if now >= self.broker.contact.silent_at:
            self._reconnect(now)
        if now >= self.broker.contact.next_report_at:
            self._report(now)

    def _note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))

    def _end_session(self, code: int, reason: str) -> None:
        self._actions.append(Exit(code=code, reason=reason))
        self._over = True

    # --- The broker ----------------------------------------------------------------------------

    def _from_broker(self, message: ToWorker, now: float) -> None:
        if not isinstance(message, Refuse):
            self.broker.contact.heard(now)  # A broker that does not serve is as good as none.
        match message:
            case WorkerView():
                self._viewed(message, now)
            case Start():
                self._start(message, now)
            case Refuse(reason=RefusalReason.SUPERSEDED, detail=detail):
                hint = "give each worker process a worker_id of its own"
                self._end_session(EXIT_BAD_CONFIGURATION, f"{detail}; {hint}")
            case Refuse(reason=reason, detail=detail):
                if self.broker.contact.refused(reason):
                    self._note(
                        "broker does not serve this worker", "error", reason=reason.value, detail=detail
                    )
            case _:
                assert_never(message)

    def _viewed(self, view: WorkerView, now: float) -> None:
        if self.broker.contact.viewed(view, now):
            self._note("broker answers", broker_id=view.broker_id, epoch=view.epoch)
        for execution_id in view.cancel:
            self._cancel(execution_id, FailureCode.CANCELLED, "cancelled", now)
        for execution_id in view.resend:
            ended = self.held.get(execution_id)
            if ended is not None:
                self._send(self.broker.outcome(ended))
        # Only now: what is kept can be the end of another that is kept.
        for execution_id in view.keep:
            self.held.keep(execution_id, now)
        for execution_id in view.release:
            self.held.release(execution_id)
            self._drop_encoding(execution_id, now)

    def _reconnect(self, now: float) -> None:
        if self.broker.contact.reconnected(now):
            silent_s = round(now - self.broker.contact.last_heard_at, 3)
            self._note("broker silent, connecting anew", "warning", silent_s=silent_s)
        self._actions.append(ReconnectToBroker())

    def _report(self, now: float) -> None:
        self.broker.contact.reported(now)
        self._send(
            self.broker.report(
                self.engine,
                self.slot,
                self.encoding,
                self.held,
                self.tally,
                draining=self.drain is not None,
                now=now,
            )
        )

    def _send(self, message: ToBrokerFromWorker) -> None:
        self._actions.append(SendToBroker(message=message))

    # --- The job -------------------------------------------------------------------------------

    def _start(self, start: Start, now: float) -> None:
        if isinstance(self.slot, Busy) and self.slot.execution_id == start.execution_id:
            self._start_again(self.slot, start, now)
            return
        if self._is_known(start.execution_id):
            return
        reason = self._why_not(start)
        if reason is not None:
            refuse = Refuse(reason=reason, job_id=start.claim.job_id, execution_id=start.execution_id)
            self._send(refuse)
            self.broker.contact.report_soon(now)
            return
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
        self._actions.append(RunJob(child=self.engine.children, job=job))
        self._note("job started", job_id=job.job_id, execution_id=job.execution_id)
        self.broker.contact.report_soon(now)

    def _start_again(self, busy: Busy, start: Start, now: float) -> None:
        """Who wants the running execution may have changed since it began; it begins nothing."""
        if self._is_stale(start):
            return
        # Some waiter may have been promised the longer time.
        deadline = max(busy.deadline, now + start.claim.remaining_ms / 1000)
        self.slot = dataclasses.replace(busy, claim=start.claim, deadline=deadline)

    def _is_known(self, execution_id: bytes) -> bool:
        running = not isinstance(self.slot, Free) and self.slot.execution_id == execution_id
        has_left_it = execution_id in self.encoding or execution_id in self.held
        return running or has_left_it or execution_id in self._ended

    def _is_stale(self, start: Start) -> bool:
        """Meant for another life of this worker, or sent by another life of the broker."""
        return start.incarnation != self.incarnation or start.epoch != self.broker.contact.epoch

    def _why_not(self, start: Start) -> RefusalReason | None:
        if self._is_stale(start):
            return RefusalReason.STALE_START
        if self.drain is not None:
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
        self._note("job stops", job_id=self.slot.job.job_id, reason=code.value)
        self.slot = Stopping(self.slot, code, detail, now)
        if isinstance(self.engine.state, Ready):
            self._actions.append(CancelJob(child=self.engine.children, execution_id=execution_id))

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
        self._note("job ended", job_id=claim.job_id, execution_id=execution_id, outcome=outcome)
        self._send(self.broker.outcome(ended))
        self.broker.contact.report_soon(now)

    def _drop_encoding(self, execution_id: bytes, now: float) -> None:
        """Nobody will ask for this image: it ends without an outcome."""
        if self.encoding.pop(execution_id) is not None:
            self._remember(execution_id, now)

    def _remember(self, execution_id: bytes, now: float) -> None:
        """It is over: a START of it that comes again begins nothing."""
        self._idle_since = now
        self._ended.append(execution_id)

    # --- The engine ----------------------------------------------------------------------------

    def _from_engine(self, event: EngineEvent, now: float) -> None:
        if not self.engine.is_present(event.child):
            return  # The last words of a process that is gone.
        match event:
            case EngineLoading(activity=activity, percent=percent):
                if self.engine.loading(activity, percent, now):
                    self.broker.contact.report_soon(now)
            case EngineReady(model=model):
                if self.engine.ready(model):
                    self._note("engine ready", model=model.name, child=event.child)
                    self.broker.contact.report_soon(now)
            case EngineExited():
                self._engine_gone(event, now)
            case _:
                self._from_job(event, now)

    def _from_job(
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
                        model=self.engine.model,
                        overdue_at=now + self.limits.decode_s,
                    )
                )
                self.slot = Free()
                self.broker.contact.report_soon(now)
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
            self._kill_engine(f"out of memory: {failure.detail}", None)

    def _end_stopped(self, stopping: Stopping, now: float) -> None:
        failure = JobFailed(code=stopping.code, detail=stopping.detail)
        self._end_execution(stopping.busy.claim, stopping.execution_id, failure, b"", now)

    def _engine_gone(self, event: EngineExited, now: float) -> None:
        busy, reason = in_engine(self.slot), event.reason
        self._fail_encodings_of_dead_engine(event, now)
        self._fail_job_of_dead_engine(event, now)
        if event.hopeless:
            self._leave(reason, EXIT_BAD_CONFIGURATION)
            return
        pause_s = self.engine.gone(reason, None if busy is None else busy.claim.parameters_digest, now)
        self.broker.contact.report_soon(now)
        if self.drain is not None:
            return
        if self.engine.is_given_up:
            tries = self.engine.never_ready
            self._leave(
                f"{tries} engine processes in a row did not become ready; the last one: {reason}",
                EXIT_ENGINE_FAILED,
            )
            return
        job_id = None if busy is None else busy.job.job_id
        self._note("engine process ended", "error", reason=reason, restart_in_s=pause_s, job_id=job_id)
        if self.engine.is_quarantined:
            self._note("worker quarantined", "error", duration_s=pause_s)

    def _fail_job_of_dead_engine(self, event: EngineExited, now: float) -> None:
        match self.slot:
            case Busy(claim=claim, execution_id=execution_id):
                code = event.code or FailureCode.ENGINE_CRASHED
                failure = JobFailed(code=code, detail=event.reason[:DETAIL_CHARACTERS])
                self._end_execution(claim, execution_id, failure, b"", now)
            case Stopping() as stopping:
                self._end_stopped(stopping, now)
            case Free():
                pass

    def _fail_encodings_of_dead_engine(self, event: EngineExited, now: float) -> None:
        """It died on another job, or on none: theirs were drawn."""
        detail = f"the engine process ended before the PNG was made: {event.reason}"
        failure = JobFailed(code=FailureCode.WORKER_LOST, detail=detail[:DETAIL_CHARACTERS])
        for encoding in self.encoding:
            self.encoding.pop(encoding.job.execution_id)
            self._end_execution(encoding.claim, encoding.job.execution_id, failure, b"", now)

    def _watch_engine(self, now: float) -> None:
        if self.drain is not None:
            return
        child = self.engine.start_if_due(now)
        if child is not None:
            self._actions.append(StartEngine(child=child))
            self.broker.contact.report_soon(now)
        elif self.engine.hangs(now):
            self._kill_engine(f"no progress in loading for {self.limits.load_s:g} s", None)

    def _kill_engine(self, reason: str, blamed: JobClaim | None) -> None:
        """`blamed`: the job that it is killed on, if it is that job's fault or the device's."""
        child = self.engine.kill(reason, None if blamed is None else blamed.parameters_digest)
        if child is not None:
            job_id = None if blamed is None else blamed.job_id
            self._note("engine process killed", "error", reason=reason, job_id=job_id)
            self._actions.append(KillEngine(child=child, reason=reason))

    def _watch_job(self, now: float) -> None:
        if isinstance(self.engine.state, Dying):
            return
        match self.slot:
            case Busy(deadline=deadline, execution_id=execution_id) if now >= deadline:
                self._cancel(execution_id, FailureCode.DEADLINE_EXCEEDED, "its time is over", now)
            case Busy(phase=phase) as busy if now >= busy.hung_at(self.limits):
                detail = f"no progress in phase {phase.value} for {self.limits.of(phase):g} s"
                self.slot = Stopping(busy, FailureCode.ENGINE_HUNG, detail, now)
                self._kill_engine(detail, busy.claim)
            case Stopping(busy=busy) as stopping if now >= stopping.hung_at(self.limits):
                self._kill_engine(f"did not stop within {now - stopping.since:.1f} s", busy.claim)
            case _:
                pass

    def _watch_encoding(self, now: float) -> None:
        overdue = None if isinstance(self.engine.state, Dying) else self.encoding.overdue(now)
        if overdue is None:
            return
        reason = f"no PNG of a finished image for {self.limits.decode_s:g} s"
        if isinstance(self.slot, Busy):  # What it draws beside that is not to blame.
            self.slot = Stopping(self.slot, FailureCode.WORKER_LOST, f"engine killed: {reason}", now)
        self._kill_engine(reason, overdue.claim)

    # --- The end -------------------------------------------------------------------------------

    def _begin_drain(self, now: float) -> None:
        if self.drain is not None:
            self._leave("told twice to end")
            return
        self.drain = Drain(deadline=now + self.timing.drain_s)
        self._note("worker draining", busy=not self._is_idle, unreleased=self.held.unreleased)
        self.broker.contact.report_soon(now)

    @property
    def _is_idle(self) -> bool:
        return isinstance(self.slot, Free) and not self.encoding

    def _leaves_at(self, drain: Drain) -> float:
        idle_since = self._idle_since if self._is_idle else None
        return drain.leaves_at(
            idle_since, self.held.unreleased, patience_s=2 * self.broker.contact.interval_s
        )

    def _leave(self, reason: str, code: int = 0) -> None:
        self._send(self.broker.leave(reason))
        self._end_session(code, reason)

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. For tests, after every step."""
        if not isinstance(self.slot, Free) and not self._over:
            assert isinstance(self.engine.state, Ready | Dying), (
                f"a job without an engine: {self.engine.state}"
            )
            assert self.slot.execution_id not in self.held, "a job both running and ended"
            assert self.slot.execution_id not in self.encoding, "a job both running and drawn"
        if self.encoding and not self._over:
            assert isinstance(self.engine.state, Ready | Dying), "an image without an engine to finish it"
        for encoding in self.encoding:
            assert encoding.job.execution_id not in self.held, "a PNG both being made and finished"
            assert encoding.job.execution_id not in self._ended, "a PNG made for what has ended"
        if self.engine.is_given_up and self.drain is None:
            assert self._over, "it goes on without hope of an engine"
        self.held.check_invariants()
        self.engine.check_invariants()
