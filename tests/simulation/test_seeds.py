"""The big simulation, a little of it: `python -m simulation` runs more (CONTRIBUTING.md)."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation.drill import drill
from simulation.invariants import INVARIANTS
from simulation.stats import Stats

HERE = Path(__file__).parent
SEEDS = (*range(1, 20), 26)
OTHER_HASHES = ("0", "1")


def failed_once() -> list[tuple[int, int]]:
    """With their number of brokers."""
    lines = (HERE / "failed_seeds.txt").read_text().splitlines()
    columns = [line.split() for line in lines if line and not line.startswith("#")]
    return [(int(seed), int(brokers)) for seed, brokers, *_ in columns]


def run(seed: int, brokers: int | None = None) -> Stats:
    done = drill(seed, brokers)
    if done.broken is None:
        return done.stats
    told = drill(seed, brokers, is_told=True)
    story = "\n".join(told.story[-80:])
    replay = f"PYTHONPATH=tests python -m simulation --seed {seed} --brokers {done.brokers}"
    pytest.fail(f"{story}\n{done.broken}: {done.detail}\nreplay: {replay}", pytrace=False)


@pytest.mark.parametrize(("seed", "brokers"), failed_once())
def test_a_seed_that_failed_once_does_not_fail_again(seed: int, brokers: int):
    run(seed, brokers)


def test_some_seeds_hold_every_invariant_and_put_each_to_the_test():
    total = Stats()
    for seed in SEEDS:
        total.add(run(seed))
    untested = [name for name in INVARIANTS if not total.checked[name]]
    assert not untested, f"never put to the test: {untested}"
    assert total.delivered > 100


def story_of(seed: int) -> str:
    return "\n".join(drill(seed, is_told=True).story)


def test_the_same_seed_gives_the_same_story():
    assert story_of(7) == story_of(7)


def test_a_told_world_is_the_same_world():
    assert drill(7, is_told=True).stats == drill(7).stats


def test_the_order_of_hashes_changes_nothing():
    code = "import hashlib; from simulation.test_seeds import story_of; "
    code += "print(hashlib.sha256(story_of(8).encode()).hexdigest())"
    stories = set()
    for hash_seed in OTHER_HASHES:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        stories.add(done.stdout.strip())
    assert stories == {hashlib.sha256(story_of(8).encode()).hexdigest()}
