"""The units: that they fit the programs which they start, and how much they let them do."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.router import FAREWELL_S
from broker.settings import BrokerSettings
from frontend.key_file import read_clients
from frontend.server import FLUSH_S
from frontend.settings import FrontendSettings
from gpu_worker.dealer import GONE_LIMIT_S
from gpu_worker.settings import WorkerSettings
from proto.actor import LATE_S
from proto.configuration import ComponentSettings, environment_name
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.service_watch import LOOK_S
from proto.timing import Timing

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")
LIMIT_S = 60.0
SLACK_S = 5.0
"""That a loaded host may need on top of what a component waits for."""


@dataclass(frozen=True)
class Component:
    unit: str
    module: str
    settings: type[ComponentSettings]
    stop_s: float
    """It may take so long to end when it is told to."""
    exposure_max: float

    @property
    def text(self) -> str:
        return (FOLDER / self.unit).read_text()

    def values(self, name: str) -> list[str]:
        return re.findall(rf"^{name}=(.*)$", self.text, re.MULTILINE)

    def value(self, name: str) -> str:
        (value,) = self.values(name)
        return value

    def seconds(self, name: str) -> float:
        match = re.fullmatch(r"([0-9]+)(s|min|h)", self.value(name))
        assert match is not None
        return int(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]]


FRONTEND_DRAIN_S = FrontendSettings.model_fields["drain_s"].default
COMPONENTS = (
    Component("flux-broker.service", "broker", BrokerSettings, FAREWELL_S, 1.5),
    Component("flux-frontend.service", "frontend", FrontendSettings, FRONTEND_DRAIN_S + FLUSH_S, 1.5),
    Component("flux-worker@.service", "gpu_worker", WorkerSettings, Timing().drain_s + GONE_LIMIT_S, 2.0),
)
each = pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.module)


@each
def test_it_starts_the_component(component: Component) -> None:
    assert component.value("ExecStart").endswith(
        f"/flux-server/bin/python -I -X faulthandler -m {component.module}"
    )


@each
def test_every_setting_exists(component: Component) -> None:
    known = {environment_name(component.settings, name) for name in component.settings.model_fields}
    set_in_unit = {assignment.partition("=")[0] for assignment in component.values("Environment")}
    own = {name for name in set_in_unit if name.startswith("FLUX_")}
    assert own
    assert own <= known
    (example,) = {file.rpartition("/")[2] for file in component.values("EnvironmentFile") if "@" not in file}
    text = (FOLDER / "examples" / example).read_text()
    named = re.findall(r"^#?([A-Z][A-Z_0-9]+)=", text, re.MULTILINE)
    assert named
    assert set(named) <= known


@each
def test_every_setting_of_the_examples_exists(component: Component) -> None:
    known = {environment_name(component.settings, name) for name in component.settings.model_fields}
    short = component.unit.removeprefix("flux-").partition(".")[0].rstrip("@")
    drop_in = (FOLDER / "examples" / f"curve-{short}.conf").read_text()
    named = re.findall(r"^Environment=([A-Z_]+)=", drop_in, re.MULTILINE)
    assert len(named) >= 3
    assert set(named) <= known


def test_the_example_of_api_keys_can_be_read() -> None:
    assert read_clients(FOLDER / "examples" / "api_keys.toml")


@each
def test_it_has_time_to_finish(component: Component) -> None:
    assert component.seconds("TimeoutStopSec") >= component.stop_s + SLACK_S
    assert component.value("KillMode") == "mixed", "an engine process is the worker's to end"


@each
def test_the_watchdog_is_fed_often_enough(component: Component) -> None:
    assert component.seconds("WatchdogSec") >= 10 * LOOK_S
    assert component.seconds("WatchdogSec") > LATE_S + SLACK_S, "a busy host is no reason"


@each
def test_only_what_starting_again_can_mend_is_started_again(component: Component) -> None:
    assert component.value("Restart") == "always"
    assert component.value("RestartPreventExitStatus") == str(EXIT_BAD_CONFIGURATION)
    starts_s = int(component.value("StartLimitBurst")) * component.seconds("RestartSec")
    assert starts_s < component.seconds("StartLimitIntervalSec"), "the limit could never be reached"


@each
def test_a_relaxed_protection_has_its_reason(component: Component) -> None:
    """What the broker may not do nobody may, unless a comment stands above the line that allows it."""
    lines = component.text.splitlines()
    own = ("UMask", "ReadWritePaths", "RestrictAddressFamilies")
    strict = [line for line in hardening_of(COMPONENTS[0]) if not line.startswith(own)]
    assert len(strict) > 25
    for line in strict:
        name = line.partition("=")[0]
        if line in lines or name == "SystemCallFilter":
            continue
        at = next((i for i, other in enumerate(lines) if other.startswith(f"{name}=")), None)
        above = lines[at - 1] if at is not None else next((x for x in lines if f"Not {name}" in x), "")
        assert above.startswith("# "), f"{component.unit} relaxes {line} without a reason"


def hardening_of(component: Component) -> list[str]:
    section = component.text.partition("# Nothing but its own files and sockets.\n")[2].partition("\n\n")[0]
    return [line for line in section.splitlines() if not line.startswith("#")]


@each
def test_users_are_made(component: Component) -> None:
    made = re.findall(r"^[ug] (\S+)", (FOLDER / "flux-server.sysusers").read_text(), re.MULTILINE)
    names = component.values("User") + component.values("Group") + component.values("SupplementaryGroups")
    assert set(names) <= set(made)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, with a Python that exists here, and an instance of the template."""
    folder = tmp_path_factory.mktemp("units")
    for file in FOLDER.iterdir():
        if file.suffix in {".service", ".target"}:
            text = file.read_text().replace("/usr/local/lib/flux-server/bin/python", sys.executable)
            (folder / file.name.replace("@.", "@0.")).write_text(text)
    return folder


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
def test_systemd_understands_every_line(units: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", *(str(file) for file in sorted(units.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@each
def test_what_it_could_do_to_its_host_is_bounded(component: Component, units: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    unit = units / component.unit.replace("@.", "@0.")
    done = subprocess.run([*command, str(unit)], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) <= component.exposure_max, done.stdout
