"""The three cores with two brokers, and one thing at a time that goes wrong."""

import pytest
from simulation.broker_actor import BrokerActor
from simulation.calls import Call
from simulation.frontend_actor import FrontendActor
from simulation.worker_actor import WorkerActor
from simulation.world import World

from frontend.actions import ImageDelivered, JobRefused
from gpu_worker.slot import Free
from proto.failures import RefusalReason


@pytest.fixture
def world() -> World:
    """With two brokers whose rebuild windows are over."""
    return World(brokers=2)


@pytest.fixture
def frontend(world: World) -> FrontendActor:
    frontend = world.add_frontend("frontend")
    world.run_for(world.timing.rebuild_s + 0.5)
    return frontend


@pytest.fixture
def worker(world: World, frontend: FrontendActor) -> WorkerActor:
    worker = world.add_worker("worker")
    world.run_for(2.0)
    assert worker.is_free
    return worker


@pytest.fixture
def first(world: World, worker: WorkerActor) -> BrokerActor:
    return world.brokers[0]


@pytest.fixture
def second(world: World, worker: WorkerActor) -> BrokerActor:
    return world.brokers[1]


def until_over(world: World, call: Call, limit_s: float = 20.0) -> object:
    world.run_until(lambda: not call.is_open, limit_s)
    return call.end


def running(world: World, frontend: FrontendActor, worker: WorkerActor, steps: int = 40, **details) -> Call:
    """A call that is accepted, and drawn for the first broker."""
    call = world.ask(frontend, "key", "a cat", steps=steps, **details)
    world.run_until(lambda: worker.running is not None, 1.0)
    world.run_for(0.5)
    assert call.accepted_at is not None
    return call


def test_a_new_call_goes_to_the_first(world, frontend, first, second):
    call = world.ask(frontend, "key", "a cat")
    assert call.at == first.index
    assert isinstance(until_over(world, call), ImageDelivered)
    assert call.been_at == {first.index}


def test_a_standby_knows_what_runs_and_leaves_it_alone(world, frontend, worker, second):
    call = running(world, frontend, worker)
    world.run_for(2 * world.timing.rebuild_s)
    assert [each.running.execution_id for each in second.core.state.workers] == [worker.running]
    assert len(second.core.state.jobs) == 0
    assert isinstance(until_over(world, call), ImageDelivered)
    assert world.stats.executions == 1


def test_when_the_first_dies_its_job_goes_on_and_its_image_comes_through_the_second(
    world, frontend, worker, first, second
):
    call = running(world, frontend, worker)
    first.kill()
    assert isinstance(until_over(world, call), ImageDelivered)
    assert call.at == second.index
    assert world.stats.executions == 1
    world.run_for(5.0)
    assert isinstance(worker.session.slot, Free)
    assert len(worker.session.held) == 0


def test_an_image_that_was_finished_for_a_dead_broker_is_delivered_by_the_other(
    world, frontend, worker, first
):
    call = running(world, frontend, worker, steps=3)
    first.kill()
    assert isinstance(until_over(world, call, 6.0), ImageDelivered)
    assert world.stats.executions == 1


def test_a_draining_broker_hands_over_at_once(world, frontend, worker, first, second):
    call = running(world, frontend, worker)
    first.drain()
    world.run_for(1.5)
    assert call.at == second.index
    assert isinstance(until_over(world, call), ImageDelivered)
    assert world.stats.executions == 1


def test_a_frozen_broker_that_wakes_ends_nothing(world, frontend, worker, first, second):
    call = running(world, frontend, worker)
    first.freeze(6.0)
    assert isinstance(until_over(world, call), ImageDelivered)
    assert call.at == second.index
    assert world.stats.executions == 1
    world.run_for(5.0)
    assert len(first.core.state.jobs) == 0


def test_a_frontend_that_the_first_does_not_hear_turns_to_the_second(world, frontend, worker, first, second):
    call = running(world, frontend, worker)
    world.network.cut(frontend.links[first.index], up=True, down=True, duration_s=60.0)
    assert isinstance(until_over(world, call), ImageDelivered)
    assert call.at == second.index
    assert world.stats.executions == 1


def test_a_worker_that_the_first_does_not_hear_still_draws_for_the_second(world, frontend, worker, first):
    call = running(world, frontend, worker)
    world.network.cut(worker.links[first.index], up=True, down=True, duration_s=60.0)
    until_over(world, call, 61.0)  # Its broker has no other worker: it says so.
    assert call.end is not None
    other = world.add_frontend("other")
    world.run_for(2.0)
    first.kill()
    world.run_for(world.timing.broker_silent_s + 1.0)
    assert isinstance(until_over(world, world.ask(other, "key", "a dog")), ImageDelivered)


def test_without_the_first_a_new_call_is_taken_by_the_second(world, frontend, worker, first):
    first.kill()
    world.run_for(world.timing.broker_silent_s + 0.5)
    assert isinstance(until_over(world, world.ask(frontend, "key", "a cat")), ImageDelivered)


def test_a_call_that_a_dead_broker_had_not_answered_is_not_refused(world, frontend, worker, first):
    first.kill()
    call = world.ask(frontend, "key", "a cat")
    assert isinstance(until_over(world, call), ImageDelivered)


def test_without_any_broker_a_call_is_refused(world, frontend, worker, first, second):
    first.kill()
    second.kill()
    end = until_over(world, world.ask(frontend, "key", "a cat"), world.timing.broker_silent_s + 0.5)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.BROKER_UNREACHABLE


def test_a_client_that_leaves_after_a_failover_stops_the_worker(world, frontend, worker, first):
    call = running(world, frontend, worker, steps=80)
    first.kill()
    world.run_for(world.timing.broker_silent_s + 1.0)
    frontend.leave(call)
    world.run_until(lambda: isinstance(worker.session.slot, Free), 1.0)


def test_what_a_dead_broker_left_behind_without_a_waiter_is_stopped_by_the_other(
    world, frontend, worker, first
):
    call = running(world, frontend, worker, steps=120)
    first.kill()
    frontend.leave(call)
    timing = world.timing
    limit_s = timing.broker_silent_s + timing.rebuild_s + 3 * timing.heartbeat_interval_s
    world.run_until(lambda: isinstance(worker.session.slot, Free), limit_s)


def test_a_repeat_through_the_second_joins_what_runs_for_the_first(world, frontend, worker, first):
    call = running(world, frontend, worker, repeats="r")
    other = world.add_frontend("other")
    world.network.cut(other.links[first.index], up=True, down=True, duration_s=60.0)
    world.run_for(world.timing.broker_silent_s + 1.0)
    repeat = world.ask(other, "key", "a cat", steps=40, repeats="r")
    assert repeat.at == 1
    one, two = until_over(world, call), until_over(world, repeat)
    assert isinstance(one, ImageDelivered)
    assert isinstance(two, ImageDelivered)
    assert one.png == two.png
    assert world.stats.executions == 1


def test_a_repeat_through_the_second_gets_the_image_that_was_kept_for_the_first(
    world, frontend, worker, first
):
    one = until_over(world, world.ask(frontend, "key", "a cat", repeats="r"))
    world.run_for(2.0)
    first.kill()
    world.run_for(world.timing.broker_silent_s + 1.0)
    two = until_over(world, world.ask(frontend, "key", "a cat", repeats="r"))
    assert isinstance(one, ImageDelivered)
    assert isinstance(two, ImageDelivered)
    assert one.png == two.png
    assert world.stats.executions == 1


def test_the_key_of_what_runs_for_the_first_is_busy_at_the_second(world, frontend, worker, first):
    running(world, frontend, worker)
    other = world.add_frontend("other")
    world.network.cut(other.links[first.index], up=True, down=True, duration_s=60.0)
    world.run_for(world.timing.broker_silent_s + 1.0)
    end = until_over(world, world.ask(other, "key", "a dog"), 0.1)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.CLIENT_BUSY


@pytest.mark.parametrize("seed", range(3))
def test_a_rolling_restart_of_brokers_and_workers_under_load_fails_no_accepted_call(seed: int):
    world = World(seed, brokers=2)
    frontends = [world.add_frontend(f"frontend-{n}") for n in range(2)]
    workers = [f"worker-{n}" for n in range(3)]
    for name in workers:
        world.add_worker(name)
    world.run_for(5.0)
    for n in range(60):
        world.ask(frontends[n % 2], f"key-{n}", f"prompt {n}", steps=6, seed=n)
        if n in (5, 25):
            index = 0 if n == 5 else 1
            world.brokers[index].drain()
            world.after(2.0, world.start_broker, index)
        if n in (10, 20, 40):
            name = workers[(n // 10) % 3]
            next(worker for worker in world.workers if worker.name == name).drain()
            world.after(5.0, world.add_worker, name)
        world.run_for(0.7)
    world.run_for(30.0)
    accepted = [call for call in world.calls if call.accepted_at is not None]
    assert len(accepted) > 20
    assert [call.ending() for call in accepted] == ["image"] * len(accepted)
