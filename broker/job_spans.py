"""The spans of jobs at this broker: one for each state that a traced job is in for a time (`jobs.py`)."""

from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from broker.actions import TracedJobMoved
from broker.jobs import Delivering, Dispatched, Failed, Queued, Returned, State
from proto.notes import Note

if TYPE_CHECKING:
    from proto.spans import Span, Tracing


class JobSpans:
    """Of each traced job, the span of its present state; a job that failed has none."""

    def __init__(self, tracing: "Tracing") -> None:
        self._tracing = tracing
        self._present: dict[bytes, tuple[State, Span]] = {}

    @property
    def dropped(self) -> int:
        return self._tracing.dropped

    def moved(self, moved: TracedJobMoved) -> None:
        state, span = self._present.get(moved.job_id, (None, None))
        if state is not None and type(state) is type(moved.state):
            return  # A delivery that is repeated.
        if span is not None:
            self._leave(span, state, moved)
        if moved.state is not None and not isinstance(moved.state, Failed):
            self._present[moved.job_id] = moved.state, self._entered(moved, moved.state)

    def close(self, now: float) -> None:
        """The broker ends; its jobs go on."""
        for _, span in self._present.values():
            span.end(now)
        self._present.clear()

    def named(self, note: Note) -> Note:
        """With the trace of the job that it is about."""
        job_id = note.fields.get("job_id")
        present = self._present.get(job_id) if isinstance(job_id, bytes) else None
        if present is None:
            return note
        return replace(note, fields={**note.fields, "trace_id": present[1].trace_id})

    def _entered(self, moved: TracedJobMoved, state: State) -> "Span":
        facts: dict[str, str | int] = {"flux.job_id": moved.job_id.hex()}
        match state:
            case Returned(failure=failure):
                facts["flux.failure"] = failure.code.value
            case Dispatched(worker_id=worker_id, execution_id=execution_id):
                facts |= {"flux.attempt": moved.attempts, "flux.worker_id": worker_id}
                facts["flux.execution_id"] = execution_id.hex()
            case Delivering(worker_id=worker_id, execution_id=execution_id):
                facts |= {"flux.worker_id": worker_id, "flux.execution_id": execution_id.hex()}
            case Queued() | Failed():
                pass
            case _:
                assert_never(state)
        return self._tracing.below(moved.trace, type(state).__name__.lower(), moved.at, facts)

    def _leave(self, span: "Span", state: State | None, moved: TracedJobMoved) -> None:
        del self._present[moved.job_id]
        if isinstance(state, Dispatched):
            outcome, error = _outcome(moved.state)
            span.set({"flux.outcome": outcome})
            span.end(moved.at, error)
        else:
            span.end(moved.at)


def _outcome(following: State | None) -> tuple[str, str]:
    """How an attempt ended, for people, and the code if it failed."""
    match following:
        case None:
            return "no longer wanted", ""
        case Returned(failure=failure):
            return failure.code.value, failure.code.value
        case Failed(outcome=outcome) if outcome.failure is not None:
            return outcome.failure.code.value, outcome.failure.code.value
        case _:
            return "image", ""
