"""One machine for all tests of this folder, with the service installed and running."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd.machine import UNITS, WORKER_REQUIREMENTS, Machine, require_means, root_filesystem

SOURCE = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".tox", ".venv", "build", "dist", "hub", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis"
)
WHEELS_LIMIT_S = 600.0


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Kept for the next run by whoever names a folder for it."""
    require_means()
    return Path(os.environ.get("FLUX_SYSTEMD_CACHE") or tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def source(cache, tmp_path_factory) -> Path:
    """The source with all wheels: what a packager would bring to the machine."""
    folder = tmp_path_factory.mktemp("packages") / "source"
    shutil.copytree(SOURCE, folder, ignore=NOT_SOURCE)
    wheels, kept = folder / "build" / "wheels", cache / "wheels"
    if kept.exists():
        shutil.copytree(kept, wheels)
    wanted = ("wheels", f"PYTHON={sys.executable}", WORKER_REQUIREMENTS, "TRACING=1")
    command = ["make", "-C", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WHEELS_LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder / ".venv")
    shutil.copytree(wheels, kept, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def host(cache, source, tmp_path_factory) -> Iterator[Machine]:
    """Booted, and nothing of ours on it."""
    archive = root_filesystem(cache)
    with Machine(tmp_path_factory.mktemp("machine") / "root", archive, source).booted() as machine:
        yield machine


@pytest.fixture(scope="session")
def installed(host) -> Machine:
    """Installed, with settings, not started."""
    host.make("install", WORKER_REQUIREMENTS)
    settings = host.path("/etc/flux-server")
    host.write_api_keys("client1", "client2")
    with (settings / "worker.env").open("a") as file:
        file.write("FLUX_WORKER_ENGINE=fake\nFLUX_WORKER_FAKE_STEP_S=0.2\n")
    return host


@pytest.fixture
def service(installed) -> Iterator[Machine]:
    """Enabled, and running with the settings of `installed`."""
    installed.systemctl("enable", "--quiet", "flux-server.target", *UNITS)
    installed.systemctl("start", "flux-server.target")
    installed.until_drawn()
    yield installed
    for unit in UNITS:
        if installed.remove_drop_ins(unit):
            installed.systemctl("stop", unit)
    installed.systemctl("reset-failed")
