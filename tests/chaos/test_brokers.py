"""The broker dies at the worst moments, or stands still."""

import grpc
import psutil
from chaos.running_job import RunningJob
from processes.stack import SLACK_S, Stack, until

LEFT_S = 6.0
"""For a call that nobody will answer: time enough for a loaded machine to begin it."""
LIVES = ("broker listens", "worker registered", "frontend registered", "execution adopted")
"""What a broker has just done when it is killed again."""


def kill_broker(stack: Stack) -> psutil.Process:
    victim = stack.broker.life
    stack.broker.kill()
    assert not victim.is_running()
    return victim


def test_row_1_an_idle_broker_is_killed_and_all_register_again(service: Stack) -> None:
    victim = kill_broker(service)
    service.broker.start()
    assert service.broker.life != victim
    for name in service.workers:
        service.broker.until_event("worker registered", worker_id=name)
    service.until_the_broker_is_heard()
    service.draws()


def test_row_3_the_broker_is_killed_before_it_passes_an_image_on(service: Stack) -> None:
    with service.held():
        job = RunningJob.begin(service, "a cape")
        service.broker.freeze()
    job.worker.until_event("job ended", execution_id=job.execution_id)
    victim = kill_broker(service)
    assert not service.broker.events("job completed")
    service.broker.start()
    assert service.broker.life != victim
    job.first_image()
    service.draws()


def test_row_4_the_broker_is_killed_before_it_hears_that_the_image_has_arrived(service: Stack) -> None:
    with service.held():
        job = RunningJob.begin(service, "a strait", idempotency_key="strait")
        service.frontend.freeze()
    service.broker.until_event("job completed", job_id=job.job_id)
    victim = kill_broker(service)
    service.frontend.thaw()
    service.broker.start()
    assert service.broker.life != victim
    image = job.first_image()
    service.draws()
    repeat = service.client().draw(job.prompt, seed=image.seed, steps=20, idempotency_key="strait")
    assert repeat.image_png == image.image_png, "it is kept, and was drawn once"
    assert not service.broker.events("outcome dropped")


def test_row_5_the_broker_does_not_return_and_calls_end_all_the_same(service: Stack) -> None:
    with service.held():
        job = RunningJob.begin(service, "a lagoon", deadline_s=LEFT_S)
        kill_broker(service)
        ended = job.call.refusal(limit_s=LEFT_S + SLACK_S)
        assert ended.code is grpc.StatusCode.DEADLINE_EXCEEDED
        refused = service.client("client2").begin().refusal(limit_s=SLACK_S)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNREACHABLE")
        assert not service.broker.is_running
        service.broker.start()
        # What is drawn for nobody does not keep its worker from others.
        service.until_state(job.worker.name, "ready")
    assert job.worker.until_event("job ended", job_id=job.job_id)["outcome"] != "image"
    service.draws()


def test_row_6_the_broker_dies_again_and_again(service: Stack) -> None:
    victims = set()
    with service.held():
        job = RunningJob.begin(service, "a shoal")
        for life in LIVES:
            victims.add(kill_broker(service))
            service.broker.start()
            service.broker.until_event(life)
        victims.add(kill_broker(service))
        service.broker.start()
        service.broker.until_event("rebuilt")
    assert len(victims | {service.broker.life}) == len(LIVES) + 2, "each had a process of its own"
    job.first_image()
    assert service.executions() == 1
    service.draws()


def test_row_15_a_broker_stands_still_for_longer_than_any_peer_may(service: Stack) -> None:
    frozen = service.broker.life
    with service.held():
        job = RunningJob.begin(service, "a reef")
        service.broker.freeze()
        until("the frontend misses the broker", lambda: service.get("/readyz")[0] == 503)
        refused = service.client("client2").begin().refusal(limit_s=SLACK_S)
        assert refused.reason == "BROKER_UNREACHABLE"
        too_long_s = 2 * service.timing.peer_lost_s
        until("it was silent for too long", lambda: service.get("/metrics")[1]["age_s"] > too_long_s)
        assert job.call.is_open
        service.broker.thaw()
        service.broker.until_event("broker stood still")
        assert service.until_running().job_id == job.job_id
    job.first_image()
    assert service.broker.life == frozen
    assert not service.broker.events("worker lost")
    service.draws()
