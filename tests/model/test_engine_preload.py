"""What the forkserver is like after it has imported the libraries, and before it forks."""

import json
import os
import subprocess
import sys
from pathlib import Path

from gpu_worker.engine_forkserver import preload_modules
from gpu_worker.model_store import Embedded
from gpu_worker.preload_request import PRELOAD_MODULE, PRELOAD_REQUEST, PreloadRequest

RECORDER = """
import torch

used = []

def record(name):
    original = getattr(torch.cuda, name)
    def recorded(*arguments, **options):
        used.append(name)
        return original(*arguments, **options)
    setattr(torch.cuda, name, recorded)

for name in ("_lazy_init", "current_device", "get_device_properties"):
    record(name)

# As a build with CUDA has it: this is what asks the driver, and what diffusers gets to when it is imported.
torch._C._cuda_getDeviceCount = lambda: used.append("_cuda_getDeviceCount") or 1
torch._C._cuda_getCurrentRawStream = None
torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
driver = torch._C._cuda_getDeviceCount
"""
FORKSERVER = f"""
import gc, json, os, sys
import {PRELOAD_MODULE}
print(json.dumps({{
    "used": sys.modules["gpu_use_recorder"].used,
    "driver_is_back": sys.modules["torch"]._C._cuda_getDeviceCount is sys.modules["gpu_use_recorder"].driver,
    "imported": sorted(sys.modules),
    "threads": len(os.listdir("/proc/self/task")),
    "frozen": gc.get_freeze_count(),
    "environment": dict(os.environ),
}}))
"""
MODULES = preload_modules(Embedded(warning=""))


def test_it_has_the_libraries_one_thread_and_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "gpu_use_recorder.py").write_text(RECORDER)
    request = PreloadRequest(
        worker_pid=os.getpid(), cuda_visible_devices="7", modules=("gpu_use_recorder", *MODULES)
    )
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    own = {
        PRELOAD_REQUEST: request.to_json(),
        "PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", FORKSERVER], env=inherited | own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"diffusers", "torch", "transformers", *MODULES} <= set(found["imported"])
    # Asking for the number of GPUs is enough: no fork could use one after that.
    assert found["used"] == []
    assert found["driver_is_back"]
    assert found["threads"] == 1
    assert found["frozen"] > 100_000
    environment = found["environment"]
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HF_HUB_OFFLINE"]) == ("7", "1")
    passing = {PRELOAD_REQUEST, "OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"}
    assert not passing & set(environment)
