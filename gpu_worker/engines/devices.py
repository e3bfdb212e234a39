"""The device that an engine computes on: which it is, what it has, whether it still answers."""

import gc

import psutil
import structlog
import torch

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.error_text import first_line
from gpu_worker.memory_plan import DeviceMemory

log = structlog.get_logger()


def choose_device(wanted: str, asked_for: str = "") -> torch.device:
    """The device that auto, cpu, cuda or cuda:N means in this process.

    `asked_for` is how the operator named it, who may see other GPUs than this process.

    Raises:
        ModelUnusable: there is none such.
    """
    if wanted != "cpu" and torch.cuda._is_in_bad_fork():
        raise ModelUnusable("the forkserver has asked the driver for GPUs: no engine process can use one")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    number = int(wanted.partition(":")[2] or 0)
    if number >= gpus:
        built = "" if torch.backends.cuda.is_built() else "; this torch is built without CUDA"
        raise ModelUnusable(f"device {asked_for or wanted}: torch sees no such GPU{built}")
    return torch.device("cuda", number)


def device_title(device: torch.device, asked_for: str = "") -> str:
    """For people, who may know the GPU by another number than this process does."""
    if device.type != "cuda":
        return str(device)
    name = asked_for if asked_for.startswith(("cuda:", "GPU-", "MIG-")) else str(device)
    return f"{name} ({torch.cuda.get_device_name(device)})"


def plain_type(device: torch.device) -> torch.dtype:
    """In which weights are computed with there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def device_memory(device: torch.device, title: str) -> DeviceMemory:
    """Now. On a GPU this makes the process's context."""
    number_bytes = plain_type(device).itemsize
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    else:
        host = psutil.virtual_memory()
        free_bytes, total_bytes = host.available, host.total
    return DeviceMemory(
        device=title,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        number_bytes=number_bytes,
        is_gpu=device.type == "cuda",
    )


def answers(device: torch.device) -> bool:
    """Whether the device still works; its errors can come late, under another name."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        log.error("the device does not answer", device=str(device), error=first_line(error))
        return False
    return True


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
