"""The metrics in Prometheus' formats: names, units, labels, and what is counted once."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse
from samples.metric_queries import SAMPLE_SUFFIXES, problems

import broker
from frontend.api_keys import KeyProblem
from frontend.brokers import Standing
from frontend.call_tally import CallTally
from frontend.cluster import BrokerPicture, ServicePicture
from frontend.metric_catalog import CATALOG, UNITS, Kind
from frontend.metric_families import BROKER_REFUSALS, BROKER_SHED, OWN_REFUSALS, FrontendPicture, families
from frontend.worker_counters import WorkerCounters
from proto.failures import RefusalReason
from proto.histogram import Histogram
from proto.messages import (
    Distribution,
    GpuReading,
    ModelCard,
    Readings,
    Snapshot,
    WorkerPhase,
    WorkerReport,
    WorkerRow,
)

MIB = 1024 * 1024
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def gpu(uuid="GPU-1", used_mb=10.0):
    return GpuReading(
        uuid=uuid,
        name="H200",
        memory_used_mb=used_mb,
        memory_total_mb=1000.0,
        utilization_percent=50.0,
        temperature_celsius=60.0,
    )


def readings(cpu_percent=25.0, gpus=(), age_ms=0):
    return Readings(cpu_percent=cpu_percent, ram_used_mb=2.0, ram_total_mb=4.0, gpus=gpus, age_ms=age_ms)


def row(worker="w", state="ready", report_age_ms=0, **report):
    fields = {"host": "h", "incarnation": bytes(16), "seq": 1, "phase": WorkerPhase.READY}
    return WorkerRow(
        report=WorkerReport(worker_id=worker, **{**fields, **report}),
        state=state,
        report_age_ms=report_age_ms,
    )


def waits(*values):
    histogram = Histogram((1.0, 5.0))
    for value in values:
        histogram.observe(value)
    return histogram.distribution()


def snapshot(*rows, broker_id="b", epoch=b"1", **changes):
    fields = dict.fromkeys(("in_flight", "queued", "completed", "failed", "cancelled"), 0)
    fields |= {"rejected": {}, "queue_wait_s": waits(), "step_s": waits()}
    return Snapshot(broker_id=broker_id, epoch=epoch * 16, echo=1, workers=rows, **{**fields, **changes})


def of(told, *, standing=Standing.LIVE, endpoint="tcp://b:1", age_s=0.0):
    broker_id = "" if told is None else told.broker_id
    return BrokerPicture(
        broker_id=broker_id,
        endpoint=endpoint,
        standing=standing,
        gets_calls=True,
        snapshot=told,
        age_s=age_s,
    )


def own(tally=None):
    return FrontendPicture(
        version="1.2.3",
        grpc_up=True,
        ready=False,
        open_calls=4,
        calls=(tally or CallTally()).numbers(),
        refused_keys={KeyProblem.WRONG.value: 3},
    )


def full():
    model = ModelCard(
        engine="flux",
        name='FLUX.1-dev "é"\n',
        precision="bf16",
        device="cuda:0",
        warning="slow",
        revision="0ef5fff",
    )
    busy = row("w1", "busy", readings=readings(gpus=(gpu(),)), model=model, prompt_cache_hits=2**40)
    loading = row("w2", "loading", percent=40, engine_restarts=2)
    told = snapshot(busy, loading, completed=2**50, queue_wait_s=waits(0.5, 7.0), step_s=waits(0.25))
    tally = CallTally()
    tally.call_ended("Generate", "OK", 2.5)
    tally.image_sent(100_000)
    return own(tally), ServicePicture(brokers=(of(told), of(None, standing=Standing.UNHEARD, endpoint="e2")))


def registry(own_picture, service, counters=None):
    made = CollectorRegistry()
    made.register(families(own_picture, service, counters or WorkerCounters()))
    return made


def samples(*brokers, counters=None, **service):
    """Values by name and labels."""
    made = registry(own(), ServicePicture(brokers=brokers, **service), counters)
    found = {}
    for family in made.collect():
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found, "the same series twice"
            found[key] = sample.value
    return found


# --- The form ----------------------------------------------------------------------------------


def test_every_metric_of_the_catalog_is_there_with_its_type_and_labels():
    text = generate_latest(registry(*full())).decode()
    parsed = {family.name: family for family in parse(text)}
    for metric in CATALOG:
        is_gauge = metric.kind is Kind.INFO
        family = parsed.pop(
            metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name
        )
        assert family.type == ("gauge" if is_gauge else metric.kind), metric.name
        assert family.documentation == metric.meaning
        for sample in family.samples:
            assert sample.name.removeprefix(metric.name) in SAMPLE_SUFFIXES[metric.kind], sample.name
            assert set(sample.labels) - {"le"} == set(metric.labels)
    assert parsed == {}, "metrics that the catalog does not know"


def test_open_metrics_says_the_same():
    text = openmetrics.exposition.generate_latest(registry(*full())).decode()
    parsed = {family.name: family for family in parse_open_metrics(text)}
    assert parsed["flux_worker"].type == "info"
    assert parsed["flux_broker_queue_wait_seconds"].unit == "seconds"
    assert parsed["flux_worker_prompt_cache_hits"].samples[0].value == 2**40
    values = {(s.name, *sorted(s.labels.items())): s.value for f in parsed.values() for s in f.samples}
    plain = parse(generate_latest(registry(*full())).decode())
    assert values == {(s.name, *sorted(s.labels.items())): s.value for f in plain for s in f.samples}


@pytest.mark.parametrize("metric", CATALOG, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric):
    assert re.fullmatch(r"flux(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.name.endswith("_info") == (metric.kind is Kind.INFO)
    assert not re.search(
        r"_(count|sum|bucket|created|ms|mb|percent|gauge|counter|histogram)(_|$)", metric.name
    )
    assert all(unit == metric.unit for unit in UNITS if f"_{unit}" in metric.name), "the unit stands last"
    assert (metric.kind is not Kind.HISTOGRAM) or metric.unit
    assert metric.meaning.endswith(".")
    assert set(metric.labels) & {"le", "job", "instance", "quantile"} == set(), "Prometheus' own labels"
    assert not [label for label in metric.labels if label.startswith("__")]


def test_names_are_unique():
    names = [metric.name for metric in CATALOG]
    assert len(names) == len(set(names))


def test_the_table_in_the_documents_is_the_catalog():
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.meaning} |" for m in CATALOG]
    written = [line for line in PAGE.read_text().splitlines() if line.startswith("| `flux_")]
    assert written == rows, "docs/metrics.md is to have:\n" + "\n".join(rows)


def test_the_queries_in_the_documents_ask_for_what_there_is():
    cells = re.findall(r"^\| [^`]+ \| `(.+\(.+)` \|$", PAGE.read_text(), re.MULTILINE)
    queries = [cell.replace("\\|", "|") for cell in cells]
    assert len(queries) > 5
    assert not [problem for query in queries for problem in problems(query)]


# --- The values --------------------------------------------------------------------------------


def test_base_units():
    found = samples(
        of(snapshot(row(readings=readings(gpus=(gpu(),), age_ms=250), report_age_ms=500)), age_s=2.0)
    )
    assert found["flux_host_cpu_ratio", "h"] == 0.25
    assert found["flux_host_memory_used_bytes", "h"] == 2 * MIB
    assert found["flux_host_memory_size_bytes", "h"] == 4 * MIB
    assert found["flux_gpu_memory_used_bytes", "GPU-1", "h"] == 10 * MIB
    assert found["flux_gpu_utilization_ratio", "GPU-1", "h"] == 0.5
    assert found["flux_worker_report_age_seconds", "w"] == 2.5
    assert found["flux_host_reading_age_seconds", "h"] == 2.75


def test_a_histogram_is_cumulative():
    found = samples(of(snapshot(queue_wait_s=waits(0.5, 1.0, 3.0, 70.0))))
    name = "flux_broker_queue_wait_seconds"
    buckets = [found[f"{name}_bucket", "b", bound] for bound in ("1.0", "5.0", "+Inf")]
    assert buckets == [2, 3, 4]
    assert (found[f"{name}_count", "b"], found[f"{name}_sum", "b"]) == (4, 74.5)


@pytest.mark.parametrize(
    "told",
    [
        Distribution(bounds=(), counts=(), sum=0.0),
        Distribution(bounds=(5.0, 1.0, 1.0), counts=(1, 2), sum=0.0),
        Distribution(bounds=(1.0,), counts=(1, 2, 3, 4), sum=0.0),
        Distribution(bounds=(1.0, 5.0, 10.0), counts=(1,), sum=0.0),
    ],
)
def test_nonsense_of_a_broker_costs_only_its_own_numbers(told):
    service = ServicePicture(brokers=(of(snapshot(row(), queue_wait_s=told)),))
    text = openmetrics.exposition.generate_latest(registry(own(), service)).decode()
    parsed = {family.name: family for family in parse_open_metrics(text)}
    assert parsed["flux_worker_state"].samples
    counts = [s.value for s in parsed["flux_broker_queue_wait_seconds"].samples if s.name.endswith("_count")]
    assert counts == [sum(told.counts)]


def test_counters_are_there_before_they_count():
    found = samples(of(snapshot()))
    for reason in BROKER_REFUSALS:
        assert found["flux_broker_refused_jobs_total", "b", reason] == 0
    for reason in OWN_REFUSALS:
        assert found["flux_frontend_refused_jobs_total", reason] == 0
    assert found["flux_broker_jobs_total", "b", "completed"] == 0
    assert found["flux_frontend_refused_keys_total", "API_KEY_WRONG"] == 3


def test_what_this_version_does_not_know_is_other():
    strange = {f"kind {n}": n for n in range(50)}
    refused = {"CLIENT_BUSY": 3, "TOO_BEAUTIFUL": 4, "TOO_LATE": 5}
    told = snapshot(row(state="levitating"), shed={"jobs": 2, **strange}, rejected=refused)
    found = samples(of(told))
    assert found["flux_broker_refused_jobs_total", "b", "CLIENT_BUSY"] == 3
    assert found["flux_broker_refused_jobs_total", "b", "other"] == 9
    assert found["flux_broker_shed_total", "b", "jobs"] == 2
    assert found["flux_broker_shed_total", "b", "other"] == sum(range(50))
    assert found["flux_worker_state", "w", "other"] == 1
    assert not [key for key in found if {"levitating", "kind 7", "TOO_LATE"} & {*key}]


def test_exactly_one_state_is_one():
    found = samples(of(snapshot(row(state="quarantined"))))
    states = {key[2]: value for key, value in found.items() if key[0] == "flux_worker_state"}
    assert {state for state, value in states.items() if value} == {"quarantined"}
    standings = [key for key, value in found.items() if key[0] == "flux_frontend_broker_state" and value]
    assert standings == [("flux_frontend_broker_state", "b", "tcp://b:1", "live")]


def test_no_job_key_or_prompt_is_a_label():
    labels = {label for metric in CATALOG for label in metric.labels}
    assert not labels & {"job_id", "key", "client", "prompt", "seed", "execution"}


def test_a_gpu_and_a_host_count_once_by_their_freshest_reading():
    old = row("w1", readings=readings(90.0, (gpu(used_mb=1.0),)), report_age_ms=4000)
    new = row("w2", readings=readings(20.0, (gpu(used_mb=7.0),)))
    found = samples(of(snapshot(old, new)))
    assert found["flux_host_cpu_ratio", "h"] == 0.2
    assert found["flux_gpu_memory_used_bytes", "GPU-1", "h"] == 7 * MIB


def test_what_a_lost_worker_read_is_not_shown():
    found = samples(of(snapshot(row("gone", "lost", readings=readings(gpus=(gpu(),))))))
    assert found["flux_worker_state", "gone", "lost"] == 1
    assert not [key for key in found if key[0].startswith(("flux_host", "flux_gpu"))]


def test_progress_is_shown_while_a_model_is_loaded():
    loading = samples(of(snapshot(row(state="loading", percent=40))))
    assert loading["flux_worker_loaded_ratio", "w"] == 0.4
    assert ("flux_worker_loaded_ratio", "w") not in samples(of(snapshot(row())))


# --- Several brokers ---------------------------------------------------------------------------


def test_each_broker_counts_for_itself():
    found = samples(
        of(snapshot(completed=3)), of(snapshot(broker_id="c", epoch=b"2", completed=4), endpoint="tcp://c:1")
    )
    assert found["flux_broker_jobs_total", "b", "completed"] == 3
    assert found["flux_broker_jobs_total", "c", "completed"] == 4


def test_a_worker_that_two_brokers_hear_is_shown_once():
    found = samples(
        of(snapshot(row(state="lost", report_age_ms=9000))),
        of(snapshot(row(state="busy"), broker_id="c", epoch=b"2"), endpoint="tcp://c:1"),
    )
    assert found["flux_worker_state", "w", "busy"] == 1
    assert found["flux_worker_state", "w", "lost"] == 0


def test_what_a_silent_broker_counted_stays_and_what_went_on_there_does_not():
    silent = of(snapshot(row("gone"), completed=3, in_flight=1), standing=Standing.SILENT, age_s=60.0)
    found = samples(silent, of(snapshot(broker_id="c", epoch=b"2"), endpoint="tcp://c:1"))
    assert found["flux_broker_jobs_total", "b", "completed"] == 3
    assert ("flux_broker_running_jobs", "b") not in found
    assert ("flux_worker_state", "gone", "ready") not in found
    assert found["flux_frontend_broker_picture_age_seconds", "b", "tcp://b:1"] == 60.0


def test_two_endpoints_of_one_broker_are_one_broker():
    old, new = snapshot(completed=3), snapshot(completed=4)
    found = samples(of(old, standing=Standing.SILENT, age_s=9.0), of(new, endpoint="tcp://also-b:1"))
    assert found["flux_broker_jobs_total", "b", "completed"] == 4
    found = samples(of(new, standing=Standing.SILENT), of(old, endpoint="tcp://also-b:1", age_s=9.0))
    assert found["flux_broker_jobs_total", "b", "completed"] == 4
    assert found["flux_broker_running_jobs", "b"] == 0, "it is alive, by whichever endpoint"


def test_two_brokers_with_one_name_are_told_apart():
    found = samples(of(snapshot(completed=3)), of(snapshot(epoch=b"2", completed=4), endpoint="tcp://c:1"))
    assert found["flux_broker_jobs_total", "b", "completed"] == 3
    assert found["flux_broker_jobs_total", "b at tcp://c:1", "completed"] == 4


def test_counters_of_a_worker_do_not_go_back_with_its_broker():
    counters = WorkerCounters()
    samples(of(snapshot(row(prompt_cache_hits=9))), counters=counters)
    later = of(snapshot(row(prompt_cache_hits=8), broker_id="c", epoch=b"2"), endpoint="tcp://c:1")
    found = samples(of(None, standing=Standing.SILENT), later, counters=counters)
    assert found["flux_worker_prompt_cache_hits_total", "w"] == 9


def test_without_any_broker_there_is_a_page():
    found = samples()
    assert found["flux_frontend_ready",] == 0
    assert not [key for key in found if not key[0].startswith(("flux_frontend", "flux_build"))]


# --- What the components agree on --------------------------------------------------------------


def test_the_kinds_that_a_broker_sheds_are_known():
    source = "".join(file.read_text() for file in Path(broker.__file__).parent.glob("*.py"))
    kinds = set(re.findall(r"\.shed\(\"(\w+)\"\)", source))
    assert kinds, "nothing found: is the pattern still right?"
    by_shell = {
        "worker_violations",
        "frontend_violations",
        "turned_away",
        "unread_reports",
        "unsent_messages",
        "unsent_spans",
    }
    assert set(BROKER_SHED) == kinds | by_shell


def test_every_refusal_has_its_place():
    not_of_jobs = {
        RefusalReason.WORKER_BUSY,
        RefusalReason.WORKER_NOT_READY,
        RefusalReason.WORKER_DRAINING,
        RefusalReason.STALE_START,
        RefusalReason.VERSION_MISMATCH,
        RefusalReason.SUPERSEDED,
    }
    assert {*BROKER_REFUSALS, *OWN_REFUSALS} | not_of_jobs == set(RefusalReason)
