"""promtool is content with what is shipped, and each alert fires where its test says so."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from monitoring.watchers import RULES, SHIPPED, promtool

SCALING = SHIPPED.parent / "kubernetes" / "autoscaled" / "scaling.yaml"
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


def test_workers_are_scaled_by_the_work_however_many_frontends_tell_of_it(tmp_path):
    """Two frontends, scraped as Pods: each has labels of its own."""
    query = yaml.safe_load(SCALING.read_text())["spec"]["triggers"][0]["metadata"]["query"]
    rules = {"groups": [{"name": "scaling", "rules": [{"record": "work", "expr": query}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    grows_by = {
        'flux_broker_running_jobs{broker="b",': "2+0x60",
        'flux_broker_queued_jobs{broker="b",': "1+0x60",
        # 0.1 a second, each for 10 s
        'flux_broker_refused_jobs_total{broker="b",reason="ALL_WORKERS_BUSY",': "0+6x60",
        'flux_frontend_request_seconds_sum{code="OK",': "0+100x60",
        'flux_frontend_request_seconds_count{code="OK",': "0+10x60",
    }
    series = [
        {"series": f'{name}job="flux",instance="{each}",pod="frontend-{each}"}}', "values": values}
        for each in ("a", "b")
        for name, values in grows_by.items()
    ]
    expected = {"expr": "work", "eval_time": "60m", "exp_samples": [{"labels": "work", "value": 2 + 1 + 1}]}
    case = {"interval": "1m", "input_series": series, "promql_expr_test": [expected]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [case]}))
    tested = promtool("test", "rules", tmp_path / "test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr
