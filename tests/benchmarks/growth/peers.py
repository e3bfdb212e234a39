"""Workers and frontends that do what the protocol asks of them, and no more. Pure: time is an argument.

They keep the broker as busy as real ones would: a worker reports when it begins, has drawn, has a PNG, and
with each heartbeat; a frontend when calls have ended, and with each heartbeat.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from benchmarks.growth.workload import CALM_S, PNG_S, Workload

from proto.messages import (
    FrontendReport,
    GpuReading,
    HeldOutcome,
    ImageMade,
    ImageParameters,
    JobClaim,
    JobPhase,
    ModelCard,
    Outcome,
    Readings,
    RunningExecution,
    SnapshotRequest,
    Start,
    Submit,
    ToBrokerFromFrontend,
    ToBrokerFromWorker,
    WorkerPhase,
    WorkerReport,
)

HEARTBEAT_S: Final = 1.0
SCRAPE_S: Final = 15.0
"""Between two looks at `/metrics` of one frontend: the default of Prometheus."""
GATHER_S: Final = 0.02
"""As of a frontend: ends within this time share a report."""
KEYS: Final = 500
"""API keys that take part."""
STEPS: Final = 20
MODEL: Final = ModelCard(
    engine="flux",
    name="FLUX.1-dev",
    precision="bfloat16",
    device="NVIDIA H100 80GB HBM3",
    revision="0ef5fff789c832c5c7f4e127f94c8b54bbcced44",
    quantization="hqq 4 bit, groups of 64",
    memory_plan="all on the GPU",
    versions="torch 2.13.0, diffusers 0.39.0, transformers 5.2.0",
)


@dataclass(slots=True, kw_only=True)
class SimulatedWorker:
    worker_id: str
    incarnation: bytes
    workload: Workload
    chance: random.Random
    now: float
    report_at: float = field(init=False)
    running: Start | None = None
    ends_at: float = float("inf")
    """When what runs is drawn."""
    png_at: float = float("inf")
    drawn: Start | None = None
    began_at: dict[bytes, float] = field(default_factory=dict)
    """By execution that has no PNG yet."""
    held: dict[bytes, HeldOutcome] = field(default_factory=dict)
    seq: int = 0
    refused: int = 0
    """Starts that found it busy: the broker should send none."""

    def __post_init__(self) -> None:
        self.report_at = self.now + self.chance.uniform(0, HEARTBEAT_S)

    def next_deadline(self) -> float:
        return min(self.report_at, self.ends_at, self.png_at)

    def started(self, start: Start, now: float) -> None:
        if self.running is not None:
            self.refused += start.execution_id != self.running.execution_id
            return
        draw_s = self.workload.draw_s * self.chance.uniform(0.5, 1.5)
        self.running, self.ends_at, self.report_at = start, now + draw_s, now
        self.began_at[start.execution_id] = now

    def viewed(self, *, cancel: Iterable[bytes], release: Iterable[bytes], keep: Iterable[bytes]) -> None:
        for execution_id in release:
            self.held.pop(execution_id, None)
        for execution_id in keep:
            if execution_id in self.held:
                self.held[execution_id] = _released(self.held[execution_id])
        if self.running is not None and self.running.execution_id in cancel:
            self.running, self.ends_at = None, float("inf")

    def due(self, now: float) -> Iterator[ToBrokerFromWorker]:
        """What it says at this instant."""
        if now >= self.png_at and self.drawn is not None:
            start, self.drawn, self.png_at = self.drawn, None, float("inf")
            self._hold(start, self.workload.image_bytes)
            yield self._outcome(start, now)
            self.report_at = now
        if now >= self.ends_at and self.running is not None and self.drawn is None:
            self.drawn, self.png_at = self.running, now + PNG_S
            self.running, self.ends_at = None, float("inf")
            self._hold(self.drawn, 0)
            self.report_at = now
        if now >= self.report_at:
            self.report_at = now + HEARTBEAT_S
            yield self._report(now)

    def _hold(self, start: Start, size_bytes: int) -> None:
        self.held[start.execution_id] = HeldOutcome(
            execution_id=start.execution_id, claim=start.claim, failure=None, size_bytes=size_bytes
        )

    def _outcome(self, start: Start, now: float) -> Outcome:
        self.seq += 1
        return Outcome(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            seq=self.seq,
            execution_id=start.execution_id,
            job_id=start.claim.job_id,
            attempts=start.claim.attempts,
            crashes=0,
            image=ImageMade(
                inference_time_s=now - self.began_at.pop(start.execution_id), seed=7, model=MODEL
            ),
            body=bytes(self.workload.image_bytes),
        )

    def _report(self, now: float) -> WorkerReport:
        self.seq += 1
        return WorkerReport(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            seq=self.seq,
            host=f"host-{int(self.worker_id[7:]) // 8}",
            age_ms=round(now * 1000),
            phase=WorkerPhase.READY,
            model=MODEL,
            running=None if self.running is None else self._running(self.running, now),
            held=tuple(self.held.values()),
            readings=_readings(self.worker_id),
        )

    def _running(self, start: Start, now: float) -> RunningExecution:
        left = max(0.0, self.ends_at - now) / self.workload.draw_s
        return RunningExecution(
            execution_id=start.execution_id,
            claim=start.claim,
            phase=JobPhase.STEP,
            step=max(0, min(STEPS - 1, round(STEPS * (1 - left)))),
            steps=STEPS,
        )


@dataclass(slots=True, kw_only=True)
class SimulatedFrontend:
    frontend_id: str
    incarnation: bytes
    workload: Workload
    chance: random.Random
    now: float
    submit_at: float = field(init=False)
    report_at: float = field(init=False)
    scrape_at: float = field(init=False)
    open: dict[bytes, float] = field(default_factory=dict)
    """By job: when it was submitted."""
    seq: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.report_at = self.now
        self.submit_at = self.now + CALM_S + self._pause_s()
        self.scrape_at = self.now + self.chance.uniform(0, SCRAPE_S)

    def next_deadline(self) -> float:
        return min(self.report_at, self.submit_at, self.scrape_at)

    def ended(self, job_id: bytes, now: float) -> float | None:
        """When it was submitted; None if it has ended before."""
        self.report_at = min(self.report_at, now + GATHER_S)
        return self.open.pop(job_id, None)

    def was_refused(self, job_id: bytes) -> None:
        self.refused += 1
        self.open.pop(job_id, None)

    def due(self, now: float) -> Iterator[ToBrokerFromFrontend]:
        """What it says at this instant."""
        while now >= self.submit_at:
            self.submit_at += self._pause_s()
            yield self._submit(now)
        if now >= self.report_at:
            self.report_at = now + HEARTBEAT_S
            yield self._report()
        if now >= self.scrape_at:
            self.scrape_at += SCRAPE_S
            self.seq += 1
            yield SnapshotRequest(seq=self.seq)

    def _pause_s(self) -> float:
        return self.chance.expovariate(self.workload.jobs_per_s / self.workload.frontends)

    def _report(self) -> FrontendReport:
        self.seq += 1
        return FrontendReport(
            frontend_id=self.frontend_id, incarnation=self.incarnation, seq=self.seq, jobs=tuple(self.open)
        )

    def _submit(self, now: float) -> Submit:
        job_id = self.chance.randbytes(16)
        self.open[job_id] = now
        self.seq += 1
        keyed = self.chance.random() < self.workload.keyed
        claim = JobClaim(
            job_id=job_id,
            key_fingerprint=f"key-{self.chance.randrange(KEYS)}",
            parameters_digest=job_id,
            idempotency_hash=job_id if keyed else None,
            remaining_ms=600_000,
        )
        return Submit(
            frontend_id=self.frontend_id,
            incarnation=self.incarnation,
            seq=self.seq,
            claim=claim,
            parameters=ImageParameters(height=1024, width=1024, steps=STEPS, guidance=3.5, seed=7),
            key_job_limit=1000,
            body=f"{now!r} a lighthouse in a storm, oil on canvas".encode(),
        )


def submitted_at(start: Start) -> float:
    """As the simulated frontend wrote it into the prompt; on one host all processes have the same clock."""
    return float(bytes(start.body).split(maxsplit=1)[0])


def _released(outcome: HeldOutcome) -> HeldOutcome:
    return HeldOutcome(
        execution_id=outcome.execution_id,
        claim=outcome.claim,
        failure=None,
        size_bytes=outcome.size_bytes,
        released=True,
    )


def _readings(worker_id: str) -> Readings:
    gpu = GpuReading(
        uuid=f"GPU-{worker_id:0>36}",
        name=MODEL.device,
        memory_used_mb=61_035.0,
        memory_total_mb=81_559.0,
        utilization_percent=98.0,
        temperature_celsius=61.0,
    )
    return Readings(cpu_percent=12.5, ram_used_mb=48_213.0, ram_total_mb=515_000.0, gpus=(gpu,), age_ms=400)
