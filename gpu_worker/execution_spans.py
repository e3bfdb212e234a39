"""The spans of executions at this worker, made of what the session does and what the engine process tells:

execution                   from its START to its outcome
  text, step, step, … decode, png
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpu_worker.actions import RunJob
from gpu_worker.events import (
    EngineDrawn,
    EngineEvent,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineProgress,
)
from proto.messages import JobPhase, Outcome
from proto.notes import Note

if TYPE_CHECKING:
    from proto.spans import Span, Tracing


@dataclass(slots=True)
class _Execution:
    child: int
    job_id: bytes
    span: "Span"
    phase: JobPhase | None = None
    """In the engine; None before the first one, and when the pixels are there."""
    step: int = 0
    """Denoising steps finished."""
    since: float = 0.0
    """When the phase began, or its last step ended."""

    def progressed(self, phase: JobPhase, step: int, at: float) -> None:
        if (phase, step) == (self.phase, self.step):
            return  # A sign of life.
        # An engine that begins anew, or enters its last phase, has not made a step.
        if self.phase is JobPhase.TEXT or (phase is self.phase is JobPhase.STEP and step > self.step):
            self.phase_ends(at)
        self.phase, self.step, self.since = phase, step, at

    def phase_ends(self, at: float, error: str = "") -> None:
        if self.phase is None:
            return
        facts = {"flux.step": self.step + 1} if self.phase is JobPhase.STEP else {}
        self.span.child(self.phase.value, self.since, facts).end(at, error)
        self.phase = None


class ExecutionSpans:
    """Of each traced execution that has not ended."""

    def __init__(self, tracing: "Tracing") -> None:
        self._tracing = tracing
        self._executions: dict[bytes, _Execution] = {}

    def began(self, action: RunJob, now: float) -> None:
        if action.trace is None:
            return
        job = action.job
        facts: dict[str, str | int] = {
            "flux.job_id": job.job_id.hex(),
            "flux.execution_id": job.execution_id.hex(),
            "flux.attempt": job.attempts,
            "flux.width": job.parameters.width,
            "flux.height": job.parameters.height,
            "flux.steps": job.parameters.steps,
        }
        span = self._tracing.below(action.trace, "execution", now, facts)
        self._executions[job.execution_id] = _Execution(action.child, job.job_id, span)

    def told(self, event: EngineEvent) -> None:
        """Before the session hears it."""
        match event:
            case EngineProgress(phase=phase, step=step, at=at):
                if (execution := self._executions.get(event.execution_id)) is not None:
                    execution.progressed(phase, step, at)
            case EngineDrawn(at=at, text_cached=text_cached):
                if (execution := self._executions.get(event.execution_id)) is not None:
                    execution.phase_ends(at)
                    execution.span.set({} if text_cached is None else {"flux.text_cached": text_cached})
            case EngineFinished(begun_at=begun_at, at=at, png=png):
                if (execution := self._executions.get(event.execution_id)) is not None:
                    facts = {"flux.png_bytes": memoryview(png).nbytes}
                    execution.span.child("png", begun_at, facts).end(at)
            case _:
                pass

    def ended(self, outcome: Outcome, now: float) -> None:
        """Nothing if it is sent once more."""
        code = "" if outcome.failure is None else outcome.failure.code.value
        self._end(outcome.execution_id, code or "image", now, error=code)

    def settle(self, event: EngineEvent, now: float) -> None:
        """When the session has heard it: what has ended without an outcome is over too."""
        match event:
            case EngineFinished(execution_id=execution_id) | EngineFailed(execution_id=execution_id):
                self._end(execution_id, "no longer wanted", now)
            case EngineExited(child=child):
                for execution_id, execution in list(self._executions.items()):
                    if execution.child == child:
                        self._end(execution_id, "no longer wanted", now)
            case _:
                pass

    def close(self, now: float) -> None:
        for execution_id in list(self._executions):
            self._end(execution_id, "the worker has ended", now)

    def named(self, note: Note) -> Note:
        """With the trace of the job that it is about."""
        job_id = note.fields.get("job_id")
        for execution in self._executions.values():
            if execution.job_id == job_id:
                return replace(note, fields={**note.fields, "trace_id": execution.span.trace_id})
        return note

    def _end(self, execution_id: bytes, outcome: str, now: float, error: str = "") -> None:
        execution = self._executions.pop(execution_id, None)
        if execution is not None:
            execution.phase_ends(now, error)
            execution.span.set({"flux.outcome": outcome})
            execution.span.end(now, error)
