"""The spans that a broker makes of its core's actions."""

import pytest
from samples.broker_driver import Driver
from samples.recorded_spans import CONTEXT, RecordedTracing, facts_of, lasted_s
from samples.wire import identifier

from broker.actions import TracedJobMoved
from broker.job_spans import JobSpans
from proto.failures import FailureCode
from proto.notes import Note


class TracedBroker(Driver):
    """With spans made of its actions as its shell does it."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.recorded = RecordedTracing()
        self.job_spans = JobSpans(self.recorded.tracing)
        self.named = []

    def tell(self, event):
        actions = super().tell(event)
        for action in actions:
            if isinstance(action, TracedJobMoved):
                self.job_spans.moved(action)
            elif isinstance(action, Note):
                self.named.append(self.job_spans.named(action))
        return actions

    def spans(self):
        return [(span.name, facts_of(span)) for span in self.recorded.spans()]


@pytest.fixture
def traced():
    return TracedBroker(queue_limit=2)


def test_a_job_is_queued_dispatched_and_delivered(traced):
    traced.worker()
    execution_id = traced.run_job("busy")
    traced.submit("job", trace=CONTEXT, key="other")
    traced.now += 3
    traced.image(execution_id, "busy")
    start = traced.started()
    assert start.trace == CONTEXT, "for the worker's own spans"
    traced.runs(start.execution_id)
    traced.now += 2
    traced.image(start.execution_id)
    traced.now += 0.5
    traced.frontend()
    queued, dispatched, delivering = traced.recorded.spans()
    assert [span.name for span in (queued, dispatched, delivering)] == ["queued", "dispatched", "delivering"]
    assert [lasted_s(span) for span in (queued, dispatched, delivering)] == [3.0, 2.0, 0.5]
    assert facts_of(dispatched) == {
        "job_id": identifier("job").hex(),
        "execution_id": start.execution_id.hex(),
        "worker_id": "worker",
        "attempt": 1,
        "outcome": "image",
    }
    assert all(
        CONTEXT.traceparent.split("-")[2] == f"{span.parent.span_id:016x}"
        for span in (queued, dispatched, delivering)
    )


def test_each_attempt_is_a_span_with_its_outcome(traced):
    traced.worker()
    first = traced.run_job("job", trace=CONTEXT)
    traced.failure(first, FailureCode.ENGINE_CRASHED)
    traced.now += 1
    traced.worker()
    second = traced.started().execution_id
    traced.image(second)
    traced.frontend()
    spans = traced.spans()
    assert [name for name, _ in spans] == ["queued", "dispatched", "returned", "dispatched", "delivering"]
    attempts = [(facts["attempt"], facts["outcome"]) for name, facts in spans if name == "dispatched"]
    assert attempts == [(1, "ENGINE_CRASHED"), (2, "image")]
    assert spans[2][1]["failure"] == "ENGINE_CRASHED"


def test_a_job_that_nobody_wants_any_more_ends_its_span(traced):
    traced.worker()
    traced.run_job("job", trace=CONTEXT)
    traced.frontend()
    assert [(name, facts.get("outcome")) for name, facts in traced.spans()] == [
        ("queued", None),
        ("dispatched", "no longer wanted"),
    ]


def test_a_failure_ends_the_attempt_and_has_no_span_of_its_own(traced):
    traced.worker()
    execution_id = traced.run_job("job", trace=CONTEXT)
    traced.failure(execution_id, FailureCode.NON_FINITE_IMAGE)
    traced.frontend()
    assert traced.spans()[-1][1]["outcome"] == "NON_FINITE_IMAGE"


def test_a_new_broker_goes_on_in_the_same_trace():
    traced = TracedBroker(rebuild_s=3)
    traced.submit("job", trace=CONTEXT, accepted=True, attempts=1)
    traced.runs(identifier("execution"))
    traced.image(identifier("execution"))
    traced.frontend()
    assert [name for name, _ in traced.spans()] == ["queued", "returned", "dispatched", "delivering"]


def test_a_broker_that_ends_ends_its_spans(traced):
    traced.worker()
    traced.run_job("job", trace=CONTEXT)
    traced.job_spans.close(traced.now)
    assert [name for name, _ in traced.spans()] == ["queued", "dispatched"]


def test_log_lines_of_a_traced_job_name_its_trace(traced):
    traced.worker()
    traced.run_job("job", trace=CONTEXT)
    traced.submit("untraced", key="other")
    of_job = [note for note in traced.named if note.fields.get("job_id") == identifier("job")]
    assert {note.fields["trace_id"] for note in of_job} == {CONTEXT.traceparent.split("-")[1]}
    assert not [note for note in traced.named if note not in of_job and "trace_id" in note.fields]


def test_a_job_without_a_context_is_not_told_of(traced):
    traced.worker()
    execution_id = traced.run_job("job")
    traced.image(execution_id)
    assert not [action for action in traced.actions if isinstance(action, TracedJobMoved)]
    assert traced.spans() == []
