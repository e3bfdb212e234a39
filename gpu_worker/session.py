"""The worker's decisions, without sockets, processes and clock: `events.py` in, `actions.py` out.

Its slot is the truth about what runs (DESIGN.md). It registers by reporting, runs one job at a time in an
engine process that it replaces when it dies or hangs, and holds each outcome until the broker releases it.
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
from gpu_worker.engine_keeper import Down, Dying, EngineKeeper, Ready
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    DrainRequested,
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
from gpu_worker.slot import Busy, Free, Slot, Stopping
from proto.contact import BrokerContact
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.failures import ENGINE_DEATHS, FailureCode, RefusalReason
from proto.messages import (
    MAX_IMAGE_BYTES,
    ImageMade,
    JobClaim,
    JobFailed,
    JobPhase,
    Leave,
    Outcome,
    Readings,
    Refuse,
    RunningExecution,
    Start,
    ToBrokerFromWorker,
    ToWorker,
    WorkerPhase,
    WorkerReport,
    WorkerView,
)
from proto.notes import Note, NoteLevel
from proto.timing import Timing

REMEMBERED_EXECUTIONS: Final = 256
"""Ended ones, so that a START that comes again begins nothing."""
DETAIL_CHARACTERS: Final = 500


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
    held: OutcomeStore = field(init=False)
    contact: BrokerContact = field(init=False)
    drain_deadline: float | None = None
    """Set while draining."""
    _idle_since: float = field(init=False)
    _readings: tuple[Readings, float] | None = None
    _ended: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EXECUTIONS))
    _over: bool = False
    _actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = self.limits
        self.engine = EngineKeeper(limits=limits, started_at=self.started_at)
        self.held = OutcomeStore(max_bytes=limits.held_bytes_max, max_age_s=limits.held_age_max_s)
        self.contact = BrokerContact(timing=self.timing, started_at=self.started_at)
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
                self._readings = (readings, now)
            case DrainRequested():
                self._drain(now)
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
        instants = [self.contact.next_report_at, self.contact.silent_at]
        if self.drain_deadline is not None:
            instants.append(self.drain_deadline)
            if isinstance(self.slot, Free):
                instants.append(self._idle_since + self._farewell_s())
        elif (engine_deadline := self.engine.next_deadline()) is not None:
            instants.append(engine_deadline)
        if (expiry := self.held.next_expiry()) is not None:
            instants.append(expiry)
        return min(instants + self._job_deadlines())

    def _job_deadlines(self) -> list[float]:
        if isinstance(self.engine.state, Dying):
            return []
        match self.slot:
            case Busy(deadline=deadline, phase=phase, phase_since=since):
                return [deadline, since + self.limits.of(phase)]
            case Stopping() as stopping:
                return [self._stopped_by(stopping)]
            case Free():
                return []
            case _:
                assert_never(self.slot)

    def _do_what_is_due(self, now: float) -> None:
        if self._over:
            return
        self._watch_engine(now)
        self._watch_job(now)
        self.held.expire(now)
        if self._finish_drain(now):
            return
        if now >= self.contact.silent_at:
            self._reconnect(now)
        if now >= self.contact.next_report_at:
            self._report(now)

    def _note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))

    def _end_session(self, code: int, reason: str) -> None:
        self._actions.append(Exit(code=code, reason=reason))
        self._over = True

    # --- The broker ----------------------------------------------------------------------------

    def _from_broker(self, message: ToWorker, now: float) -> None:
        self.contact.heard(now)
        match message:
            case WorkerView():
                self._viewed(message, now)
            case Start():
                self._start(message, now)
            case Refuse(reason=RefusalReason.SUPERSEDED, detail=detail):
                hint = "give each worker process a worker_id of its own"
                self._end_session(EXIT_BAD_CONFIGURATION, f"{detail}; {hint}")
            case Refuse(reason=reason, detail=detail):
                self._note("broker does not serve this worker", "error", reason=reason.value, detail=detail)
            case _:
                assert_never(message)

    def _viewed(self, view: WorkerView, now: float) -> None:
        if self.contact.viewed(view, now):
            self._note("broker answers", broker_id=view.broker_id, epoch=view.epoch)
        for execution_id in view.cancel:
            self._cancel(execution_id, FailureCode.CANCELLED, "cancelled", now)
        for execution_id in view.release:
            self.held.release(execution_id)
        for execution_id in view.resend:
            ended = self.held.get(execution_id)
            if ended is not None:
                self._push(ended)

    def _reconnect(self, now: float) -> None:
        if self.contact.reconnected(now):
            silent_s = round(now - self.contact.last_heard_at, 3)
            self._note("broker silent, connecting anew", "warning", silent_s=silent_s)
        self._actions.append(ReconnectToBroker())

    def _report(self, now: float) -> None:
        self.contact.reported(now)
        engine = self.engine.state
        phase, activity, percent = self.engine.report()
        if self.drain_deadline is not None:
            phase = WorkerPhase.DRAINING
        self._send(
            WorkerReport(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                seq=self.contact.next_seq(),
                host=self.host,
                age_ms=max(0, round((now - self.started_at) * 1000)),
                phase=phase,
                activity=activity[:DETAIL_CHARACTERS],
                percent=percent,
                model=engine.model if isinstance(engine, Ready) else None,
                running=self._running(now),
                held=self.held.listed(),
                readings=self._aged_readings(now),
                engine_restarts=self.engine.restarts,
            )
        )

    def _running(self, now: float) -> RunningExecution | None:
        match self.slot:
            case Free():
                return None
            case Busy() as busy:
                pass
            case Stopping(busy=busy):
                pass
        remaining_ms = max(0, round((busy.deadline - now) * 1000))
        return RunningExecution(
            execution_id=busy.execution_id,
            claim=dataclasses.replace(busy.claim, remaining_ms=remaining_ms),
            phase=busy.phase,
            step=busy.step,
            steps=busy.job.parameters.steps,
        )

    def _aged_readings(self, now: float) -> Readings | None:
        if self._readings is None:
            return None
        readings, taken_at = self._readings
        return dataclasses.replace(readings, age_ms=max(0, round((now - taken_at) * 1000)))

    def _send(self, message: ToBrokerFromWorker) -> None:
        self._actions.append(SendToBroker(message=message))

    # --- The job -------------------------------------------------------------------------------

    def _start(self, start: Start, now: float) -> None:
        if self._is_known(start.execution_id):
            return
        reason = self._why_not(start)
        if reason is not None:
            refuse = Refuse(reason=reason, job_id=start.claim.job_id, execution_id=start.execution_id)
            self._send(refuse)
            self.contact.report_soon(now)
            return
        job = EngineJob(
            execution_id=start.execution_id,
            job_id=start.claim.job_id,
            prompt=str(start.body, "utf-8"),
            parameters=start.parameters,
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
        self.contact.report_soon(now)

    def _is_known(self, execution_id: bytes) -> bool:
        running = not isinstance(self.slot, Free) and self.slot.execution_id == execution_id
        return running or execution_id in self.held or execution_id in self._ended

    def _why_not(self, start: Start) -> RefusalReason | None:
        if start.incarnation != self.incarnation or start.epoch != self.contact.epoch:
            return RefusalReason.STALE_START
        if self.drain_deadline is not None:
            return RefusalReason.WORKER_DRAINING
        if not isinstance(self.engine.state, Ready):
            return RefusalReason.WORKER_NOT_READY
        return None if isinstance(self.slot, Free) else RefusalReason.WORKER_BUSY

    def _cancel(self, execution_id: bytes, code: FailureCode, detail: str, now: float) -> None:
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
        self.slot = Free()
        self._idle_since = now
        self._ended.append(execution_id)
        ended = EndedExecution(execution_id=execution_id, claim=claim, result=result, png=png)
        self.held.add(ended, now)
        outcome = result.code.value if isinstance(result, JobFailed) else "image"
        self._note("job ended", job_id=claim.job_id, execution_id=execution_id, outcome=outcome)
        self._push(ended)
        self.contact.report_soon(now)

    def _push(self, ended: EndedExecution) -> None:
        image = ended.result if isinstance(ended.result, ImageMade) else None
        failure = ended.result if isinstance(ended.result, JobFailed) else None
        self._send(
            Outcome(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                seq=self.contact.next_seq(),
                execution_id=ended.execution_id,
                job_id=ended.claim.job_id,
                attempts=ended.claim.attempts,
                crashes=ended.claim.crashes,
                image=image,
                failure=failure,
                body=ended.png,
            )
        )

    # --- The engine ----------------------------------------------------------------------------

    def _from_engine(self, event: EngineEvent, now: float) -> None:
        if not self.engine.is_present(event.child):
            return  # The last words of a process that is gone.
        match event:
            case EngineLoading(activity=activity, percent=percent):
                if self.engine.loading(activity, percent, now):
                    self.contact.report_soon(now)
            case EngineReady(model=model):
                if self.engine.ready(model):
                    self._note("engine ready", model=model.name, child=event.child)
                    self.contact.report_soon(now)
            case EngineProgress():
                self._progressed(event, now)
            case EngineFinished():
                self._finished(event, now)
            case EngineFailed(execution_id=execution_id, code=code, detail=detail):
                self._job_failed(execution_id, JobFailed(code=code, detail=detail[:DETAIL_CHARACTERS]), now)
            case EngineExited(reason=reason, hopeless=hopeless):
                self._engine_gone(reason, hopeless, now)
            case _:
                assert_never(event)

    def _progressed(self, event: EngineProgress, now: float) -> None:
        if isinstance(self.slot, Busy) and self.slot.execution_id == event.execution_id:
            self.slot = dataclasses.replace(self.slot, phase=event.phase, step=event.step, phase_since=now)

    def _finished(self, event: EngineFinished, now: float) -> None:
        if isinstance(self.slot, Free) or self.slot.execution_id != event.execution_id:
            return
        if isinstance(self.slot, Stopping):
            failure = JobFailed(code=self.slot.code, detail=self.slot.detail)
            self._end_execution(self.slot.busy.claim, event.execution_id, failure, b"", now)
        elif len(event.png) > MAX_IMAGE_BYTES:
            detail = f"a PNG of {len(event.png)} bytes, at most {MAX_IMAGE_BYTES}"
            failure = JobFailed(code=FailureCode.IMAGE_TOO_LARGE, detail=detail)
            self._end_execution(self.slot.claim, event.execution_id, failure, b"", now)
        else:
            image = ImageMade(inference_time_s=event.inference_time_s, seed=self.slot.job.parameters.seed)
            self._end_execution(self.slot.claim, event.execution_id, image, event.png, now)

    def _job_failed(self, execution_id: bytes, failure: JobFailed, now: float) -> None:
        match self.slot:
            case Busy(claim=claim) if self.slot.execution_id == execution_id:
                self._end_execution(claim, execution_id, failure, b"", now)
            case Stopping(busy=busy, code=code, detail=detail) if self.slot.execution_id == execution_id:
                failure = JobFailed(code=code, detail=detail)
                self._end_execution(busy.claim, execution_id, failure, b"", now)
            case _:
                pass

    def _engine_gone(self, reason: str, hopeless: bool, now: float) -> None:
        job_id = self._job_id()
        self._fail_job_of_dead_engine(reason, now)
        if hopeless:
            self._leave(reason, EXIT_BAD_CONFIGURATION)
            return
        pause_s = self.engine.gone(reason, now)
        if self.drain_deadline is None:
            self._note("engine process ended", "error", reason=reason, restart_in_s=pause_s, job_id=job_id)
        self.contact.report_soon(now)

    def _job_id(self) -> bytes | None:
        """Of the job that is in the engine."""
        match self.slot:
            case Free():
                return None
            case Busy(job=job) | Stopping(busy=Busy(job=job)):
                return job.job_id
            case _:
                assert_never(self.slot)

    def _fail_job_of_dead_engine(self, reason: str, now: float) -> None:
        match self.slot:
            case Busy(claim=claim, execution_id=execution_id):
                failure = JobFailed(code=FailureCode.ENGINE_CRASHED, detail=reason[:DETAIL_CHARACTERS])
            case Stopping(busy=Busy(claim=claim, execution_id=execution_id), code=code, detail=detail):
                failure = JobFailed(code=code, detail=detail)
            case Free():
                return
        self._end_execution(claim, execution_id, failure, b"", now)

    def _watch_engine(self, now: float) -> None:
        if self.drain_deadline is not None:
            return
        child = self.engine.start_if_due(now)
        if child is not None:
            self._actions.append(StartEngine(child=child))
            self.contact.report_soon(now)
        elif self.engine.hangs(now):
            self._kill_engine(f"no progress in loading for {self.limits.load_s:g} s")

    def _kill_engine(self, reason: str) -> None:
        child = self.engine.kill(reason)
        if child is not None:
            self._note("engine process killed", "error", reason=reason, job_id=self._job_id())
            self._actions.append(KillEngine(child=child, reason=reason))

    def _watch_job(self, now: float) -> None:
        if isinstance(self.engine.state, Dying):
            return
        match self.slot:
            case Busy(deadline=deadline, execution_id=execution_id) if now >= deadline:
                self._cancel(execution_id, FailureCode.DEADLINE_EXCEEDED, "its time is over", now)
            case Busy(phase=phase, phase_since=since) if now >= since + self.limits.of(phase):
                detail = f"no progress in phase {phase.value} for {self.limits.of(phase):g} s"
                self.slot = Stopping(self.slot, FailureCode.ENGINE_HUNG, detail, now)
                self._kill_engine(detail)
            case Stopping() as stopping if now >= self._stopped_by(stopping):
                self._kill_engine(f"did not stop within {now - stopping.since:.1f} s")
            case _:
                pass

    def _stopped_by(self, stopping: Stopping) -> float:
        """A step that was allowed to take its time still is: a cancel must not cost a healthy engine."""
        phase_ends_at = stopping.busy.phase_since + self.limits.of(stopping.busy.phase)
        return max(stopping.since + self.limits.cancel_s, phase_ends_at)

    # --- The end -------------------------------------------------------------------------------

    def _drain(self, now: float) -> None:
        if self.drain_deadline is not None:
            self._leave("told twice to end")
            return
        self.drain_deadline = now + self.timing.drain_s
        self._note("worker draining", busy=not isinstance(self.slot, Free), held=len(self.held))
        self.contact.report_soon(now)

    def _farewell_s(self) -> float:
        """How long an idle draining worker waits for its outcomes to be released."""
        return 2 * self.contact.interval_s

    def _finish_drain(self, now: float) -> bool:
        """Leave as soon as nothing is left to do; True if the session is over."""
        if self.drain_deadline is None:
            return False
        idle = isinstance(self.slot, Free)
        patience_over = now >= self._idle_since + self._farewell_s()
        if now >= self.drain_deadline:
            self._leave("the time to drain is over")
        elif idle and (len(self.held) == 0 or patience_over):
            self._leave("drained")
        return self._over

    def _leave(self, reason: str, code: int = 0) -> None:
        words = reason[:DETAIL_CHARACTERS]
        self._send(Leave(incarnation=self.incarnation, seq=self.contact.next_seq(), reason=words))
        self._end_session(code, reason)

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. For tests, after every step."""
        if not isinstance(self.slot, Free) and not self._over:
            assert isinstance(self.engine.state, Ready | Dying), (
                f"a job without an engine: {self.engine.state}"
            )
            assert self.slot.execution_id not in self.held, "a job both running and ended"
        assert len(self.held) <= 1 or self.held.size_bytes <= self.limits.held_bytes_max, (
            "too many bytes held"
        )
        assert self.engine.children or isinstance(self.engine.state, Down), "an engine that was never started"
