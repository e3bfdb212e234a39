"""What the worker's host and GPUs are busy with, through psutil and NVML."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol, TypeVar

import msgspec
import psutil
import pynvml
import structlog

from gpu_worker.engines.error_text import first_line
from gpu_worker.own_gpu import is_uuid
from proto.messages import GpuReading, Readings

_MIB: Final = 1024 * 1024
_MAX_GPUS: Final = 64
_NAME_CHARACTERS: Final = 128
DRIVER_RETRY_S: Final = 60.0
"""Until a driver that was not there is looked for again: each look leaves 2.6 kB of cycles (ctypes' classes)
for the garbage collector, which seldom looks.
"""

_A = TypeVar("_A")
_T = TypeVar("_T")
Handle = Any
"""NVML's pointer to a device."""

log = structlog.get_logger()


class Nvml(Protocol):
    """The part of the `pynvml` module that is used here. Every call can raise `NVMLError`, and can block."""

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: N802
    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle: ...  # noqa: N802
    def nvmlDeviceGetIndex(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Handle) -> str: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Handle) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Handle) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Any: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int: ...  # noqa: N802


class _Driver(Enum):
    UNKNOWN = auto()
    THERE = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class _CpuTimes:
    """Of all cores together, since the host's start. psutil's own percentage counts for each thread apart."""

    busy_s: float
    total_s: float

    @classmethod
    def read(cls) -> "_CpuTimes":
        times = psutil.cpu_times()
        # Linux counts what guests use twice, and waiting for a disk separately from idling.
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return cls(busy_s=total_s - times.idle - getattr(times, "iowait", 0.0), total_s=total_s)


class ReadingsTaker:
    """Takes readings, one at a time, in whatever thread. A GPU that does not answer is left out."""

    def __init__(
        self,
        cuda_visible_devices: str | None,
        nvml: Nvml = pynvml,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cuda_visible_devices` as in the variable of that name: None for all GPUs."""
        self._cuda_visible_devices = cuda_visible_devices
        self._nvml = nvml
        self._clock = clock
        self._driver = _Driver.UNKNOWN
        self._look_at = clock()
        self._cpu_times = _CpuTimes.read()

    def take(self) -> Readings:
        """Blocking: a GPU driver can take its time."""
        memory = psutil.virtual_memory()
        return Readings(
            cpu_percent=self._cpu_percent(),
            ram_used_mb=memory.used / _MIB,
            ram_total_mb=memory.total / _MIB,
            gpus=self._gpus(),
        )

    def _cpu_percent(self) -> float:
        """Since the last reading, or since this object was made."""
        before, self._cpu_times = self._cpu_times, _CpuTimes.read()
        total_s = self._cpu_times.total_s - before.total_s
        busy_s = self._cpu_times.busy_s - before.busy_s
        return min(100.0, max(0.0, 100.0 * busy_s / total_s)) if total_s > 0 else 0.0

    def _gpus(self) -> tuple[GpuReading, ...]:
        if not self._reach_driver():
            return ()
        try:
            handles = visible_handles(self._nvml, self._cuda_visible_devices)
        except self._nvml.NVMLError as error:
            log.warning("gpu driver does not answer", error=first_line(error))
            self._forget_driver()
            return ()
        readings = (self._read_gpu(handle) for handle in handles[:_MAX_GPUS])
        return tuple(reading for reading in readings if reading is not None)

    def _reach_driver(self) -> bool:
        """Whether there is a driver. Where there is none, one may still be installed later."""
        if self._driver is _Driver.THERE:
            return True
        if self._clock() < self._look_at:
            return False
        self._look_at = self._clock() + DRIVER_RETRY_S
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            if self._driver is _Driver.UNKNOWN:
                log.debug("no gpu driver, so no gpu readings", reason=first_line(error))
            self._driver = _Driver.ABSENT
            return False
        self._driver = _Driver.THERE
        return True

    def _forget_driver(self) -> None:
        """After an update of the driver only a new start of NVML helps."""
        self._driver = _Driver.ABSENT
        self._look_at = self._clock()
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.debug("gpu driver was gone already", error=first_line(error))

    def _read_gpu(self, handle: Handle) -> GpuReading | None:
        """None without the essentials, or with what a report may not hold: the other GPUs' are still good."""
        try:
            reading = msgspec.convert(self._what_it_says(handle), GpuReading)
            (reading.uuid + reading.name).encode()  # A report holds UTF-8 alone.
            return reading
        except (self._nvml.NVMLError, ValueError) as error:
            log.debug("gpu left out of the readings", error=" ".join(str(error).split()))
            return None

    def _what_it_says(self, handle: Handle) -> dict[str, object]:
        """The fields of a `GpuReading`, unchecked."""
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "uuid": nvml.nvmlDeviceGetUUID(handle),
            "name": self._or_default(lambda: nvml.nvmlDeviceGetName(handle)[:_NAME_CHARACTERS], "unknown"),
            "memory_used_mb": memory.used / _MIB,
            "memory_total_mb": memory.total / _MIB,
            "utilization_percent": self._or_default(
                lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu), 0.0
            ),
            "temperature_celsius": self._or_default(
                lambda: float(nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)), 0.0
            ),
        }

    def _or_default(self, read: Callable[[], _T], default: _T) -> _T:
        """What some devices lack, such as the utilization of a slice of a GPU."""
        try:
            return read()
        except (self._nvml.NVMLError, ValueError) as error:  # The latter for a text that is not UTF-8.
            log.debug("gpu has no such reading", error=first_line(error))
            return default


def visible_handles(nvml: Nvml, cuda_visible_devices: str | None) -> list[Handle]:
    """The GPUs that CUDA would show, in its order: numbers or UUIDs, ending before the first unknown one.

    Raises `NVMLError` if the driver does not answer.
    """
    if cuda_visible_devices is None:
        return _all_handles(nvml)
    handles: list[Handle] = []
    for entry in cuda_visible_devices.split(","):
        handle = _handle_of(nvml, entry.strip())
        if handle is None:
            break
        handles.append(handle)
    return handles


def _all_handles(nvml: Nvml) -> list[Handle]:
    """Without GPUs that are there but do not answer."""
    handles = (
        _reached(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(nvml.nvmlDeviceGetCount())
    )
    return [handle for handle in handles if handle is not None]


def _handle_of(nvml: Nvml, entry: str) -> Handle | None:
    if entry.isascii() and entry.isdigit():
        return _reached(nvml, nvml.nvmlDeviceGetHandleByIndex, int(entry))
    if entry.startswith("MIG-"):
        return _reached(nvml, nvml.nvmlDeviceGetHandleByUUID, entry)
    if entry.startswith("GPU-"):
        # Any unambiguous beginning will do.
        uuids = ((handle, _reached(nvml, nvml.nvmlDeviceGetUUID, handle)) for handle in _all_handles(nvml))
        return next((handle for handle, uuid in uuids if uuid is not None and uuid.startswith(entry)), None)
    return None


def _reached(nvml: Nvml, call: Callable[[_A], _T], argument: _A) -> _T | None:
    """What the driver answers; None if it says that there is no such GPU, or the GPU is lost."""
    try:
        return call(argument)
    except nvml.NVMLError:
        return None


def device_label(device: str, cuda_visible_devices: str | None, nvml: Nvml = pynvml) -> str:
    """What `--device` is on this host: cpu, gpu and the driver's number, or the UUID that it is itself."""
    if device == "cpu" or is_uuid(device):
        return device
    position = int(device.partition(":")[2] or 0)
    handle = _handle_at(nvml, cuda_visible_devices, position)
    index = None if handle is None else _reached(nvml, nvml.nvmlDeviceGetIndex, handle)
    if index is not None:
        return f"gpu{index}"
    return "cpu" if device == "auto" and handle is None else f"gpu{position}"


def _handle_at(nvml: Nvml, cuda_visible_devices: str | None, position: int) -> Handle | None:
    try:
        nvml.nvmlInit()
        handles = visible_handles(nvml, cuda_visible_devices)
    except nvml.NVMLError:
        return None  # Most hosts of a worker without a GPU have no driver.
    return handles[position] if position < len(handles) else None
