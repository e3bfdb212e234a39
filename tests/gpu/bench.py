"""Benchmarks of the engine on a GPU: `python -m gpu.bench`, or `tox -e gpu`.

Makes a FLUX of full size with random weights (nothing is downloaded), quantizes it, and prints tables: every
memory plan, the whole path against diffusers' own pipeline in the same run, and the pause between two jobs.
What is drawn means nothing; how long it takes and how much memory does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from gpu.back_to_back import measure_pause
from gpu.random_flux import SIZES, Scale, make_random_flux

from gpu_worker.memory_plan import MemoryPlan, gigabytes

_LIMIT_S: Final = 1800.0
_NO_GPU: Final = (
    "gpu.bench: torch sees no GPU, so nothing is measured; to try the program: --device cpu --scale small"
)


def make_folders(parent: Path, scale: Scale, device: str) -> tuple[Path, Path]:
    """The plain folder and the 4-bit one; made only where they are not there yet."""
    plain, packed = parent / f"random-flux-{scale}", parent / f"random-flux-{scale}-4bit"
    if not (plain / "flux-server.json").is_file():
        began = time.perf_counter()
        make_random_flux(plain, scale, device=device)
        print(f"made {plain} in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "gpu_worker",
        "quantize",
        "--source",
        str(plain),
        "--target",
        str(packed),
    ]
    subprocess.run([*command, "--device", device, "--fast"], timeout=_LIMIT_S, check=True)
    print(f"quantized (--fast, on {device}) in {time.perf_counter() - began:.0f} s", flush=True)
    return plain, packed


def measure_plan(folder: Path, plan: MemoryPlan, given: argparse.Namespace) -> dict[str, Any] | None:
    """In a process of its own; None, with the reason printed, where the plan does not fit."""
    command = [sys.executable, "-m", "gpu.measure", str(folder), "--plan", plan.value]
    command += ["--device", given.device, "--steps", str(given.steps), "--rounds", str(given.rounds)]
    command += ["--sizes", *map(str, given.sizes)]
    if plan is MemoryPlan.BF16:
        command.append("--stock")
    try:
        done = run_offline(command)
    except subprocess.TimeoutExpired:
        print(f"{plan.value}: not measured within {_LIMIT_S:.0f} s", flush=True)
        return None
    if done.returncode != 0:
        print(f"{plan.value}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_offline(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """As the engine runs: it does so only where nothing can be looked up on the Hub."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )


def plan_rows(figures: dict[str, Any]) -> list[str]:
    rows = []
    for size in figures["sizes"]:
        cells = [
            figures["plan"],
            f"{size['side']}²",
            f"{figures['load_s']:.1f}",
            gigabytes(figures["loaded_bytes"]),
            gigabytes(size["peak_bytes"]),
            gigabytes(figures["context_bytes"]),
            gigabytes(figures["process_bytes"]),
            gigabytes(figures["expected_bytes"]),
            f"{1000 * size['text_s']:.0f}",
            f"{1000 * size['step_s']:.1f}",
            f"{1000 * size['decode_s']:.0f}",
            f"{size['whole_s']:.2f}",
            f"{size['cached_s']:.2f}",
        ]
        if size["stock_s"] is None:
            cells += ["", ""]
        else:
            cells += [f"{size['stock_s']:.2f}", f"{size['stock_s'] / size['whole_s']:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu.bench", description=__doc__)
    parser.add_argument("--scale", choices=tuple(SIZES), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--folder", type=Path, help="where the models are made and kept; else a temporary one"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plans", type=MemoryPlan, nargs="+", default=list(MemoryPlan))
    given = parser.parse_args()
    if given.device.startswith("cuda") and not _has_gpu():
        print(_NO_GPU)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        parent = given.folder or Path(temporary)
        plain, packed = make_folders(parent, given.scale, given.device)
        _print_plans(plain, packed, given)
        _print_pause(plain if MemoryPlan.BF16 in given.plans else packed, given)
    return 0


def _has_gpu() -> bool:
    import torch  # noqa: PLC0415 - after the environment is prepared

    return bool(torch.cuda.is_available())


def _print_plans(plain: Path, packed: Path, given: argparse.Namespace) -> None:
    print(f"\n{given.scale} size, {given.steps} steps, medians of {given.rounds} rounds, random weights")
    names = [
        "plan",
        "size",
        "load, s",
        "loaded",
        "peak",
        "context",
        "process",
        "expected",
        "text, ms",
        "step, ms",
        "decode, ms",
    ]
    names += ["whole, s", "cached prompt, s", "stock, s", "stock ÷ ours"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for plan in given.plans:
        figures = measure_plan(plain if plan is MemoryPlan.BF16 else packed, plan, given)
        for row in [] if figures is None else plan_rows(figures):
            print(row, flush=True)


def _print_pause(folder: Path, given: argparse.Namespace) -> None:
    pauses = measure_pause(
        folder, given.device, side=max(given.sizes), steps=given.steps, jobs=given.rounds + 2
    )
    listed = ", ".join(f"{1000 * pause_s:.1f}" for pause_s in pauses.gaps_s)
    print(f"\nfrom a drawn image to the next job's first phase: {listed} ms")
    listed = ", ".join(f"{1000 * delay_s:.1f}" for delay_s in pauses.png_delays_s)
    print(f"from a drawn image to its PNG, beside the next job: {listed} ms")


if __name__ == "__main__":
    raise SystemExit(main())
