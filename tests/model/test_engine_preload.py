"""What the forkserver is like after it has imported the libraries, and before it forks."""

import json
import os
import subprocess
import sys
from pathlib import Path

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

for name in ("_lazy_init", "is_available", "device_count", "current_device", "get_device_properties"):
    record(name)
"""
FORKSERVER = f"""
import gc, json, os, sys
import {PRELOAD_MODULE}
print(json.dumps({{
    "used": sys.modules["gpu_use_recorder"].used,
    "imported": sorted(sys.modules),
    "threads": len(os.listdir("/proc/self/task")),
    "frozen": gc.get_freeze_count(),
    "environment": dict(os.environ),
}}))
"""
MODULES = ("gpu_worker.engine_child", "gpu_worker.engines.embedded")


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
    assert found["threads"] == 1
    assert found["frozen"] > 100_000
    environment = found["environment"]
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HF_HUB_OFFLINE"]) == ("7", "1")
    assert not {PRELOAD_REQUEST, "OPENBLAS_NUM_THREADS"} & set(environment)
