"""What a seed decides: how big the world is, how bad, and in which ways.

Each seed leaves most kinds of fault out and has plenty of the others: what needs several of one kind in a row
is found that way, and would not be where everything is always a little wrong.
"""

import dataclasses
import random
from dataclasses import dataclass
from typing import Final

from simulation.engine import Temper
from simulation.network import Conditions
from simulation.world import LIMITS

from gpu_worker.limits import SessionLimits

FAULTS: Final = (
    "broker killed",
    "broker ends",
    "broker frozen",
    "worker killed",
    "worker frozen",
    "worker ends",
    "worker has a namesake",
    "frontend killed",
    "frontend frozen",
    "frontend ends",
    "cut towards the broker",
    "cut from the broker",
    "cut both ways",
    "engine killed",
    "idle engine killed",
    "killed in the midst of a step",
    "killed when it sends",
    "broker and worker killed",
    "broker killed when it starts a job, and its worker frozen",
)

FAULTS_OF_SEVERAL: Final = (
    "brokers end in turn",
    "brokers all killed",
    "broker lost for good",
    "broker cut from workers",
    "broker cut from frontends",
    "link cut towards the broker",
    "link cut from the broker",
    "link cut both ways",
)
"""Only where there are several brokers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    frontends: int
    workers: int
    queue_limit: int
    storm_s: float
    """With calls and faults; then everything is mended."""
    call_gap_s: float
    """Between two clients' arrivals, on average."""
    fault_gap_s: float
    faults: dict[str, float]
    """Weights."""
    comes_back: float
    """How likely what is missing is started again, each time that its supervisor looks."""
    calm: Conditions
    storm: Conditions
    squall_share: float
    """Of the time with `storm` conditions, the rest with `calm` ones."""
    temper: Temper
    limits: SessionLimits
    drift: float
    keys: int
    key_limit: int
    greedy: int
    """How many jobs more every other key may have, and the queue may hold."""
    keyed: float
    """Share of the clients with an idempotency key."""
    bad_prompts: float
    """Share of prompts that no engine survives, or has memory for."""
    steps_max: int
    through_codec: bool
    brokers: int = 1
    broker_comes_back: float = 1.0
    """As `comes_back`, for one of several brokers."""
    apart: float = 0.0
    """Share of the links that are cut for as long as the storm lasts."""


def plan_of(seed: int, brokers: int | None = None) -> Plan:
    """`brokers`: so many, and not as many as the seed would have."""
    plan = draw_plan(random.Random(f"plan {seed}"))
    # Of their own, so that a seed with one broker is the world that it was before there were several.
    rng = random.Random(f"brokers {seed}")
    drawn = rng.choice((1, 1, 2, 2, 2, 3))
    return _with_brokers(plan, drawn if brokers is None else brokers, rng)


def _with_brokers(plan: Plan, brokers: int, rng: random.Random) -> Plan:
    if brokers == 1:
        return plan
    kinds = [kind for kind in FAULTS_OF_SEVERAL if rng.random() < 0.3]
    weights = {kind: rng.choice((1.0, 1.0, 3.0)) for kind in kinds}
    if rng.random() < 0.5:  # Long jobs that many ask for, through frontends that use different brokers.
        frontends, steps_max = max(2, plan.frontends), max(30, plan.steps_max)
        plan = dataclasses.replace(plan, frontends=frontends, keyed=0.9, steps_max=steps_max)
    return dataclasses.replace(
        plan,
        brokers=brokers,
        broker_comes_back=rng.choice((1.0, 1.0, 0.1)),
        apart=rng.choice((0.0, 0.0, 0.15, 0.4)),
        # Sometimes nothing happens but to brokers and their links.
        faults=weights if kinds and rng.random() < 0.25 else plan.faults | weights,
    )


def draw_plan(rng: random.Random) -> Plan:
    """With one broker."""
    kinds = [kind for kind in FAULTS if rng.random() < 0.4] or [rng.choice(FAULTS)]
    slow = rng.random() < 0.4
    return Plan(
        frontends=rng.choice((1, 2, 2, 3)),
        workers=rng.choice((1, 2, 2, 3, 3, 4)),
        queue_limit=rng.choice((0, 0, 1, 3)),
        storm_s=rng.uniform(60.0, 120.0),
        call_gap_s=rng.choice((0.5, 1.0, 2.0)),
        fault_gap_s=rng.choice((3.0, 6.0, 12.0, 25.0)),
        faults={kind: rng.choice((1.0, 1.0, 3.0)) for kind in kinds},
        comes_back=rng.choice((0.3, 0.3, 0.03)),
        calm=Conditions(jitter_s=rng.choice((0.0, 0.003, 0.1))),
        storm=Conditions(
            delay_s=rng.choice((0.001, 0.05)),
            jitter_s=rng.choice((0.01, 0.1, 0.4)),
            loss=rng.choice((0.0, 0.02, 0.1, 0.3)),
            duplicates=rng.choice((0.0, 0.05, 0.2)),
            stragglers=rng.choice((0.0, 0.0, 0.02)),
        ),
        squall_share=rng.choice((0.0, 0.2, 0.5, 1.0)),
        temper=_draw_temper(rng, slow=slow),
        limits=_draw_limits(rng),
        drift=rng.choice((0.0, 0.005, 0.02)),
        keys=rng.choice((2, 5, 9)),
        key_limit=rng.choice((1, 1, 1, 2)),
        keyed=rng.choice((0.2, 0.6, 0.9)),
        bad_prompts=rng.choice((0.0, 0.0, 0.1, 0.3)),
        steps_max=rng.choice((6, 12, 20)),
        through_codec=rng.random() < 0.25,
        greedy=rng.choice((0, 0, 1, 4)),
    )


def _draw_temper(rng: random.Random, *, slow: bool) -> Temper:
    def now_and_then(likelihood: float) -> float:
        return likelihood if rng.random() < 0.3 else 0.0

    step_s = (0.4, 1.2) if slow else (0.1, 0.4)
    return Temper(
        load_s=(0.3, rng.choice((0.5, 3.0))),
        step_s=step_s,
        slow_step=now_and_then(0.02),
        crash=now_and_then(0.08),
        device=now_and_then(0.05),
        hang=now_and_then(0.04),
        out_of_memory=now_and_then(0.1),
        error=now_and_then(0.05),
        png_s=rng.choice(((0.02, 0.02), (0.02, 0.02), (0.0, 0.5), (0.5, 4.0))),
        png_error=now_and_then(0.05),
        png_hang=now_and_then(0.04),
        load_crash=now_and_then(0.3),
        load_hang=now_and_then(0.1),
    )


def _draw_limits(rng: random.Random) -> SessionLimits:
    """Sometimes so tight that outcomes give way."""
    if rng.random() < 0.8:
        return LIMITS
    return dataclasses.replace(
        LIMITS,
        held_bytes_max=rng.choice((300, 1000, LIMITS.held_bytes_max)),
        held_age_max_s=rng.choice((10.0, 40.0)),
        kept_max=rng.choice((1, 4, 256)),
        kept_age_max_s=rng.choice((5.0, 60.0)),
        engine_failures_max=rng.choice((2, 10)),
    )
