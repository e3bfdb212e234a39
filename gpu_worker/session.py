"""The worker's decisions, without sockets, processes and clock. Told by `events.py`, answering with `actions.py`.

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
from gpu_worker.outcomes import EndedExecution, OutcomeStore
from gpu_worker.slot import Busy, Down, Dying, EngineState, Free, Loading, Ready, Slot, Stopping
from proto.failures import FailureCode, RefusalReason
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
from proto.notes import Note
from proto.timing import Timing

REMEMBERED_EXECUTIONS: Final = 256
"""Ended ones, so that a START that comes again begins nothing."""
EXIT_SUPERSEDED: Final = 78
EXIT_MODEL_UNUSABLE: Final = 78
"""EX_CONFIG: starting again cannot help until somebody changes something."""
UNANSWERED_REPORTS_PER_INTERVAL: Final = 4
"""A session that waits for its first view reports this often, so that a start takes no whole interval."""
SHORTEST_INTERVAL_S: Final = 0.01
LONGEST_INTERVAL_S: Final = 60.0
DETAIL_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Seconds without progress after which the engine process counts as hung, by phase; and other bounds."""

    load_s: float = 900.0
    text_s: float = 60.0
    step_s: float = 60.0
    decode_s: float = 120.0
    cancel_s: float = 30.0
    backoff_s: float = 1.0
    """Before the second start in a row; doubled for each one more."""
    backoff_max_s: float = 60.0
    held_bytes_max: int = 64 * 1024 * 1024
    held_age_max_s: float = 120.0

    def of(self, phase: JobPhase) -> float:
        return {JobPhase.TEXT: self.text_s, JobPhase.STEP: self.step_s, JobPhase.DECODE: self.decode_s}[phase]


@dataclass(slots=True, kw_only=True)
class Session:
    worker_id: str
    incarnation: bytes
    """This life of the worker process."""
    host: str
    timing: Timing
    limits: SessionLimits
    started_at: float

    engine: EngineState = field(init=False)
    slot: Slot = Free()
    held: OutcomeStore = field(init=False)
    engine_restarts: int = 0
    drain_deadline: float | None = None
    """Set while draining."""
    _children: int = 0
    _seq: int = 0
    _epoch: bytes | None = None
    _heard_at: float | None = None
    """Of the present connection; None until its first view."""
    _connected_at: float = field(init=False)
    _interval_s: float = field(init=False)
    _next_report_at: float = field(init=False)
    _idle_since: float = field(init=False)
    _readings: tuple[Readings, float] | None = None
    _ended: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EXECUTIONS))
    _over: bool = False
    _actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Down(self.started_at, 0, "not started yet")
        self.held = OutcomeStore(max_bytes=self.limits.held_bytes_max, max_age_s=self.limits.held_age_max_s)
        self._connected_at = self._next_report_at = self._idle_since = self.started_at
        self._interval_s = self.timing.heartbeat_interval_s

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
        instants = [self._next_report_at, self._silent_at()]
        match self.engine:
            case Down(restart_at=restart_at) if self.drain_deadline is None:
                instants.append(restart_at)
            case Loading(progress_at=progress_at):
                instants.append(progress_at + self.limits.load_s)
            case _:
                pass
        if not isinstance(self.engine, Dying):
            match self.slot:
                case Busy(deadline=deadline, phase=phase, phase_since=since):
                    instants += [deadline, since + self.limits.of(phase)]
                case Stopping(since=since):
                    instants.append(since + self.limits.cancel_s)
                case Free():
                    pass
        expiry = self.held.next_expiry()
        if expiry is not None:
            instants.append(expiry)
        if self.drain_deadline is not None:
            instants += [self.drain_deadline, self._idle_since + self._farewell_s()]
        return min(instants)

    def _do_what_is_due(self, now: float) -> None:
        self._watch_engine(now)
        self._watch_job(now)
        self.held.expire(now)
        self._finish_drain(now)
        if self._over:
            return
        if now >= self._silent_at():
            self._reconnect(now)
        if now >= self._next_report_at:
            self._report(now)

    def _note(self, event: str, level: str = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))  # type: ignore[arg-type]

    def _end_session(self, code: int, reason: str) -> None:
        self._actions.append(Exit(code=code, reason=reason))
        self._over = True

    # --- The broker ----------------------------------------------------------------------------

    def _from_broker(self, message: ToWorker, now: float) -> None:
        match message:
            case WorkerView():
                self._viewed(message, now)
            case Start():
                self._start(message, now)
            case Refuse(reason=RefusalReason.SUPERSEDED, detail=detail):
                hint = "give each worker process a worker_id of its own"
                self._end_session(EXIT_SUPERSEDED, f"{detail}; {hint}")
            case Refuse(reason=reason, detail=detail):
                self._note("broker does not serve this worker", "error", reason=reason.value, detail=detail)
            case _:
                assert_never(message)

    def _viewed(self, view: WorkerView, now: float) -> None:
        if self._heard_at is None:
            self._note("broker answers", broker_id=view.broker_id, epoch=view.epoch)
            self._next_report_at = min(self._next_report_at, now + self._interval_s)
        self._heard_at = now
        interval_s = view.heartbeat_interval_ms / 1000
        self._interval_s = min(max(interval_s, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
        if view.epoch != self._epoch:
            self._epoch = view.epoch
            self._report_soon(now)
        for execution_id in view.cancel:
            self._cancel(execution_id, FailureCode.CANCELLED, "cancelled", now)
        for execution_id in view.release:
            self.held.release(execution_id)
        for execution_id in view.resend:
            ended = self.held.get(execution_id)
            if ended is not None:
                self._push(ended)

    def _silent_at(self) -> float:
        heard_at = self._connected_at if self._heard_at is None else self._heard_at
        return heard_at + self.timing.broker_silent_s

    def _reconnect(self, now: float) -> None:
        if self._heard_at is not None:
            self._note("broker silent, connecting anew", "warning", silent_s=round(now - self._heard_at, 3))
        self._heard_at, self._connected_at = None, now
        self._actions.append(ReconnectToBroker())
        self._report_soon(now)

    def _report_soon(self, now: float) -> None:
        self._next_report_at = now

    def _report(self, now: float) -> None:
        waiting = self._heard_at is None
        self._next_report_at = now + self._interval_s / (UNANSWERED_REPORTS_PER_INTERVAL if waiting else 1)
        phase, activity, percent = self._phase()
        self._send(
            WorkerReport(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                seq=self._next_seq(),
                host=self.host,
                phase=phase,
                activity=activity[:DETAIL_CHARACTERS],
                percent=percent,
                model=self.engine.model if isinstance(self.engine, Ready) else None,
                running=self._running(now),
                held=self.held.listed(),
                readings=self._aged_readings(now),
                engine_restarts=self.engine_restarts,
            )
        )

    def _phase(self) -> tuple[WorkerPhase, str, int]:
        if self.drain_deadline is not None:
            return WorkerPhase.DRAINING, "", 0
        match self.engine:
            case Down(failures=failures, reason=reason):
                phase = WorkerPhase.LOADING if failures == 0 else WorkerPhase.FAILED
                return phase, reason, 0
            case Loading(activity=activity, percent=percent):
                return WorkerPhase.LOADING, activity, percent
            case Ready():
                return WorkerPhase.READY, "", 0
            case Dying(reason=reason):
                return WorkerPhase.LOADING, reason, 0
            case _:
                assert_never(self.engine)

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

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _send(self, message: ToBrokerFromWorker) -> None:
        self._actions.append(SendToBroker(message=message))

    # --- The job -------------------------------------------------------------------------------

    def _start(self, start: Start, now: float) -> None:
        if self._is_known(start.execution_id):
            return
        reason = self._why_not(start)
        if reason is not None or not isinstance(self.engine, Ready):
            self._send(
                Refuse(
                    reason=reason or RefusalReason.WORKER_NOT_READY,
                    job_id=start.claim.job_id,
                    execution_id=start.execution_id,
                )
            )
            self._report_soon(now)
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
        self._actions.append(RunJob(child=self.engine.child, job=job))
        self._note("job started", job_id=job.job_id, execution_id=job.execution_id)
        self._report_soon(now)

    def _is_known(self, execution_id: bytes) -> bool:
        running = not isinstance(self.slot, Free) and self.slot.execution_id == execution_id
        return running or execution_id in self.held or execution_id in self._ended

    def _why_not(self, start: Start) -> RefusalReason | None:
        if start.incarnation != self.incarnation or start.epoch != self._epoch:
            return RefusalReason.STALE_START
        if self.drain_deadline is not None:
            return RefusalReason.WORKER_DRAINING
        if not isinstance(self.engine, Ready):
            return RefusalReason.WORKER_NOT_READY
        return None if isinstance(self.slot, Free) else RefusalReason.WORKER_BUSY

    def _cancel(self, execution_id: bytes, code: FailureCode, detail: str, now: float) -> None:
        if not isinstance(self.slot, Busy) or self.slot.execution_id != execution_id:
            return
        self._note("job stops", job_id=self.slot.job.job_id, reason=code.value)
        self.slot = Stopping(self.slot, code, detail, now)
        if isinstance(self.engine, Ready):
            self._actions.append(CancelJob(child=self.engine.child, execution_id=execution_id))

    def _end_execution(
        self,
        claim: JobClaim,
        execution_id: bytes,
        result: ImageMade | JobFailed,
        png: bytes | memoryview,
        now: float,
    ) -> None:
        self.slot = Free()
        self._idle_since = now
        self._ended.append(execution_id)
        ended = EndedExecution(execution_id=execution_id, claim=claim, result=result, png=png)
        self.held.add(ended, now)
        outcome = result.code.value if isinstance(result, JobFailed) else "image"
        self._note("job ended", job_id=claim.job_id, execution_id=execution_id, outcome=outcome)
        self._push(ended)
        self._report_soon(now)

    def _push(self, ended: EndedExecution) -> None:
        image = ended.result if isinstance(ended.result, ImageMade) else None
        failure = ended.result if isinstance(ended.result, JobFailed) else None
        self._send(
            Outcome(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                seq=self._next_seq(),
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
        if isinstance(self.engine, Down) or event.child != self.engine.child:
            return  # The last words of a process that is gone.
        match event:
            case EngineLoading(activity=activity, percent=percent):
                self._loading(activity, percent, now)
            case EngineReady(model=model):
                self._ready(event.child, model.name, now)
                self.engine = Ready(event.child, model)
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

    def _loading(self, activity: str, percent: int, now: float) -> None:
        if isinstance(self.engine, Loading):
            if (activity, percent) != (self.engine.activity, self.engine.percent):
                self._report_soon(now)
            self.engine = dataclasses.replace(
                self.engine, progress_at=now, activity=activity, percent=min(max(percent, 0), 100)
            )

    def _ready(self, child: int, model: str, now: float) -> None:
        self._note("engine ready", model=model, child=child)
        self._report_soon(now)

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
        self._fail_job_of_dead_engine(reason, now)
        if hopeless:
            self._end_session(EXIT_MODEL_UNUSABLE, reason)
            return
        failures = 1 if isinstance(self.engine, Ready | Down) else self.engine.failures + 1
        wait_s = 0.0
        if failures > 1:
            wait_s = min(self.limits.backoff_s * 2 ** min(failures - 2, 30), self.limits.backoff_max_s)
        if self.drain_deadline is None:
            self._note("engine process ended", "error", reason=reason, restart_in_s=wait_s)
        self.engine = Down(now + wait_s, failures, reason)
        self._report_soon(now)

    def _fail_job_of_dead_engine(self, reason: str, now: float) -> None:
        match self.slot:
            case Busy(claim=claim, execution_id=execution_id):
                failure = JobFailed(code=FailureCode.ENGINE_CRASHED, detail=reason[:DETAIL_CHARACTERS])
            case Stopping(busy=Busy(claim=claim, execution_id=execution_id), code=code, detail=detail):
                failure = JobFailed(code=code, detail=detail)
            case Free():
                return
        if failure.code in {FailureCode.ENGINE_CRASHED, FailureCode.ENGINE_HUNG}:
            claim = dataclasses.replace(claim, crashes=claim.crashes + 1)
        self._end_execution(claim, execution_id, failure, b"", now)

    def _watch_engine(self, now: float) -> None:
        match self.engine:
            case Down(restart_at=restart_at, failures=failures) if now >= restart_at:
                if self.drain_deadline is None:
                    self._start_engine(failures, now)
            case Loading(progress_at=progress_at) if now >= progress_at + self.limits.load_s:
                self._kill_engine(f"no progress in loading for {self.limits.load_s:g} s")
            case _:
                pass

    def _start_engine(self, failures: int, now: float) -> None:
        self._children += 1
        self.engine_restarts = self._children - 1
        self.engine = Loading(
            child=self._children, failures=failures, progress_at=now, activity="starting", percent=0
        )
        self._actions.append(StartEngine(child=self._children))
        self._report_soon(now)

    def _kill_engine(self, reason: str) -> None:
        if isinstance(self.engine, Loading | Ready):
            failures = self.engine.failures if isinstance(self.engine, Loading) else 0
            self._note("engine process killed", "error", reason=reason)
            self._actions.append(KillEngine(child=self.engine.child, reason=reason))
            self.engine = Dying(self.engine.child, failures, reason)

    def _watch_job(self, now: float) -> None:
        if isinstance(self.engine, Dying):
            return
        match self.slot:
            case Busy(deadline=deadline, execution_id=execution_id) if now >= deadline:
                self._cancel(execution_id, FailureCode.DEADLINE_EXCEEDED, "its time is over", now)
            case Busy(phase=phase, phase_since=since) if now >= since + self.limits.of(phase):
                detail = f"no progress in phase {phase.value} for {self.limits.of(phase):g} s"
                self.slot = Stopping(self.slot, FailureCode.ENGINE_HUNG, detail, now)
                self._kill_engine(detail)
            case Stopping(since=since) if now >= since + self.limits.cancel_s:
                self._kill_engine(f"did not stop within {self.limits.cancel_s:g} s")
            case _:
                pass

    # --- The end -------------------------------------------------------------------------------

    def _drain(self, now: float) -> None:
        if self.drain_deadline is not None:
            self._leave("told twice to end")
            return
        self.drain_deadline = now + self.timing.drain_s
        self._note("worker draining", busy=not isinstance(self.slot, Free), held=len(self.held))
        self._report_soon(now)

    def _farewell_s(self) -> float:
        """How long an idle draining worker waits for its outcomes to be released."""
        return 2 * self._interval_s

    def _finish_drain(self, now: float) -> None:
        if self.drain_deadline is None or self._over:
            return
        idle = isinstance(self.slot, Free)
        patience_over = now >= self._idle_since + self._farewell_s()
        if now >= self.drain_deadline:
            self._leave("the time to drain is over")
        elif idle and (len(self.held) == 0 or patience_over):
            self._leave("drained")

    def _leave(self, reason: str) -> None:
        self._send(Leave(incarnation=self.incarnation, seq=self._next_seq(), reason=reason))
        self._end_session(0, reason)

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. For tests, after every step."""
        if not isinstance(self.slot, Free) and not self._over:
            assert isinstance(self.engine, Ready | Dying), f"a job without an engine: {self.engine}"
            assert self.slot.execution_id not in self.held, "a job both running and ended"
        assert len(self.held) <= 1 or self.held.size_bytes <= self.limits.held_bytes_max, (
            "too many bytes held"
        )
        assert self._children >= 1 or isinstance(self.engine, Down), "an engine that was never started"
