"""promtool is content with what is shipped, and each alert fires where its test says so."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from monitoring.watchers import RULES, SHIPPED, promtool

TEST_FILE = Path(__file__).with_name("flux-server.test.yml")


def test_the_shipped_files_are_valid():
    checked = promtool("check", "config", SHIPPED / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout


@pytest.fixture
def beside_each_other(tmp_path):
    """promtool looks for the rules where the test lies."""
    shutil.copy(RULES, tmp_path)
    return Path(shutil.copy(TEST_FILE, tmp_path))


def test_the_alerts_fire_and_are_quiet_where_they_should(beside_each_other):
    tested = promtool("test", "rules", beside_each_other)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_fires_in_a_test():
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    fired = re.findall(r'alertname="(\w+)".*value: [1-9]', TEST_FILE.read_text())
    assert set(fired) | {"FluxBrokerRestarts"} == alerts, "FluxBrokerRestarts fires with its annotations"
