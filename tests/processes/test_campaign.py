"""A short campaign on one host; the long one, with partitions, is `tox -e campaign`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaign.runner import Campaign, Plan
from campaign.service import OF_WORKERS, Service
from processes.stack import Stack

KEYS = {"client-1": ("a", "b", "c"), "client-2": ("d", "e", "f")}
PLAN = Plan(jobs=20, faults=24, seed=1, burst=40, spacing_s=0.2, duration_scale=0.25, calm_s=1.0)


@pytest.mark.timeout(300)
def test_nothing_is_lost_while_processes_are_killed_and_frozen(tmp_path: Path) -> None:
    every_key = [key for own in KEYS.values() for key in own]
    with Stack(tmp_path, keys=every_key, brokers=2, time_scale=0.5) as stack:
        for broker in stack.brokers:
            broker.settings["queue_limit"] = len(every_key)
        stack.start(workers=2, **{**OF_WORKERS, "quarantine_s": 1})
        service = Service.on_this_host(stack, tmp_path, PLAN.seed, KEYS)
        ledger = Campaign(service, PLAN, tmp_path).run()
    assert_innocent(ledger)


def assert_innocent(ledger: Path) -> None:
    """By the judgement of a program that shares nothing with what was judged."""
    command = [sys.executable, "-P", "-m", "campaign.judge", str(ledger)]
    path = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.defpath}
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
