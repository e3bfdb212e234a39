"""One seed from its beginning to its end."""

import traceback
from dataclasses import dataclass

from simulation.aftermath import Aftermath
from simulation.broken import InvariantBroken
from simulation.clients import Clients
from simulation.faults import Faults
from simulation.invariants import RAISED
from simulation.plan import Plan, plan_of
from simulation.stats import Stats
from simulation.world import World


@dataclass(frozen=True, slots=True)
class Drill:
    """How a seed went."""

    seed: int
    brokers: int
    stats: Stats
    broken: str | None
    """The invariant that did not hold."""
    detail: str
    story: list[str]


def drill(seed: int, brokers: int | None = None, *, is_told: bool = False, self_checks: bool = True) -> Drill:
    """Run the world of this seed, with its story or (much faster) without.

    `brokers`: so many, whatever the seed says.
    """
    plan = plan_of(seed, brokers)
    world = make_world(seed, plan, is_told=is_told, self_checks=self_checks)
    broken, detail = None, ""
    try:
        _live(world, plan)
    except InvariantBroken as violation:
        broken, detail = violation.invariant, violation.detail
    except Exception as error:  # noqa: BLE001 - whatever a core raises is a finding
        broken, detail = RAISED, "".join(traceback.format_exception(error)[-3:])
    world.stats.world_s = world.now
    return Drill(seed, plan.brokers, world.stats, broken, detail, world.story.lines)


def make_world(seed: int, plan: Plan, *, is_told: bool, self_checks: bool) -> World:
    return World(
        seed,
        conditions=plan.calm,
        limits=plan.limits,
        temper=plan.temper,
        queue_limit=plan.queue_limit + plan.greedy,
        drift=plan.drift,
        through_codec=plan.through_codec,
        is_told=is_told,
        self_checks=self_checks,
        brokers=plan.brokers,
    )


def _live(world: World, plan: Plan) -> None:
    faults, clients = Faults(world, plan), Clients(world, plan)
    for n in range(plan.frontends):
        world.add_frontend(f"f{n}")
    for n in range(plan.workers):
        world.add_worker(f"w{n}")
    world.run_for(world.rng.uniform(0.0, 6.0))
    clients.come()
    faults.come()
    world.run_for(plan.storm_s)
    clients.are_open = False
    faults.mend()
    world.tell("world", "is whole again")
    Aftermath(world).check()
