"""The three cores over a network that loses, delays, doubles and reorders, and nothing else goes wrong."""

import pytest
from simulation.network import LOSSY, Conditions
from simulation.world import World

from frontend.actions import ImageDelivered, JobRefused

SEEDS = range(6)


def quiet_hour(seed: int, conditions: Conditions) -> World:
    """Forty calls of four keys, one a second, to three workers."""
    world = World(seed, conditions=conditions)
    frontend = world.add_frontend("frontend")
    for n in range(3):
        world.add_worker(f"worker-{n}")
    world.run_for(8.0)
    for n in range(40):
        world.ask(frontend, f"key-{n % 4}", f"prompt {n}", steps=4, seed=n)
        world.run_for(1.0)
    world.run_for(61.0)
    assert world.stats.endings["image"] >= 20, world.stats.endings
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_alone_costs_no_accepted_job_its_image(seed: int):
    world = quiet_hour(seed, Conditions(jitter_s=0.1, loss=0.05, duplicates=0.05))
    assert all(isinstance(call.end, ImageDelivered | JobRefused) for call in world.calls), world.told()


@pytest.mark.parametrize("seed", SEEDS)
def test_reordering_alone_costs_no_second_execution(seed: int):
    world = quiet_hour(seed, Conditions(jitter_s=0.4, duplicates=0.2))
    assert set(world.checker.begun_of.values()) == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_through_the_worst_of_networks_every_call_ends(seed: int):
    world = quiet_hour(seed, LOSSY)
    assert not world.checker.open_calls, world.told()
