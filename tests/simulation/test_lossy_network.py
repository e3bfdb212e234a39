"""The three cores over a network that loses, delays, doubles and reorders, while processes are killed."""

import random

import pytest
from simulation.world import LOSSY, Network, World

from frontend.actions import ImageDelivered, JobRefused
from gpu_worker.slot import Free

SEEDS = range(6)
QUIET_S = 30.0


def busy_hour(seed: int, *, faults: bool) -> World:
    """Clients of several keys call at random times; with faults, every kind of process but theirs dies."""
    world = World(seed=seed, network=LOSSY, queue_limit=seed % 3)
    for n in range(2):
        world.add_frontend(f"frontend-{n}")
    for n in range(3):
        world.add_worker(f"worker-{n}")
    world.run_for(5.0)
    plan = random.Random(seed + 1)
    for n in range(60):
        awake = [each for each in world.frontends if each.alive and world.now >= each.frozen_until]
        if not awake:
            world.run_for(5.0)
            continue
        frontend = plan.choice(awake)
        call = frontend.call(
            f"key-{plan.randrange(6)}",
            f"prompt {n}",
            steps=plan.randint(1, 20),
            seed=plan.getrandbits(64),
            deadline_s=plan.choice([1.0, 10.0, 60.0]),
        )
        if plan.random() < 0.2:
            world.after(plan.random() * 4, lambda call=call, frontend=frontend: frontend.leave(call))
        if faults and plan.random() < 0.15:
            break_something(world, plan)
        world.run_for(plan.random() * 3)
    world.run_for(60.0)
    return world


def break_something(world: World, plan: random.Random) -> None:
    victim = plan.choice([worker for worker in world.workers if worker.alive] or world.workers)
    frontend = plan.choice([frontend for frontend in world.frontends if frontend.alive])
    match plan.randrange(7):
        case 0:
            victim.crash_engine()
        case 1:
            victim.kill()
            world.after(plan.random() * 6, lambda: world.add_worker(victim.name))
        case 2:
            world.restart_broker(plan.random() * 2)
        case 3:
            victim.freeze(plan.random() * 15)
        case 4:
            victim.drain()
            world.after(10, lambda: world.add_worker(victim.name))
        case 5:
            frontend.freeze(plan.random() * 15)
        case 6:
            frontend.kill()
            world.add_frontend(f"frontend-{len(world.frontends)}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("faults", [False, True], ids=["lossy", "lossy and deadly"])
def test_every_call_ends_in_its_own_image_or_a_status(seed: int, faults: bool):
    world = busy_hour(seed, faults=faults)
    outcomes = world.outcomes()
    assert outcomes["open"] == 0, world.story()
    assert outcomes["image"] >= 10, f"{outcomes}\n{world.story()}"


@pytest.mark.parametrize("seed", SEEDS)
def test_when_all_is_over_nothing_is_left_behind(seed: int):
    world = busy_hour(seed, faults=True)
    world.network = World().network
    world.run_for(QUIET_S)
    assert not world.broker.core.state.jobs.jobs, world.story()
    for worker in world.workers:
        if worker.alive:
            assert isinstance(worker.session.slot, Free), world.story()
            assert len(worker.session.held) == 0, world.story()
    frontend = world.frontends[-1]
    call = frontend.call("last", "still there?", deadline_s=10)
    world.run_until(lambda: call.end is not None, 11.0)
    assert isinstance(call.end, ImageDelivered), f"{call.end}\n{world.story()}"


def test_the_same_seed_gives_the_same_story():
    assert busy_hour(3, faults=True).transcript == busy_hour(3, faults=True).transcript


def quiet_hour(seed: int, network: Network) -> World:
    """Forty calls of four keys, one a second, to three workers."""
    world = World(seed=seed, network=network)
    frontend = world.add_frontend("frontend")
    for n in range(3):
        world.add_worker(f"worker-{n}")
    world.run_for(5.0)
    for n in range(40):
        frontend.call(f"key-{n % 4}", f"prompt {n}", steps=4, seed=n)
        world.run_for(1.0)
    world.run_for(60.0)
    assert world.outcomes()["image"] >= 20, world.outcomes()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_alone_costs_no_accepted_job_its_image(seed: int):
    world = quiet_hour(seed, Network(jitter_s=0.1, loss=0.05, duplicates=0.05))
    assert all(isinstance(call.end, ImageDelivered | JobRefused) for call in world.calls), world.outcomes()


@pytest.mark.parametrize("seed", SEEDS)
def test_reordering_alone_costs_no_second_execution(seed: int):
    world = quiet_hour(seed, Network(jitter_s=0.4, duplicates=0.2))
    assert set(world.executions.values()) == {1}
