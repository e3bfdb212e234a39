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
from gpu_worker.memory_plan import CONTEXT_BYTES, GPU_ALLOWANCE_BYTES, MemoryPlan, PlanName
from gpu_worker.readings import ReadingsTaker
from proto.messages import ImageParameters

LIMIT_S = 900.0
MIB = 1024 * 1024

pytestmark = pytest.mark.timeout(LIMIT_S)


def measured(folder: Path, plan: PlanName, device: str, *more: str) -> dict[str, Any]:
    """In a process of its own: two plans do not fit beside each other."""
    command = [sys.executable, "-m", "gpu.measure", str(folder), "--plan", plan, "--device", device]
    command += ["--steps", "2", "--rounds", "1", *more]
    done = run_offline(command)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def assert_within(figures: dict[str, Any]) -> None:
    """For torch's tensors. Where there is room it keeps more, and gives that back when it is short.

    Of the allowance half is for what the derivation of the working memory does not see.
    """
    peak_bytes = max(size["peak_bytes"] for size in figures["sizes"])
    assert peak_bytes <= figures["expected_bytes"] - CONTEXT_BYTES - GPU_ALLOWANCE_BYTES // 2


@pytest.mark.parametrize("plan", list(MemoryPlan))
def test_a_plan_draws_and_keeps_to_the_memory_that_it_expects(
    folders: tuple[Path, Path], device: str, plan: MemoryPlan
) -> None:
    plain, packed = folders
    folder = plain if plan is MemoryPlan.BF16 else packed
    figures = measured(folder, plan.value, device, "--sizes", "512", "1024")
    assert figures["plan"] == plan
    assert [size["side"] for size in figures["sizes"]] == [512, 1024]
    if device.startswith("cuda"):
        assert_within(figures)


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


@pytest.mark.usefixtures("full_size")
@pytest.mark.parametrize(
    ("card_gib", "title"), [(10, "4bit-t5-cpu, VAE in tiles"), (12, "4bit, VAE in tiles"), (16, "4bit")]
)
def test_a_smaller_card_takes_the_plan_that_fits(
    folders: tuple[Path, Path], cuda: str, card_gib: int, title: str
) -> None:
    """As docs/gpu-host.md lists them: of a card's memory 95 % are free."""
    with filled(cuda, int(0.95 * card_gib * 1024 * MIB)):
        figures = measured(folders[1], "auto", cuda, "--sizes", "1024")
    assert figures["title"].startswith(f"{title}, about ")
    assert_within(figures)


def test_a_lost_device_is_told_from_a_failed_job(cuda: str) -> None:
    """In a process of its own: its device is lost for all that it still does."""
    done = run_offline([sys.executable, "-m", "gpu.lost_device", "--device", cuda])
    assert done.returncode == 0, done.stderr
    first, second = (
        line for line in done.stdout.splitlines() if line.startswith(("EngineBroken: ", "drawn"))
    )
    assert "device-side assert" in first
    assert second.startswith("EngineBroken: ")


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
