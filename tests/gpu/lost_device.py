"""Spoils the device's context in the middle of a drawing, and prints what the engine makes of that.

    python -m gpu.lost_device --device cuda

Two lines: of the job that met it, and of the next one. A kernel that reads beyond a table fails an
assertion on the device, after which every call of this process fails; the device itself and other
processes are well.
"""

import argparse

import torch

from gpu_worker.engines.engine import EngineBroken, EngineJob
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.model_store import EMBEDDED_FOLDER
from proto.messages import ImageParameters, JobPhase


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu.lost_device")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    engine = FluxEngine(EMBEDDED_FOLDER, device=given.device)
    engine.load(lambda _what, _percent: None)

    def spoil(phase: JobPhase, step: int) -> None:
        if (phase, step) == (JobPhase.STEP, 1):
            table = torch.zeros(8, device=given.device)
            table[torch.tensor([1 << 20], device=given.device)]

    parameters = ImageParameters(height=64, width=64, steps=2, guidance=3.5, seed=1)
    job = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt="a red circle", parameters=parameters)
    for on_progress in (spoil, lambda _phase, _step: None):
        try:
            engine.generate(job, on_progress)
        except EngineBroken as error:
            print(f"EngineBroken: {error}", flush=True)
        else:
            print("drawn", flush=True)


if __name__ == "__main__":
    main()
