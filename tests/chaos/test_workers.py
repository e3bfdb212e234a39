"""A worker dies at the worst moments, stands still for a moment, or has a namesake."""

import grpc
from chaos.running_job import RunningJob
from processes.stack import Stack, content_of, until

from gpu_worker.engines.fake import prompt_digest
from proto.exit_status import EXIT_BAD_CONFIGURATION

STEP_LIMIT_S = 2.0


def other_worker(stack: Stack, name: str) -> str:
    (other,) = stack.workers.keys() - {name}
    return other


def test_row_9_a_worker_dies_with_an_image_that_nobody_has_got(service: Stack) -> None:
    with service.held():
        job = RunningJob.begin(service, "a dune")
        service.broker.kill()
    job.worker.until_event("job ended", execution_id=job.execution_id, outcome="image")
    victim = job.worker.life
    job.worker.kill()
    service.broker.start()
    job.other_image()
    other = other_worker(service, job.worker.name)
    service.broker.until_event("job completed", job_id=job.job_id, worker_id=other, attempt=2)
    job.worker.start()
    assert job.worker.life != victim
    service.draws()


def test_row_10_a_worker_dies_before_it_has_confirmed_a_job(service: Stack) -> None:
    for worker in service.workers.values():
        worker.freeze()
    call = service.client().begin("a marsh")
    offered = service.broker.until_event("job dispatched")
    name = str(offered["worker_id"])
    worker, other = service.workers[name], other_worker(service, name)
    victim = worker.life
    worker.kill()
    assert not worker.events("job started")
    service.workers[other].thaw()
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest("a marsh")
    service.broker.until_event("job completed", worker_id=other)
    worker.start()
    assert worker.life != victim
    service.draws()


def test_row_14_a_worker_that_stands_still_for_a_moment_loses_nothing(service: Stack) -> None:
    with service.held():
        job = RunningJob.begin(service, "a spit")
        job.worker.freeze()
        missed_s = 2 * service.timing.heartbeat_interval_s

        def silent() -> bool:
            row = service.row(job.worker.name)
            return row is not None and row.report_age_seconds > missed_s

        until("it is missed", silent)
        job.worker.thaw()
        until("it is heard again", lambda: not silent())
    job.first_image()
    assert not service.broker.events("worker lost")
    assert service.executions() == 1
    service.draws()


def test_row_16_an_engine_that_never_gives_the_interpreter_up_is_replaced(stack: Stack) -> None:
    stack.start(fake_faults=True, step_limit_s=STEP_LIMIT_S)
    worker = stack.workers["worker-1"]
    victim = worker.engine()
    call = stack.client().begin("!gil@2")
    stack.until_running()
    ages = []
    while not worker.events("engine process killed"):
        ages.append(until("its row", lambda: stack.row("worker-1")).report_age_seconds)
    refusal = call.refusal()
    assert (refusal.code, refusal.reason, refusal.attempts) == (grpc.StatusCode.INTERNAL, "POISON_JOB", 2)
    assert len(ages) > 1
    assert max(ages) < stack.timing.peer_lost_s, "the worker itself was heard all the time"
    assert not stack.broker.events("worker lost")
    assert not victim.is_running()
    stack.draws()
    assert worker.engine() != victim


def test_row_23_of_two_workers_with_one_name_the_younger_stays(service: Stack) -> None:
    elder = service.workers["worker-1"]
    with service.held():
        job = RunningJob.begin(service, "a bay")
        twin = service.start_worker("twin", worker_id=job.worker.name)
        assert job.worker.ends() == EXIT_BAD_CONFIGURATION
    del service.workers["twin"]
    elder = service.workers[job.worker.name]
    service.workers[job.worker.name] = twin
    job.other_image()
    assert "worker_id of its own" in elder.log_text()
    assert "Traceback" not in elder.log_text()
    service.draws()
    registered = [line["worker_id"] for line in service.broker.events("worker registered")]
    assert registered.count(twin.settings["worker_id"]) == 2, "they do not take turns"
