"""What only a GPU can show: that plans keep to their memory, and what becomes of a card that is full."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.back_to_back import measure_pause
from gpu.bench import run_offline
from gpu.measure import allocated, synchronize

from gpu_worker.engines.devices import free_memory
from gpu_worker.engines.engine import EngineJob, OutOfDeviceMemory
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.memory_plan import CONTEXT_BYTES, GPU_ALLOWANCE_BYTES, MemoryPlan
from gpu_worker.readings import ReadingsTaker
from proto.messages import ImageParameters

LIMIT_S = 900.0
MIB = 1024 * 1024

pytestmark = pytest.mark.timeout(LIMIT_S)


def measured(folder: Path, plan: MemoryPlan, device: str, *more: str) -> dict[str, Any]:
    """In a process of its own: two plans do not fit beside each other."""
    command = [sys.executable, "-m", "gpu.measure", str(folder), "--plan", plan.value, "--device", device]
    command += ["--steps", "2", "--rounds", "1", *more]
    done = run_offline(command)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("plan", list(MemoryPlan))
def test_a_plan_draws_and_keeps_to_the_memory_that_it_expects(
    folders: tuple[Path, Path], device: str, plan: MemoryPlan
) -> None:
    plain, packed = folders
    figures = measured(plain if plan is MemoryPlan.BF16 else packed, plan, device, "--sizes", "512", "1024")
    assert figures["plan"] == plan
    assert [size["side"] for size in figures["sizes"]] == [512, 1024]
    if device.startswith("cuda"):
        expected = float(figures["title"].split("about ")[1].split(" GB")[0]) * 1e9
        peak = max(size["peak_bytes"] for size in figures["sizes"])
        assert peak <= expected - CONTEXT_BYTES - GPU_ALLOWANCE_BYTES + 0.1e9
        assert figures["process_bytes"] <= expected


def test_a_forked_engine_process_draws_on_the_gpu(folders: tuple[Path, Path], cuda: str) -> None:
    pauses = measure_pause(folders[1], cuda, side=64, steps=1, jobs=2)
    assert len(pauses.gaps_s) == 1
    assert pauses.model is not None
    assert pauses.model.device.startswith("cuda")


def draw(engine: FluxEngine, side: int) -> Any:
    parameters = ImageParameters(height=side, width=side, steps=1, guidance=3.5, seed=1)
    job = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt="a cat", parameters=parameters)
    return engine.generate(job, lambda _phase, _step: None).image


@contextmanager
def filled(device: str, but_bytes: int) -> Iterator[None]:
    """Somebody else's memory: all but this much of what is free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    ballast = torch.empty(max(0, free - but_bytes), dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del ballast
        torch.cuda.empty_cache()


def test_a_full_card_is_a_failure_of_this_job_alone(folders: tuple[Path, Path], cuda: str) -> None:
    engine = FluxEngine(folders[1], device=cuda, memory_plan=MemoryPlan.PACKED)
    engine.load(lambda _what, _percent: None)
    before = draw(engine, 1024)
    with filled(cuda, 200 * MIB), pytest.raises(OutOfDeviceMemory):
        draw(engine, 1024)
    assert (draw(engine, 1024) == before).all()
    del engine
    free_memory(torch.device(cuda))
    synchronize(torch.device(cuda))
    assert allocated(torch.device(cuda), torch.cuda.memory_allocated) < 100 * MIB


def test_readings_are_those_of_nvidia_smi(cuda: str) -> None:
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total,memory.used", "--format=csv,noheader,nounits"]
    printed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = [line.split(", ") for line in printed.splitlines()]
    gpus = {gpu.uuid: gpu for gpu in ReadingsTaker(None).take().gpus}
    assert set(gpus) == {uuid for uuid, _, _ in rows}
    for uuid, total, used in rows:
        assert gpus[uuid].memory_total_mb == pytest.approx(float(total), rel=0.01)
        # nvidia-smi counts what the driver keeps for itself separately.
        assert gpus[uuid].memory_used_mb == pytest.approx(float(used), abs=1024)
