"""The stack with keys: who is listed draws, who is not gets nothing, and lists change while it runs."""

import signal
from pathlib import Path

import pytest
from processes.stack import Stack, content_of
from processes.test_cannot_start import run
from samples.curve import key_folder

from proto.exit_status import EXIT_BAD_CONFIGURATION


def test_keys_come_and_go_without_a_restart(tmp_path: Path) -> None:
    with Stack(tmp_path, over_tcp=True, encrypted=True) as stack:
        stack.start()
        content_of(stack.client().draw("a cat"))
        keys = stack.curve
        assert keys is not None

        stranger = stack.start_worker("worker-2", curve_key_file=keys.secret_file("stranger"))
        denied = stranger.until_event("no connection to broker")
        assert denied["own_key"] == keys.pairs["stranger"].public
        turned_away = stack.broker.until_event("peer turned away", role="worker")
        assert turned_away["why"] == "its key is not in authorized_keys_file"

        keys.authorize(worker="worker", frontend="frontend", stranger="worker")
        stack.broker.send(signal.SIGHUP)
        stack.until_state("worker-2", "ready")

        keys.authorize(frontend="frontend", stranger="worker")
        stack.broker.send(signal.SIGHUP)
        stack.broker.until_event("keys read again", removed=["worker"])
        stack.until_state("worker-1", "lost")
        stack.workers["worker-1"].until_event("no connection to broker")
        stack.client().draw("a dog")

        log = "".join(each.log_text() for each in (stack.broker, stack.frontend, *stack.workers.values()))
        assert not [name for name, pair in keys.pairs.items() if pair.secret in log]


@pytest.mark.parametrize("package", ["broker", "gpu_worker", "frontend"])
def test_keys_that_others_may_read_are_named_in_one_line(tmp_path: Path, package: str) -> None:
    keys = key_folder(tmp_path)
    keys.secret_file("broker").chmod(0o644)
    prefix = {"broker": "FLUX_BROKER_", "gpu_worker": "FLUX_WORKER_", "frontend": "FLUX_FRONTEND_"}[package]
    environment = {
        "API_KEYS": "k",
        f"{prefix}CURVE_KEY_FILE": str(keys.secret_file("broker")),
        **(
            {f"{prefix}AUTHORIZED_KEYS_FILE": str(keys.authorized_keys)}
            if package == "broker"
            else {f"{prefix}KNOWN_BROKERS_FILE": str(keys.known_brokers)}
        ),
    }
    status, lines = run(tmp_path, package, **environment)
    assert status == EXIT_BAD_CONFIGURATION
    assert lines == [
        f"{package}: {keys.secret_file('broker')}: others may read or change it (mode 0644): chmod 0600"
    ]
