"""The picture of the service: what is summed, what is left out, and that both formats agree."""

import asyncio
import dataclasses
import json
import threading
from dataclasses import asdict

import pytest

import image_gen_pb2
from frontend import service
from frontend.brokers import Standing
from frontend.cluster import BrokerPicture, ServicePicture
from frontend.status import HostLoad, host_load, metrics_document, metrics_response, service_status
from proto.codec import decode, encode
from proto.failures import RefusalReason
from proto.messages import (
    MAX_FLOAT,
    GpuReading,
    JobClaim,
    JobPhase,
    ModelCard,
    Readings,
    RunningExecution,
    Snapshot,
    WorkerPhase,
    WorkerReport,
    WorkerRow,
)

THIS_HOST = HostLoad(cpu_percent=11.0, ram_used_mb=22.0, gpu_used_mb=0.0)
JOB_ID = bytes(range(16))


def gpu(uuid, used_mb):
    return GpuReading(
        uuid=uuid,
        name="H200",
        memory_used_mb=used_mb,
        memory_total_mb=140_000.0,
        utilization_percent=50.0,
        temperature_celsius=60.0,
    )


def readings(cpu_percent, ram_used_mb, gpus=(), age_ms=0):
    return Readings(
        cpu_percent=cpu_percent, ram_used_mb=ram_used_mb, ram_total_mb=64_000.0, gpus=gpus, age_ms=age_ms
    )


def row(worker_id, host, *, state="ready", taken=None, running=None, report_age_ms=0, **report):
    return WorkerRow(
        report=WorkerReport(
            worker_id=worker_id,
            incarnation=bytes(16),
            seq=1,
            host=host,
            phase=WorkerPhase.READY,
            readings=taken,
            running=running,
            **report,
        ),
        state=state,
        report_age_ms=report_age_ms,
    )


def picture(*rows, age_s=0.0, broker_alive=True, **counters):
    numbers = {"in_flight": 1, "queued": 2, "completed": 3, "failed": 4, "cancelled": 5, "rejected": {}}
    snapshot = Snapshot(broker_id="b", epoch=bytes(16), echo=1, workers=rows, **{**numbers, **counters})
    return ServicePicture(brokers=(broker(snapshot, age_s=age_s, alive=broker_alive),))


def broker(snapshot, *, age_s=0.0, alive=True, broker_id="b", gets_calls=True):
    standing = Standing.LIVE if alive else Standing.SILENT
    return BrokerPicture(
        broker_id=broker_id,
        endpoint=f"tcp://{broker_id}:5560",
        standing=standing,
        gets_calls=gets_calls,
        snapshot=snapshot,
        age_s=age_s,
    )


def running():
    claim = JobClaim(job_id=JOB_ID, key_fingerprint="f", parameters_digest=bytes(16), remaining_ms=1000)
    return RunningExecution(execution_id=bytes(16), claim=claim, phase=JobPhase.STEP, step=3, steps=20)


def full_picture():
    model = ModelCard(
        engine="flux",
        name="FLUX.1-dev",
        precision="bf16",
        device="cuda:0",
        warning="slow",
        revision="0ef5fff",
        quantization="hqq",
        memory_plan="4bit",
        versions="torch 2.13.0",
    )
    return picture(
        row(
            "w1",
            "a",
            state="busy",
            taken=readings(40.0, 100.0, (gpu("g1", 10.0),)),
            running=running(),
            model=model,
            prompt_cache_hits=2**40,
            prompt_cache_misses=3,
        ),
        row(
            "w2",
            "b",
            state="loading",
            activity="reading weights",
            percent=40,
            engine_restarts=2,
            outcomes_shed=2**33,
        ),
        rejected={RefusalReason.CLIENT_BUSY: 7, RefusalReason.ALL_WORKERS_BUSY: 2**40},
        shed={"stale_outcomes": 2**40},
        completed=2**50,
        age_s=1.5,
    )


def test_a_host_with_two_workers_counts_once_by_its_freshest_reading():
    workers = service_status(
        picture(
            row("w1", "a", taken=readings(90.0, 900.0, (gpu("g1", 5.0),)), report_age_ms=4000),
            row("w2", "a", taken=readings(20.0, 100.0, (gpu("g1", 7.0), gpu("g2", 30.0)))),
            row("w3", "b", taken=readings(40.0, 50.0)),
        )
    ).workers
    assert host_load(workers) == HostLoad(cpu_percent=30.0, ram_used_mb=150.0, gpu_used_mb=37.0)


def test_a_lost_workers_readings_do_not_count():
    found = service_status(
        picture(
            row("w1", "a", state="lost", taken=readings(90.0, 900.0, (gpu("g1", 5.0),)), running=running()),
            row("w2", "b", taken=readings(10.0, 10.0)),
        )
    )
    assert host_load(found.workers) == HostLoad(cpu_percent=10.0, ram_used_mb=10.0, gpu_used_mb=0.0)
    assert found.workers[0].cpu_percent == 90.0
    assert found.workers[0].job_id == ""


@pytest.mark.parametrize(
    "seen",
    [
        ServicePicture(brokers=()),
        picture(),
        picture(row("w1", "a")),
        picture(row("w1", "a", state="lost", taken=readings(1.0, 2.0))),
    ],
)
def test_where_no_worker_tells_this_host_counts(seen):
    document = metrics_document(service_status(seen), THIS_HOST, grpc_alive=True)
    assert (document["cpu_percent"], document["ram_used_mb"], document["gpu_used_mb"]) == (11.0, 22.0, 0.0)


@pytest.mark.parametrize(
    ("states", "broker_alive", "alive"),
    [
        ([], True, False),
        (["ready"], True, True),
        (["loading", "busy"], True, True),
        (["loading", "draining", "failed", "lost"], True, False),
        (["ready"], False, False),
    ],
)
def test_a_worker_is_alive_if_it_is_ready_or_busy_and_can_be_used(states, broker_alive, alive):
    rows = [row(f"w{number}", "a", state=state) for number, state in enumerate(states)]
    assert service_status(picture(*rows, broker_alive=broker_alive)).worker_alive is alive


def test_ages_grow_with_the_age_of_the_picture():
    seen = picture(row("w", "a", taken=readings(1.0, 1.0, age_ms=250), report_age_ms=500), age_s=2.0)
    (worker,) = service_status(seen).workers
    assert (worker.report_age_s, worker.reading_age_s) == (2.5, 2.75)
    assert service_status(seen).age_s == 2.0


def test_a_row_says_what_a_worker_does():
    busy, loading = service_status(full_picture()).workers
    assert (busy.job_id, busy.phase, busy.step, busy.steps) == (JOB_ID.hex(), "step", 3, 20)
    assert (busy.model, busy.engine, busy.device, busy.warning) == ("FLUX.1-dev", "flux", "cuda:0", "slow")
    assert (loading.phase, loading.percent, loading.engine_restarts) == ("reading weights", 40, 2)
    assert (busy.outcomes_shed, loading.outcomes_shed) == (0, 2**33)
    assert (busy.model_revision, busy.quantization, busy.memory_plan) == ("0ef5fff", "hqq", "4bit")
    assert (busy.versions, loading.versions) == ("torch 2.13.0", "")
    assert (busy.prompt_cache_hits, busy.prompt_cache_misses) == (2**40, 3)
    assert loading.cpu_percent is None
    assert loading.reading_age_s is None


def test_what_the_frontend_refused_itself_is_counted_as_well():
    refusals = {RefusalReason.BROKER_UNREACHABLE: 3, RefusalReason.CLIENT_BUSY: 1}
    seen = dataclasses.replace(full_picture(), own_refusals=refusals)
    rejected = service_status(seen).rejected
    assert rejected == {"ALL_WORKERS_BUSY": 2**40, "BROKER_UNREACHABLE": 3, "CLIENT_BUSY": 8}


def test_what_the_frontend_dropped_itself_is_counted_as_well():
    own = {"frontend_unsent_messages": 3, "stale_outcomes": 1}
    seen = dataclasses.replace(full_picture(), own_shed=own)
    assert service_status(seen).shed == {"frontend_unsent_messages": 3, "stale_outcomes": 2**40 + 1}
    alone = ServicePicture(brokers=(broker(None, alive=False),), own_shed=own)
    assert service_status(alone).shed == own


def test_a_quarantined_worker_is_not_alive():
    assert not service_status(picture(row("w", "a", state="quarantined"))).worker_alive


def test_the_document_is_json_with_the_contracts_fields():
    document = json.loads(
        json.dumps(metrics_document(service_status(full_picture()), THIS_HOST, grpc_alive=False))
    )
    assert document["grpc_alive"] is False
    assert document["worker_alive"] is True
    assert document["rejected"] == {"ALL_WORKERS_BUSY": 2**40, "CLIENT_BUSY": 7}
    assert document["shed"] == {"stale_outcomes": 2**40}
    assert document["workers"][1]["outcomes_shed"] == 2**33
    assert document["workers"][0]["gpus"][0]["memory_used_mb"] == 10.0
    assert {"in_flight", "queued", "completed", "failed", "cancelled", "broker_alive", "age_s"} <= set(
        document
    )


def test_both_formats_say_the_same():
    found = service_status(full_picture())
    document = metrics_document(found, THIS_HOST, grpc_alive=True)
    response = metrics_response(found)
    for name in ("in_flight", "queued", "completed", "failed", "cancelled", "broker_alive"):
        assert getattr(response, name) == document[name]
    assert dict(response.rejected) == document["rejected"]
    assert dict(response.shed) == document["shed"]
    assert response.age_seconds == document["age_s"]
    for sent, shown in zip(response.workers, document["workers"], strict=True):
        for field in image_gen_pb2.WorkerStatus.DESCRIPTOR.fields:
            value = shown[
                field.name.removesuffix("_seconds") + "_s" if "_seconds" in field.name else field.name
            ]
            if field.name == "gpus":
                assert [each.uuid for each in sent.gpus] == [each["uuid"] for each in value]
            else:
                assert getattr(sent, field.name) == (value or type(getattr(sent, field.name))())


def test_no_field_of_the_contract_is_forgotten():
    response = metrics_response(service_status(full_picture()))
    assert {field.name for field, _ in response.ListFields()} == {
        field.name for field in image_gen_pb2.MetricsResponse.DESCRIPTOR.fields
    }
    merged = image_gen_pb2.WorkerStatus()
    for worker in response.workers:
        merged.MergeFrom(worker)
    assert {field.name for field, _ in merged.ListFields()} == {
        field.name for field in image_gen_pb2.WorkerStatus.DESCRIPTOR.fields
    }


def test_an_absurd_number_does_not_cost_the_page():
    found = service_status(picture(row("w", "a", engine_restarts=2**60), in_flight=2**62))
    assert metrics_response(found).in_flight == 2**32 - 1


def test_a_reason_of_a_newer_broker_costs_neither_its_snapshot_nor_the_page():
    told = decode(encode(snapshot(rejected={"TOO_BEAUTIFUL": 4, "CLIENT_BUSY": 3})))
    found = service_status(ServicePicture(brokers=(broker(told),)))
    document = json.loads(json.dumps(metrics_document(found, THIS_HOST, grpc_alive=True)))
    assert document["rejected"] == {"CLIENT_BUSY": 3, "TOO_BEAUTIFUL": 4}
    assert dict(metrics_response(found).rejected) == document["rejected"]


async def test_the_metrics_call_answers_the_picture(frontend):
    frontend.cluster.picture = full_picture()
    answer = await frontend.stub.Metrics(image_gen_pb2.MetricsRequest(), metadata=frontend.key)
    assert answer == metrics_response(service_status(full_picture()))


async def test_the_loop_goes_on_while_the_answer_is_made(frontend, monkeypatch):
    loop, begun, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    made = []

    def held(status):
        made.append(status)
        loop.call_soon_threadsafe(begun.set)
        assert may_end.wait(10)
        return metrics_response(status)

    monkeypatch.setattr(service, "metrics_response", held)
    try:
        calls = [
            frontend.stub.Metrics(image_gen_pb2.MetricsRequest(), metadata=frontend.key) for _ in range(20)
        ]
        await begun.wait()
        assert (await frontend.generate()).seed == 7
        assert not any(call.done() for call in calls)
    finally:
        may_end.set()
    assert all([(await call).broker_alive for call in calls])
    assert len(made) <= 2, "one answer, and a second one for who came too late for it"


# --- Several brokers ---------------------------------------------------------------------------


def snapshot(*rows, epoch=b"1", **counters):
    numbers = dict.fromkeys(("in_flight", "queued", "completed", "failed", "cancelled"), 0)
    return Snapshot(
        broker_id="b", epoch=epoch * 16, echo=1, workers=rows, **{**numbers, "rejected": {}, **counters}
    )


def of_two(first, second, *, alive=(True, True), ages=(0.0, 0.0), is_one=False):
    if second is not None and not is_one:
        second = dataclasses.replace(second, epoch=b"2" * 16)
    brokers = (
        broker(first, broker_id="b1", alive=alive[0], age_s=ages[0]),
        broker(second, broker_id="b2", alive=alive[1], age_s=ages[1], gets_calls=False),
    )
    return service_status(ServicePicture(brokers=brokers))


def test_counters_are_summed():
    refused = {RefusalReason.NO_WORKERS: 2}
    found = of_two(
        snapshot(in_flight=1, queued=2, completed=3, failed=4, cancelled=5, rejected=refused, shed={"x": 1}),
        snapshot(in_flight=10, queued=20, completed=30, failed=40, cancelled=50, rejected=refused),
    )
    assert (found.in_flight, found.queued) == (11, 22)
    assert (found.completed, found.failed, found.cancelled) == (33, 44, 55)
    assert (found.rejected, found.shed) == ({"NO_WORKERS": 4}, {"x": 1})


@pytest.mark.parametrize("ages", [(9.0, 0.5), (0.5, 9.0)])
@pytest.mark.parametrize("alive", [(False, True), (True, False), (False, False)])
def test_two_endpoints_of_one_broker_are_counted_once_by_its_latest_picture(ages, alive):
    numbers = {"in_flight": 1, "queued": 2, "failed": 4, "cancelled": 5}
    told = [
        snapshot(completed=n, rejected={"NO_WORKERS": n}, shed={"x": n}, **numbers)
        for n in ((3, 4) if ages[1] < ages[0] else (4, 3))
    ]
    found = of_two(*told, alive=alive, ages=ages, is_one=True)
    assert (found.in_flight, found.queued, found.age_s) == (1, 2, 0.5)
    assert (found.completed, found.failed, found.cancelled) == (4, 4, 5)
    assert (found.rejected, found.shed) == ({"NO_WORKERS": 4}, {"x": 4})


def test_each_worker_has_one_row_from_the_broker_that_heard_it_last():
    found = of_two(
        snapshot(row("w1", "a", state="lost", report_age_ms=9000), row("w2", "a", report_age_ms=100)),
        snapshot(row("w1", "a", state="busy", report_age_ms=200), row("w3", "a")),
        ages=(0.0, 0.5),
    )
    assert [(worker.worker_id, worker.state) for worker in found.workers] == [
        ("w1", "busy"),
        ("w2", "ready"),
        ("w3", "ready"),
    ]
    assert found.workers[0].report_age_s == 0.7


def test_what_a_silent_broker_said_of_the_present_counts_no_more_and_what_it_counted_does():
    found = of_two(
        snapshot(row("gone", "a"), in_flight=1, queued=1, completed=3),
        snapshot(row("w", "a"), completed=1),
        alive=(False, True),
        ages=(60.0, 0.5),
    )
    assert [worker.worker_id for worker in found.workers] == ["w"]
    assert (found.in_flight, found.queued, found.completed, found.age_s) == (0, 0, 4, 0.5)


def test_if_all_are_silent_their_last_words_are_shown():
    found = of_two(snapshot(row("w", "a")), snapshot(), alive=(False, False), ages=(60.0, 50.0))
    assert [worker.worker_id for worker in found.workers] == ["w"]
    assert (found.broker_alive, found.worker_alive, found.age_s) == (False, False, 60.0)


def test_each_broker_has_a_row_in_both_formats():
    found = of_two(snapshot(in_flight=1, queued=2), None, alive=(True, False), ages=(0.25, 0.0))
    assert [asdict(row) for row in found.brokers] == [
        {
            "broker_id": "b1",
            "state": "live",
            "gets_calls": True,
            "in_flight": 1,
            "queued": 2,
            "age_s": 0.25,
            "endpoint": "tcp://b1:5560",
        },
        {
            "broker_id": "b2",
            "state": "silent",
            "gets_calls": False,
            "in_flight": 0,
            "queued": 0,
            "age_s": None,
            "endpoint": "tcp://b2:5560",
        },
    ]
    first, second = metrics_response(found).brokers
    assert (first.broker_id, first.state, first.gets_calls, first.age_seconds) == ("b1", "live", True, 0.25)
    assert not second.HasField("age_seconds")


def test_sums_of_absurd_numbers_cost_no_page():
    most = 2**63 - 1
    absurd = readings(1.7e308, 1.7e308, (gpu("g1", 1.7e308), gpu("g2", 1.7e308)))
    rows = (row("w1", "a", taken=absurd), row("w2", "b", taken=absurd))
    counted = {"completed": most, "rejected": {RefusalReason.NO_WORKERS: most}, "shed": {"x": most}}
    told = [snapshot(*rows, epoch=epoch, **counted) for epoch in (b"1", b"2", b"3")]
    brokers = tuple(broker(each, broker_id=f"b{number}") for number, each in enumerate(told))
    found = service_status(ServicePicture(brokers=brokers))
    text = json.dumps(metrics_document(found, THIS_HOST, grpc_alive=True), allow_nan=False)
    assert json.loads(text)["ram_used_mb"] == MAX_FLOAT
    response = metrics_response(found)
    assert response.completed == response.rejected["NO_WORKERS"] == response.shed["x"] == 2**64 - 1
