"""The one GPU of a worker: what its engine process may see of the host's. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnGpu:
    """The device inside an engine process."""

    device: str
    """cpu, auto or cuda: the only GPU, if there is one."""
    visible: str
    """`CUDA_VISIBLE_DEVICES` for that process, and for the readings: one GPU, or none."""


def own_gpu(device: str, cuda_visible_devices: str | None) -> OwnGpu:
    """What `device` is, where the operator has limited the GPUs to these (None: has not).

    A number beyond the operator's list gives no GPU, and the engine says that there is none. A UUID is taken
    whatever the list says.
    """
    if device == "cpu":
        return OwnGpu("cpu", "")
    if is_uuid(device):
        return OwnGpu("cuda", device)
    kind, _, number = device.partition(":")
    position = int(number or 0)
    if cuda_visible_devices is None:
        return OwnGpu(kind, str(position))
    listed = list(_listed(cuda_visible_devices))
    return OwnGpu(kind, listed[position] if position < len(listed) else "")


def is_uuid(device: str) -> bool:
    """Of a GPU, or of a slice of one."""
    return device.startswith(("GPU-", "MIG-"))


def _listed(cuda_visible_devices: str) -> Iterator[str]:
    """As CUDA reads it: up to the first entry that cannot be a GPU."""
    for entry in cuda_visible_devices.split(","):
        name = entry.strip()
        if not name or name.startswith("-"):
            return
        yield name
