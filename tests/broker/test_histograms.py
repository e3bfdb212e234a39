"""How long jobs waited and steps took, as a snapshot tells it."""

import dataclasses

import pytest
from samples.broker_driver import Driver
from samples.wire import PARAMETERS, snapshot_request

from proto.messages import Distribution, ImageMade, Snapshot

PARAMETERS_OF_4 = dataclasses.replace(PARAMETERS, steps=4)


@pytest.fixture
def broker() -> Driver:
    return Driver(queue_limit=2)


def told(broker: Driver) -> Snapshot:
    broker.from_frontend(snapshot_request())
    (snapshot,) = broker.to_frontend(Snapshot)
    return snapshot


def counted(distribution: Distribution | None) -> dict[float, int]:
    """The buckets that hold something; what is above all is under infinity."""
    assert distribution is not None
    bounds = (*distribution.bounds, float("inf"))
    return {bound: n for bound, n in zip(bounds, distribution.counts, strict=True) if n}


def draw(broker: Driver, job: str, **image: float) -> None:
    execution = broker.run_job(job, key=job, parameters=PARAMETERS_OF_4)
    broker.runs(execution, job)
    broker.image(execution, job, image=ImageMade(seed=7, **image))
    broker.frontend()


def test_a_job_that_is_begun_at_once_has_waited_no_time(broker):
    broker.worker()
    draw(broker, "job", inference_time_s=1.0)
    assert counted(told(broker).queue_wait_s) == {0.01: 1}


def test_a_job_waits_from_its_admission_to_its_first_execution(broker):
    broker.worker()
    execution = broker.run_job("first", key="a")
    broker.runs(execution, "first")
    broker.submit("second", key="b")
    broker.submit("third", key="c")
    broker.now += 1.75
    broker.image(execution, "first")
    broker.runs(broker.started().execution_id, "second")
    wait = told(broker).queue_wait_s
    assert counted(wait) == {0.01: 1, 2.0: 1}, "the third still waits"
    assert wait.sum == 1.75


def test_an_image_counts_with_the_mean_of_its_steps(broker):
    broker.worker()
    draw(broker, "a", inference_time_s=9.0, steps_time_s=1.6)
    draw(broker, "b", inference_time_s=9.0, steps_time_s=400.0)
    step = told(broker).step_s
    assert counted(step) == {0.5: 1, float("inf"): 1}
    assert step.sum == 100.4


def test_a_worker_that_does_not_tell_counts_nothing(broker):
    broker.worker()
    draw(broker, "a", inference_time_s=9.0)
    assert counted(told(broker).step_s) == {}
