"""What torch's exceptions say about the device."""

from typing import Final

import torch

_NO_MEMORY_TEXTS: Final = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "not enough memory",
)
_POISON_TEXTS: Final = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS_")


def is_out_of_memory(error: BaseException) -> bool:
    """Too little memory, on the device or the host; the device itself is well."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY_TEXTS)


def is_poisoned(error: BaseException) -> bool:
    """The process's device context is lost: every later call would fail as well."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    # torch has had a class for this since 2.8 only.
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return any(text in str(error) for text in _POISON_TEXTS)
