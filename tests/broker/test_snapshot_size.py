"""A SNAPSHOT fits into its header, whatever the workers say of themselves (PROTOCOL.md §4)."""

from dataclasses import fields, replace

import pytest
from samples.wire import EPOCH, READINGS, claim, running, worker_report

from broker.jobs import JobTable
from broker.snapshot import Counters, size_bytes, snapshot
from broker.workers import Unclear, Worker, WorkerTable
from proto.codec import encode
from proto.messages import MAX_SNAPSHOT_BYTES, GpuReading, JobPhase, ModelCard, WorkerPhase

MOST = 2**63 - 1
HUGE_MS = 2**53
ORDINARY = "NVIDIA H100 80GB HBM3, bfloat16"
LONG = "\N{MATHEMATICAL BOLD SMALL X}" * 1024
"""Four bytes each, in UTF-8."""


def picture(text, gpus, count=1000):
    """Of workers whose texts are all `text`, and whose numbers are as long as they can be."""
    table = WorkerTable(probe_after_s=1.5)
    for number in range(count):
        report = wordy_report(f"{number}{text}"[:128], text, gpus)
        table.add(Worker(report=report, route=b"", heard_at=0.0, seq=MOST, slot=Unclear()))
    return snapshot("broker", EPOCH, 1, 1e9, table, JobTable(tell_traced=lambda *_: None), Counters())


def wordy_report(worker_id, text, gpus):
    name = text[:128]
    readings = [each.name for each in fields(GpuReading) if each.name not in ("uuid", "name")]
    gpu = GpuReading(uuid=name, name=text, **dict.fromkeys(readings, 0.1))
    texts = [each.name for each in fields(ModelCard) if each.name != "engine"]
    claims = claim(key_fingerprint=name, idempotency_hash=bytes(16), remaining_ms=HUGE_MS, attempts=1000)
    counters = ("seq", "engine_restarts", "outcomes_shed", "prompt_cache_hits", "prompt_cache_misses")
    return worker_report(
        worker_id,
        host=name,
        activity=text,
        age_ms=HUGE_MS,
        phase=WorkerPhase.QUARANTINED,
        model=ModelCard(engine=name, **dict.fromkeys(texts, text)),
        running=running(bytes(16), claim=claims, step=MOST, steps=MOST, phase=JobPhase.DECODE),
        readings=replace(READINGS, gpus=(gpu,) * gpus, age_ms=HUGE_MS),
        **dict.fromkeys(counters, MOST),
    )


@pytest.mark.parametrize("gpus", [0, 1, 64])
@pytest.mark.parametrize("text", ["x", ORDINARY, LONG])
def test_it_is_never_longer_than_a_peer_takes(text, gpus):
    shown = picture(text, gpus)
    assert len(shown.workers) > 0
    assert len(encode(shown)[1]) <= MAX_SNAPSHOT_BYTES


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_thousand_ordinary_workers_are_shown(gpus):
    assert len(picture(ORDINARY, gpus).workers) == 1000


@pytest.mark.parametrize("text", ["x", ORDINARY, LONG])
def test_no_row_takes_more_than_it_was_given(text):
    one, two = picture(text, 64, count=1), picture(text, 64, count=2)
    assert len(encode(two)[1]) - len(encode(one)[1]) <= size_bytes(two.workers[1])
