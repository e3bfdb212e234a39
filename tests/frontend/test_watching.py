"""Rules and dashboard ask only for what a frontend tells, and whoever is woken is told what to do."""

import json
import re
from pathlib import Path

import pytest
import yaml
from samples.metric_queries import names_asked, problems

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "flux-server.rules.yml").read_text())
EXAMPLE = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "flux-server.json").read_text())
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RECORDED = {rule["record"]: rule for rule in ALL_RULES if "record" in rule}


def sections() -> dict[str, str]:
    """The texts of the manual by the anchors of their headings."""
    parts = re.split(r"^#+ (.+)$", OPERATIONS, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-"): text
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


# --- The reader of queries ---------------------------------------------------------------------


def test_every_name_in_a_query_is_found():
    query = (
        'sum by (le, job) (rate(flux_a{x="y}"}[5m])) / on (job) group_left (z) b:flux_c:d == 1'
        " and flux_e > 0.5 unless up"
    )
    assert names_asked(query) == {"flux_a", "b:flux_c:d", "flux_e", "up"}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(flux_workers_total[5m])", "there is no metric flux_workers_total"),
        ("flux_broker_queue_wait_seconds > 1", "there is no metric flux_broker_queue_wait_seconds"),
        ("sum by (worker_id) (flux_worker_state)", "no metric has the label worker_id"),
        ('flux_worker_state{gpu="x"}', "flux_worker_state has no label gpu"),
        ('flux_worker_state{state=~"lost|dead"}', "state of flux_worker_state is never dead"),
        ('flux_worker_state{state!="silent"}', "state of flux_worker_state is never silent"),
    ],
)
def test_what_is_asked_for_in_vain_is_found(query, problem):
    assert list(problems(query)) == [problem]


# --- Rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_there_is(rule):
    assert not list(problems(rule["expr"], RECORDED))


def test_what_is_recorded_is_used():
    asked = set().union(*(names_asked(rule["expr"]) for rule in ALL_RULES))
    assert asked >= set(RECORDED)


def test_names_are_unique():
    assert len(ALERTS) + len(RECORDED) == len(ALL_RULES)


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert):
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    file, _, anchor = notes["runbook"].partition("#")
    assert file == "docs/operations.md"
    assert f"| `{alert['alert']}` |" in sections()[anchor]


def test_the_manual_names_no_other_alert():
    assert set(re.findall(r"^\| `(Flux\w+)` \|", OPERATIONS, re.MULTILINE)) == set(ALERTS)


def test_the_example_has_the_job_that_the_rules_look_for():
    (wanted,) = {match for rule in ALERTS.values() for match in re.findall(r'up{job=~"(.+?)"}', rule["expr"])}
    assert [job["job_name"] for job in EXAMPLE["scrape_configs"]] == ["flux"]
    assert all(re.fullmatch(wanted, name) for name in ("flux", "flux-staging"))
    assert not re.fullmatch(wanted, "fluxcapacitor")
    assert EXAMPLE["rule_files"] == ["flux-server.rules.yml"]


# --- Dashboard ---------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_what_there_is(panel):
    queries = [target["expr"] for target in panel["targets"]]
    assert queries
    for query in queries:
        assert names_asked(query)
        assert not list(problems(query))
        assert query.count('job=~"$job"') == len(re.findall(r"\bflux_\w+|\bprocess_\w+|\bup\b", query))


def test_the_dashboard_is_of_no_one_source():
    """It can be imported as it is: the data source is asked for, and no id of another Grafana is in it."""
    assert DASHBOARD["id"] is None
    used = {panel["datasource"]["uid"] for panel in PANELS}
    assert used == {"${datasource}"}
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "job"}
    (asked,) = re.findall(r"label_values\((\w+), job\)", variables["job"]["query"])
    assert not list(problems(asked))


def test_panels_have_a_place_and_a_number_of_their_own():
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
