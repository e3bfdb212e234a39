"""The spans that a worker makes of what its engine process tells."""

import pytest
from samples.recorded_spans import CONTEXT, RecordedTracing, facts_of, has_failed, lasted_s
from samples.wire import PARAMETERS, failure_outcome, identifier, image_outcome

from gpu_worker.actions import RunJob
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import EngineDrawn, EngineExited, EngineFailed, EngineFinished, EngineProgress
from gpu_worker.execution_spans import ExecutionSpans
from proto.failures import FailureCode
from proto.messages import JobFailed, JobPhase
from proto.notes import Note

EXECUTION = identifier("execution")
JOB = EngineJob(execution_id=EXECUTION, job_id=identifier("job"), prompt="a cat", parameters=PARAMETERS)


class TracedExecution:
    def __init__(self):
        self.recorded = RecordedTracing()
        self.execution_spans = ExecutionSpans(self.recorded.tracing)
        self.execution_spans.began(RunJob(child=1, job=JOB, trace=CONTEXT), 100.0)

    def progress(self, *told):
        for phase, step, at in told:
            self.tell(EngineProgress(child=1, execution_id=EXECUTION, phase=phase, step=step, at=at))

    def tell(self, event, now=0.0):
        self.execution_spans.told(event)
        self.execution_spans.settle(event, now)

    def fail(self, code, now):
        failure = JobFailed(code=code)
        self.execution_spans.ended(failure_outcome(EXECUTION, failure), now)

    def spans(self):
        *children, execution = self.recorded.spans()
        assert execution.name == "execution"
        assert all(child.parent.span_id == execution.context.span_id for child in children)
        return execution, children


@pytest.fixture
def traced():
    return TracedExecution()


def test_an_image_is_text_steps_decode_and_png(traced):
    traced.progress(
        (JobPhase.TEXT, 0, 100.1),
        (JobPhase.STEP, 0, 101.1),
        (JobPhase.STEP, 1, 103.1),
        (JobPhase.STEP, 2, 106.1),
        (JobPhase.DECODE, 2, 106.1),
    )
    traced.tell(EngineDrawn(child=1, execution_id=EXECUTION, inference_time_s=6, at=106.6, text_cached=False))
    finished = EngineFinished(child=1, execution_id=EXECUTION, png=b"png", begun_at=106.7, at=106.8)
    traced.execution_spans.told(finished)
    traced.execution_spans.ended(image_outcome(EXECUTION), 107.0)
    traced.execution_spans.settle(finished, 107.1)
    execution, children = traced.spans()
    assert [(child.name, round(lasted_s(child), 6), facts_of(child)) for child in children] == [
        ("text", 1.0, {}),
        ("step", 2.0, {"step": 1}),
        ("step", 3.0, {"step": 2}),
        ("decode", 0.5, {}),
        ("png", 0.1, {"png_bytes": 3}),
    ]
    assert lasted_s(execution) == 7.0
    facts = facts_of(execution)
    assert (facts["outcome"], facts["text_cached"], facts["attempt"]) == ("image", False, 1)
    assert "a cat" not in str(facts)


def test_an_engine_that_begins_anew_tells_its_steps_again(traced):
    """Out of memory, it has freed some and tries once more."""
    traced.progress(
        (JobPhase.TEXT, 0, 100.0),
        (JobPhase.STEP, 0, 101.0),
        (JobPhase.STEP, 1, 102.0),
        (JobPhase.TEXT, 0, 103.0),
        (JobPhase.STEP, 0, 103.5),
        (JobPhase.STEP, 1, 104.5),
    )
    traced.fail(FailureCode.CANCELLED, 104.5)
    _, children = traced.spans()
    assert [(child.name, lasted_s(child)) for child in children[:-1]] == [
        ("text", 1.0),
        ("step", 1.0),
        ("text", 0.5),
        ("step", 1.0),
    ]


def test_a_sign_of_life_is_no_step(traced):
    traced.progress((JobPhase.STEP, 1, 101.0), (JobPhase.STEP, 1, 102.0), (JobPhase.STEP, 2, 103.0))
    traced.fail(FailureCode.CANCELLED, 103.0)
    _, (step, _) = traced.spans()
    assert (step.name, lasted_s(step)) == ("step", 2.0)


def test_the_phase_in_which_it_fails_is_the_failed_one(traced):
    traced.progress((JobPhase.TEXT, 0, 100.0), (JobPhase.STEP, 0, 101.0), (JobPhase.STEP, 1, 102.0))
    traced.fail(FailureCode.ENGINE_HUNG, 110.0)
    traced.tell(EngineExited(child=1, reason="killed"), 111.0)
    execution, children = traced.spans()
    assert [(child.name, has_failed(child)) for child in children] == [
        ("text", False),
        ("step", False),
        ("step", True),
    ]
    assert lasted_s(children[-1]) == 8.0
    assert facts_of(execution)["outcome"] == facts_of(execution)["error.type"] == "ENGINE_HUNG"


@pytest.mark.parametrize(
    "last",
    [
        EngineFinished(child=1, execution_id=EXECUTION, png=b"png", begun_at=100.5, at=100.6),
        EngineFailed(child=1, execution_id=EXECUTION, code=FailureCode.CANCELLED, detail=""),
        EngineExited(child=1, reason="killed"),
    ],
)
def test_what_ends_without_an_outcome_ends_its_span(traced, last):
    """Its image was released before its PNG was there."""
    traced.tell(EngineExited(child=0, reason="another one"), 100.2)
    traced.tell(last, 101.0)
    traced.fail(FailureCode.CANCELLED, 102.0)
    execution, _ = traced.spans()
    assert (lasted_s(execution), facts_of(execution)["outcome"]) == (1.0, "no longer wanted")


def test_a_worker_that_ends_ends_its_spans(traced):
    traced.execution_spans.close(101.0)
    execution, _ = traced.spans()
    assert facts_of(execution)["outcome"] == "the worker has ended"


def test_log_lines_of_a_traced_job_name_its_trace(traced):
    note = traced.execution_spans.named(Note("job ended", {"job_id": JOB.job_id}))
    assert note.fields["trace_id"] == CONTEXT.traceparent.split("-")[1]
    assert "trace_id" not in traced.execution_spans.named(Note("worker leaves")).fields
    other = Note("job ended", {"job_id": identifier("other")})
    assert traced.execution_spans.named(other) == other


def test_an_execution_without_a_context_is_not_traced():
    recorded = RecordedTracing()
    execution_spans = ExecutionSpans(recorded.tracing)
    execution_spans.began(RunJob(child=1, job=JOB), 100.0)
    execution_spans.told(
        EngineProgress(child=1, execution_id=EXECUTION, phase=JobPhase.TEXT, step=0, at=100.0)
    )
    execution_spans.ended(image_outcome(EXECUTION), 101.0)
    assert recorded.spans() == []
