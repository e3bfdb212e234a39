"""Memory of the size of an image is used again by the process, and not given back to the kernel each time."""

import ctypes
from typing import Final

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT_BYTES: Final = 32 * 1024 * 1024
"""glibc allows no more."""
_KEPT_BYTES: Final = 256 * 1024 * 1024


def keep_large_blocks() -> None:
    """Have freed blocks of up to 32 MiB kept, 256 MiB of them.

    Otherwise glibc returns each freed image of a MiB, and 256 pages are faulted in for the next one. Other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
