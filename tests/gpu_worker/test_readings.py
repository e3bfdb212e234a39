"""Readings with no GPU, several, and drivers that fail in parts."""

# ruff: noqa: N802, ARG002 - the stand-in has NVML's names and parameters

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from gpu_worker.own_gpu import own_gpu
from gpu_worker.readings import DRIVER_RETRY_S, Nvml, ReadingsTaker, device_label, visible_handles
from proto.codec import decode, encode
from proto.messages import Readings, WorkerPhase, WorkerReport

MIB = 1024 * 1024
T = TypeVar("T")


class FakeNvmlError(Exception):
    pass


@dataclass
class FakeGpu:
    uuid: str
    index: int
    used_mb: int = 100
    total_mb: int = 1000
    name: str = "Test GPU"
    silent: set[str] = field(default_factory=set)
    """Names of the readings that it refuses."""


@dataclass(frozen=True)
class FakeMemory:
    used: int
    total: int


@dataclass(frozen=True)
class FakeRates:
    gpu: int


class FakeNvml:
    """Stands in for the module `pynvml`."""

    NVMLError = FakeNvmlError

    def __init__(self, *gpus: FakeGpu, driver: bool = True) -> None:
        self.gpus = list(gpus)
        self.driver = driver
        self.starts = 0

    def nvmlInit(self) -> None:
        self.starts += 1
        self._need(self.driver)

    def nvmlShutdown(self) -> None:
        self._need(self.driver)

    def nvmlDeviceGetCount(self) -> int:
        self._need(self.driver)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._need(index < len(self.gpus) and "handle" not in self.gpus[index].silent)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        found = [gpu for gpu in self.gpus if gpu.uuid == uuid]
        self._need(bool(found))
        return found[0]

    def nvmlDeviceGetIndex(self, handle: FakeGpu) -> int:
        return self._read(handle, "index", lambda: handle.index)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return self._read(handle, "uuid", lambda: handle.uuid)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return self._read(handle, "name", lambda: handle.name)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> FakeMemory:
        return self._read(handle, "memory", lambda: FakeMemory(handle.used_mb * MIB, handle.total_mb * MIB))

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> FakeRates:
        return self._read(handle, "utilization", lambda: FakeRates(42))

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return self._read(handle, "temperature", lambda: 61)

    def _read(self, handle: FakeGpu, name: str, read: Callable[[], T]) -> T:
        self._need(name not in handle.silent)
        return read()

    def _need(self, holds: bool) -> None:
        if not holds:
            raise FakeNvmlError("refused")


def three_gpus() -> FakeNvml:
    return FakeNvml(*(FakeGpu(f"GPU-{number}{number}aa-bb", number) for number in range(3)))


def test_host_readings_are_plausible() -> None:
    taker = ReadingsTaker(None, FakeNvml(driver=False))
    for readings in (taker.take(), taker.take()):
        assert 0 <= readings.cpu_percent <= 100
        assert 0 < readings.ram_used_mb < readings.ram_total_mb
        assert readings.gpus == ()


def test_cpu_percent_is_that_of_the_time_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Times:
        user: float
        idle: float
        iowait: float
        guest: float

        def __iter__(self) -> Any:
            return iter((self.user, self.idle, self.iowait, self.guest))

    readings = iter([Times(10, 80, 10, 5), Times(40, 140, 20, 5), Times(40, 140, 20, 5)])
    monkeypatch.setattr("gpu_worker.readings.psutil.cpu_times", lambda: next(readings))
    taker = ReadingsTaker("", FakeNvml())
    assert taker.take().cpu_percent == pytest.approx(30)
    assert taker.take().cpu_percent == 0, "no time has passed"


def test_all_gpus_are_read() -> None:
    gpus = ReadingsTaker(None, three_gpus()).take().gpus
    assert [gpu.uuid for gpu in gpus] == ["GPU-00aa-bb", "GPU-11aa-bb", "GPU-22aa-bb"]
    first = gpus[0]
    assert (first.name, first.memory_used_mb, first.memory_total_mb) == ("Test GPU", 100, 1000)
    assert (first.utilization_percent, first.temperature_celsius) == (42, 61)


def test_a_driver_without_gpus() -> None:
    assert ReadingsTaker(None, FakeNvml()).take().gpus == ()


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2, 0", [2, 0]),
        ("1,9,0", [1]),
        ("9", []),
        ("GPU-22aa-bb", [2]),
        ("GPU-1,GPU-00", [1, 0]),
        ("GPU-7,0", []),
        ("MIG-1", []),
        ("nonsense,0", []),
        ("²", []),
    ],
)
def test_only_gpus_that_cuda_shows(visible: str | None, indices: list[int]) -> None:
    assert [handle.index for handle in visible_handles(three_gpus(), visible)] == indices


def test_a_slice_of_a_gpu_is_found_by_its_uuid() -> None:
    nvml = three_gpus()
    nvml.gpus.append(FakeGpu("MIG-5", 0, silent={"utilization", "temperature", "index"}))
    (reading,) = ReadingsTaker("MIG-5", nvml).take().gpus
    assert (reading.uuid, reading.utilization_percent, reading.temperature_celsius) == ("MIG-5", 0, 0)
    assert reading.memory_total_mb == 1000


@pytest.mark.parametrize("refused", ["name", "utilization", "temperature"])
def test_one_refused_reading_leaves_the_others(refused: str) -> None:
    nvml = three_gpus()
    nvml.gpus[1].silent.add(refused)
    gpus = ReadingsTaker(None, nvml).take().gpus
    assert len(gpus) == 3
    assert gpus[1].memory_used_mb == 100


@pytest.mark.parametrize("refused", ["handle", "memory", "uuid"])
def test_a_lost_gpu_is_left_out(refused: str) -> None:
    nvml = three_gpus()
    nvml.gpus[1].silent.add(refused)
    assert [gpu.uuid[4] for gpu in ReadingsTaker(None, nvml).take().gpus] == ["0", "2"]


def survives_the_wire(readings: Readings) -> bool:
    report = WorkerReport(
        worker_id="w", incarnation=bytes(16), seq=1, host="h", phase=WorkerPhase.READY, readings=readings
    )
    return decode(encode(report)) == report


@pytest.mark.parametrize(
    "bad",
    [
        FakeGpu("", 1),
        FakeGpu("GPU-" + "1" * 200, 1),
        FakeGpu("GPU-\ud800", 1),
        FakeGpu("GPU-11aa-bb", 1, used_mb=-1),
        FakeGpu("GPU-11aa-bb", 1, total_mb=-1000),
    ],
)
def test_a_gpu_that_says_nonsense_is_left_out(bad: FakeGpu) -> None:
    nvml = three_gpus()
    nvml.gpus[1] = bad
    readings = ReadingsTaker(None, nvml).take()
    assert [gpu.uuid[4] for gpu in readings.gpus] == ["0", "2"]
    assert survives_the_wire(readings)


def test_a_uuid_that_cannot_be_decoded_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = three_gpus()

    def garbled(handle: FakeGpu) -> str:
        return b"\xff".decode() if handle.index == 1 else handle.uuid

    monkeypatch.setattr(nvml, "nvmlDeviceGetUUID", garbled)
    assert [gpu.uuid[4] for gpu in ReadingsTaker(None, nvml).take().gpus] == ["0", "2"]


@pytest.mark.parametrize("name", ["", "x" * 5000])
def test_any_name_will_do(name: str) -> None:
    nvml = three_gpus()
    nvml.gpus[1].name = name
    readings = ReadingsTaker(None, nvml).take()
    assert len(readings.gpus) == 3
    assert name.startswith(readings.gpus[1].name)
    assert survives_the_wire(readings)


def test_no_driver_is_said_once_and_quietly() -> None:
    now = itertools.count(0.0, DRIVER_RETRY_S)
    taker = ReadingsTaker(None, FakeNvml(driver=False), now.__next__)
    with capture_logs() as logged:
        taker.take()
        taker.take()
    assert [line["log_level"] for line in logged] == ["debug"]


def test_a_driver_that_comes_goes_and_comes_back() -> None:
    nvml = three_gpus()
    now = 0.0
    taker = ReadingsTaker(None, nvml, lambda: now)
    counts = []
    for nvml.driver in (False, True, True, False, False, True):
        counts.append(len(taker.take().gpus))
        now += DRIVER_RETRY_S
    assert counts == [0, 3, 3, 0, 0, 3]
    assert nvml.starts == 4, "started anew only where it was not there"


def test_a_driver_that_is_not_there_is_seldom_looked_for() -> None:
    """Each look leaves garbage behind. One that was there is looked for at once: it may have been updated."""
    nvml = FakeNvml(driver=False)
    now = 0.0
    taker = ReadingsTaker(None, nvml, lambda: now)
    for _ in range(600):
        taker.take()
        now += 1.0
    assert nvml.starts == 600 / DRIVER_RETRY_S
    nvml, now = three_gpus(), 0.0
    taker = ReadingsTaker(None, nvml, lambda: now)
    for nvml.driver in (True, False, True):
        taker.take()
    assert nvml.starts == 2


def test_the_installed_library_works_here() -> None:
    assert isinstance(ReadingsTaker(None).take().gpus, tuple)


@pytest.mark.parametrize(
    ("device", "visible", "label"),
    [
        ("cpu", None, "cpu"),
        ("auto", None, "gpu0"),
        ("auto", "2,1", "gpu2"),
        ("cuda", "1", "gpu1"),
        ("cuda:1", "2,1", "gpu1"),
        ("cuda:2", None, "gpu2"),
        ("cuda:7", None, "gpu7"),
        ("auto", "", "cpu"),
        ("auto", "MIG-5", "gpu0"),
        ("MIG-5", None, "MIG-5"),
        ("GPU-22aa-bb", None, "GPU-22aa-bb"),
    ],
)
def test_device_labels(device: str, visible: str | None, label: str) -> None:
    nvml = three_gpus()
    nvml.gpus.append(FakeGpu("MIG-5", 0, silent={"index"}))
    assert device_label(device, visible, nvml) == label


def test_device_labels_without_a_driver() -> None:
    nvml: Nvml = FakeNvml(driver=False)
    assert [device_label(device, None, nvml) for device in ("auto", "cuda:1")] == ["cpu", "gpu1"]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda:1", None, ["GPU-11aa-bb"]),
        ("auto", None, ["GPU-00aa-bb"]),
        ("cuda:1", "2,0", ["GPU-00aa-bb"]),
        ("cuda", "GPU-22aa", ["GPU-22aa-bb"]),
        ("cuda:7", None, []),
        ("cpu", None, []),
    ],
)
def test_a_worker_reads_its_own_gpu_only(device: str, visible: str | None, expected: list[str]) -> None:
    readings = ReadingsTaker(own_gpu(device, visible).visible, three_gpus()).take()
    assert [gpu.uuid for gpu in readings.gpus] == expected
