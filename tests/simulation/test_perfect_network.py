"""The three cores together when nothing goes wrong, or one thing at a time."""

import pytest
from simulation.world import SimulatedFrontend, SimulatedWorker, World

from frontend.actions import ImageDelivered, JobGivenUp, JobRefused
from gpu_worker.slot import Free
from proto.failures import FailureCode, RefusalReason


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def frontend(world: World) -> SimulatedFrontend:
    return world.add_frontend("frontend")


@pytest.fixture
def worker(world: World, frontend: SimulatedFrontend) -> SimulatedWorker:
    """A worker that is ready, as its frontend knows."""
    worker = world.add_worker("worker")
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 1, 2.0)
    return worker


def test_a_job_comes_back_as_its_image(world, frontend, worker):
    call = frontend.call("key", "a cat", seed=7)
    world.run_until(lambda: call.end is not None, 5.0)
    assert isinstance(call.end, ImageDelivered)
    assert world.executions[call.job_id] == 1


def test_after_an_image_nothing_is_left_behind(world, frontend, worker):
    call = frontend.call("key", "a cat")
    world.run_until(lambda: call.end is not None, 5.0)
    world.run_for(2.5)
    assert not world.broker.core.state.jobs.jobs
    assert len(worker.session.held) == 0


def test_no_worker_is_said_at_once(world, frontend):
    for wait_s, retry_after_s in [(0.5, 1.0), (5.0, None)]:  # a young broker expects workers to report
        world.run_for(wait_s)
        call = frontend.call("key", "a cat")
        world.run_until(lambda call=call: call.end is not None, 0.1)
        assert isinstance(call.end, JobRefused)
        assert call.end.reason is RefusalReason.NO_WORKERS
        assert call.end.retry_after_s == retry_after_s


def test_a_loading_worker_is_said_at_once(world, frontend):
    world.add_worker("worker")
    world.run_for(0.1)
    call = frontend.call("key", "a cat")
    world.run_until(lambda: call.end is not None, 0.1)
    assert isinstance(call.end, JobRefused)
    assert call.end.reason is RefusalReason.WORKERS_NOT_READY
    assert call.end.retry_after_s is not None


def test_a_second_call_of_the_same_key_is_refused(world, frontend, worker):
    first = frontend.call("key", "a cat", steps=20)
    world.run_until(lambda: worker.running is not None, 1.0)
    second = frontend.call("key", "a dog")
    world.run_until(lambda: second.end is not None, 0.1)
    assert isinstance(second.end, JobRefused)
    assert second.end.reason is RefusalReason.CLIENT_BUSY
    assert second.end.retry_after_s is not None
    world.run_until(lambda: isinstance(first.end, ImageDelivered), 10.0)


def test_another_key_is_refused_while_the_only_worker_is_busy(world, frontend, worker):
    frontend.call("key", "a cat", steps=20)
    world.run_until(lambda: worker.running is not None, 1.0)
    second = frontend.call("other", "a dog")
    world.run_until(lambda: second.end is not None, 0.1)
    assert isinstance(second.end, JobRefused)
    assert second.end.reason is RefusalReason.ALL_WORKERS_BUSY


def test_the_retry_delay_is_what_the_running_job_still_needs(world, frontend, worker):
    frontend.call("key", "a cat", steps=20)  # 20 steps of 0.25 s
    world.run_until(lambda: worker.running is not None, 1.0)
    world.run_for(3.0)
    second = frontend.call("other", "a dog")
    world.run_until(lambda: second.end is not None, 0.1)
    assert isinstance(second.end, JobRefused)
    assert second.end.retry_after_s == pytest.approx(2.0, abs=1.0)


def test_a_queue_takes_what_its_limit_allows(world, frontend, worker):
    world.broker.core.state.queue_limit = 1
    first, second, third = (frontend.call(f"key {n}", f"{n}", steps=8) for n in range(3))
    world.run_until(lambda: third.end is not None, 0.1)
    assert isinstance(third.end, JobRefused)
    world.run_until(lambda: isinstance(second.end, ImageDelivered), 10.0)
    assert isinstance(first.end, ImageDelivered)


def test_a_deadline_that_cannot_be_met_is_refused(world, frontend, worker):
    for n in range(3):
        call = frontend.call("key", f"cat {n}", steps=20)
        world.run_until(lambda call=call: call.end is not None, 10.0)
    hasty = frontend.call("key", "a dog", steps=20, deadline_s=1.0)
    world.run_until(lambda: hasty.end is not None, 0.1)
    assert isinstance(hasty.end, JobRefused)
    assert hasty.end.reason is RefusalReason.DEADLINE_TOO_SHORT


def test_a_client_that_leaves_stops_the_worker_at_the_next_step(world, frontend, worker):
    call = frontend.call("key", "a cat", steps=20)
    world.run_until(lambda: worker.running is not None, 1.0)
    frontend.leave(call)
    world.run_until(lambda: isinstance(worker.session.slot, Free), world.step_s + 0.1)
    other = frontend.call("other", "a dog")
    world.run_until(lambda: isinstance(other.end, ImageDelivered), 5.0)


def test_a_deadline_stops_the_worker(world, frontend, worker):
    call = frontend.call("key", "a cat", steps=20, deadline_s=1.0)
    world.run_until(lambda: call.end is not None, 1.1)
    assert isinstance(call.end, JobGivenUp)
    assert call.end.code is FailureCode.DEADLINE_EXCEEDED
    world.run_until(lambda: isinstance(worker.session.slot, Free), world.step_s + 0.1)


def test_a_killed_engine_is_replaced_and_the_job_runs_again_elsewhere(world, frontend, worker):
    other = world.add_worker("other")
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 2, 2.0)
    call = frontend.call("key", "a cat")
    world.run_until(lambda: worker.running is not None or other.running is not None, 1.0)
    (worker if worker.running else other).crash_engine()
    world.run_until(lambda: isinstance(call.end, ImageDelivered), 5.0)
    assert world.executions[call.job_id] == 2
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 2, 2.0)


def test_a_job_that_crashes_every_engine_is_given_up_after_three(world, frontend, worker):
    for n in range(3):
        world.add_worker(f"other-{n}")
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 4, 2.0)
    call = frontend.call("key", "a cat")
    while call.end is None:
        for each in world.workers:
            if each.running is not None:
                each.crash_engine()
        world.run_for(0.05)
    assert isinstance(call.end, JobGivenUp)
    assert call.end.code is FailureCode.ENGINE_CRASHED
    assert call.end.attempts == 3
    assert [each.runs for each in world.workers].count(1) == 3, "not on another worker each time"


def test_a_killed_worker_is_noticed_in_time_and_the_call_ends(world, frontend, worker):
    call = frontend.call("key", "a cat", steps=20)
    world.run_until(lambda: worker.running is not None, 1.0)
    worker.kill()
    killed_at = world.now
    world.run_until(lambda: call.end is not None, 10.0)
    assert isinstance(call.end, JobGivenUp)
    assert call.end.code is FailureCode.WORKER_LOST
    timing = world.timing
    noticed_s = timing.probe_after_s + timing.unreachable_grace_s + 3 * timing.probe_interval_s
    assert world.now - killed_at <= noticed_s + timing.retry_wait_s + timing.probe_interval_s


def test_a_frozen_worker_is_given_up_and_its_late_image_is_dropped(world, frontend, worker):
    call = frontend.call("key", "a cat", steps=8)
    world.run_until(lambda: worker.running is not None, 1.0)
    world.run_for(0.3)
    other = world.add_worker("other")
    worker.freeze(30.0)
    world.run_until(lambda: isinstance(call.end, ImageDelivered), world.timing.peer_lost_s + 4.0)
    assert other.runs == 1
    world.run_for(40.0)
    assert isinstance(worker.session.slot, Free)
    assert len(worker.session.held) == 0
    assert frontend.desk.ready_workers(world.now) == 2


def test_a_late_image_is_dropped_while_another_worker_draws(world, frontend, worker):
    call = frontend.call("key", "a cat", steps=8)
    world.run_until(lambda: worker.running is not None, 1.0)
    world.run_for(7.5 * world.step_s)
    other = world.add_worker("other")
    worker.freeze(30.0)
    world.run_until(lambda: other.running is not None, world.timing.peer_lost_s + 1.0)
    worker.frozen_until = world.now + 0.5
    world.run_until(lambda: call.end is not None, 5.0)
    assert isinstance(call.end, ImageDelivered)
    *_, execution_id = bytes(call.end.png).decode().split("|")
    assert bytes.fromhex(execution_id) == world.broker.started[call.job_id]
    assert world.broker.core.state.counters.dropped_outcomes == 1


def test_a_restarted_worker_takes_its_predecessors_place_at_once(world, frontend, worker):
    worker.kill()
    world.add_worker("worker")
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 0, 2.0)
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 1, 2.0)
    assert len(world.broker.core.state.workers) == 1


def test_of_two_workers_of_one_name_the_older_ends(world, frontend, worker):
    world.add_worker("worker")
    world.run_until(lambda: worker.exited is not None, 5.0)
    assert worker.exited is not None
    assert worker.exited.code != 0
    assert "worker_id" in worker.exited.reason
    world.run_for(5.0)
    assert len(world.broker.core.state.workers) == 1


def test_a_restarted_broker_gets_the_job_again_and_the_image_comes(world, frontend, worker):
    call = frontend.call("key", "a cat", steps=8)
    world.run_until(lambda: worker.running is not None, 1.0)
    world.run_for(0.3)
    world.restart_broker()
    world.run_until(lambda: isinstance(call.end, ImageDelivered), 20.0)


def test_a_silent_broker_is_said_after_its_time_and_then_at_once(world, frontend, worker):
    world.broker.alive = False
    first = frontend.call("key", "a cat")
    world.run_until(lambda: first.end is not None, world.timing.broker_silent_s + 0.1)
    second = frontend.call("key", "a cat")
    assert isinstance(second.end, JobRefused)
    assert second.end.reason is RefusalReason.BROKER_UNREACHABLE


def test_slow_steps_survive_a_restart_of_the_broker(world, frontend, worker):
    world.step_s = 9.0
    call = frontend.call("key", "a cat", steps=3, deadline_s=120)
    world.run_until(lambda: worker.running is not None, 1.0)
    world.run_for(1.0)
    world.restart_broker()
    world.run_until(lambda: call.end is not None, 60.0)
    assert isinstance(call.end, ImageDelivered)


def test_after_a_restart_of_the_broker_the_younger_of_two_namesakes_stays(world, frontend, worker):
    worker.freeze(20.0)
    younger = world.add_worker("worker")
    world.run_for(5.0)
    world.restart_broker()
    world.run_for(30.0)
    assert younger.exited is None
    assert worker.exited is not None


def test_a_call_that_follows_a_cancelled_one_of_its_key_is_taken(world, frontend, worker):
    other = world.add_worker("other")
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 2, 2.0)
    first = frontend.call("key", "a cat", steps=20)
    world.run_until(lambda: worker.running is not None or other.running is not None, 1.0)
    frontend.leave(first)
    second = frontend.call("key", "a dog")
    world.run_until(lambda: isinstance(second.end, ImageDelivered), 5.0)


def test_a_frozen_worker_is_not_counted_as_ready(world, frontend, worker):
    worker.freeze(4.0)
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 0, world.timing.probe_after_s + 0.5)
    world.run_until(lambda: frontend.desk.ready_workers(world.now) == 1, 4.0)


def test_a_thousand_calls_at_once_cost_few_reports(world, frontend, worker):
    before = frontend.reports
    calls = [frontend.call(f"key {n}", f"{n}") for n in range(1000)]
    world.run_until(lambda: all(call.end is not None for call in calls), 5.0)
    assert sum(isinstance(call.end, ImageDelivered) for call in calls) == 1
    assert frontend.reports - before < 20


def test_a_draining_worker_finishes_its_job_and_leaves(world, frontend, worker):
    call = frontend.call("key", "a cat")
    world.run_until(lambda: worker.running is not None, 1.0)
    worker.drain()
    world.run_until(lambda: worker.exited is not None, 10.0)
    assert worker.exited is not None
    assert worker.exited.code == 0
    assert isinstance(call.end, ImageDelivered)
    world.run_for(0.1)
    assert len(world.broker.core.state.workers) == 0


def test_a_lost_frontend_frees_its_workers(world, frontend, worker):
    frontend.call("key", "a cat", steps=60, deadline_s=60)
    world.run_until(lambda: worker.running is not None, 1.0)
    frontend.kill()
    timing = world.timing
    noticed_s = timing.probe_after_s + timing.unreachable_grace_s + 2 * timing.probe_interval_s
    world.run_until(lambda: isinstance(worker.session.slot, Free), noticed_s + world.step_s + 0.1)
