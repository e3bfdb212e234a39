"""An engine without a model: its pixels say whose image it is, and it fails on demand.

For tests and for measuring the serving path. It is never chosen unless somebody asks for it by name.
"""

import ctypes
import hashlib
import io
import json
import os
import re
import signal
import struct
import threading
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from gpu_worker.engines.engine import (
    Drawing,
    EngineBroken,
    EngineJob,
    JobProgress,
    LoadProgress,
    NonFiniteImage,
    OutOfDeviceMemory,
    RgbImage,
)
from gpu_worker.png import encode_png
from proto.messages import JobPhase, ModelCard

_MAGIC: Final = b"FLUXFAKE"
_LENGTH: Final = struct.Struct(">I")
_CHECKSUM: Final = struct.Struct(">I")
_MAX_TEXT_BYTES: Final = 1024
_LOADING_SLICES: Final = 10
_GATE_LOOK_S: Final = 0.02


class Fault(StrEnum):
    CRASH = "crash"
    """The process kills itself."""
    HANG = "hang"
    """No progress any more, and deaf to cancelling."""
    HOLD_GIL = "gil"
    """Likewise, in a call that keeps every thread of its process from running."""
    OUT_OF_MEMORY = "oom"
    ERROR = "error"
    NON_FINITE = "nonfinite"
    POISONED = "poisoned"
    """The device is unusable: the process ends itself."""


_MARKER: Final = re.compile(rf"(?<!\S)!(?P<fault>{'|'.join(Fault)})@(?P<step>[0-9]{{1,4}})(?!\S)")
"""A word of the prompt such as `!crash@3`: while step 3 is being made. Step 0 is the text phase."""


class DamagedImageError(Exception):
    """These bytes are no image of the fake engine, or no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeImageContent:
    """What a picture of the fake engine says about itself."""

    job_id: bytes
    execution_id: bytes
    prompt_digest: str
    """As `prompt_digest` makes it."""
    height: int
    width: int
    steps: int
    guidance: float
    seed: int


def prompt_digest(prompt: str) -> str:
    """The first 16 hexadecimal digits of the prompt's SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def faults_of(prompt: str) -> dict[int, Fault]:
    """The faults that a prompt asks for, by step. The first marker of a step counts."""
    faults: dict[int, Fault] = {}
    for marker in _MARKER.finditer(prompt):
        faults.setdefault(int(marker["step"]), Fault(marker["fault"]))
    return faults


class FakeEngine:
    """Takes `step_s` seconds a step and `load_s` to load; obeys fault markers if `faults`.

    While the file `gate` exists, no job gets beyond its first step: whoever made the file can look at a
    running job, and break something, for as long as it takes. With `png_bytes` it paints nothing, and gives
    a black PNG of that size, or a little more where that is too small, made beforehand.
    """

    def __init__(
        self,
        *,
        step_s: float,
        faults: bool,
        load_s: float = 0.0,
        gate: Path | None = None,
        png_bytes: int = 0,
    ) -> None:
        self._step_s = step_s
        self._faults = faults
        self._load_s = load_s
        self._gate = gate
        self._png_bytes = png_bytes
        self._blanks: dict[tuple[int, int], Drawing] = {}

    def load(self, on_progress: LoadProgress) -> ModelCard:
        for part in range(_LOADING_SLICES):
            on_progress("pretending to load", 100 * part // _LOADING_SLICES)
            _wait(self._load_s / _LOADING_SLICES)
        return ModelCard(
            engine="fake",
            name="fake",
            precision="none",
            device="cpu",
            warning="fake engine: pixels without a model, for tests only",
        )

    def warm_up(self) -> None:
        pass

    def generate(self, job: EngineJob, on_progress: JobProgress) -> Drawing:
        faults = faults_of(job.prompt) if self._faults else {}
        on_progress(JobPhase.TEXT, 0)
        _suffer(faults, 0)
        on_progress(JobPhase.STEP, 0)
        for step in range(1, job.parameters.steps + 1):
            _wait(self._step_s)
            _suffer(faults, step)
            on_progress(JobPhase.STEP, step)
            self._stand_at_gate(step, on_progress)
        on_progress(JobPhase.DECODE, job.parameters.steps)
        return self._blank(job) if self._png_bytes else Drawing(_paint(job))

    def _blank(self, job: EngineJob) -> Drawing:
        size = (job.parameters.height, job.parameters.width)
        if size not in self._blanks:
            self._blanks.clear()
            black = np.zeros((*size, 3), dtype=np.uint8)
            padding = "x" * (self._png_bytes - len(encode_png(black, {"Comment": ""})))
            self._blanks[size] = Drawing(black, png=encode_png(black, {"Comment": padding}))
        return self._blanks[size]

    def _stand_at_gate(self, step: int, on_progress: JobProgress) -> None:
        """Alive, and open to a cancel."""
        while self._gate is not None and self._gate.exists():
            _wait(_GATE_LOOK_S)
            on_progress(JobPhase.STEP, step)


def _suffer(faults: Mapping[int, Fault], step: int) -> None:
    match faults.get(step):
        case None:
            return
        case Fault.CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        case Fault.HANG:
            _hang()
        case Fault.HOLD_GIL:
            _hold_gil()
        case Fault.OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"fake: out of memory at step {step}")
        case Fault.ERROR:
            raise RuntimeError(f"fake: error at step {step}")
        case Fault.NON_FINITE:
            raise NonFiniteImage(f"fake: NaN at step {step}")
        case Fault.POISONED:
            raise EngineBroken(f"fake: device poisoned at step {step}")


def _hang() -> NoReturn:
    while True:
        threading.Event().wait()


def _hold_gil() -> NoReturn:
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()


def _wait(duration_s: float) -> None:
    threading.Event().wait(duration_s)


def _paint(job: EngineJob) -> RgbImage:
    """Noise of the seed, with the record over it from the top left, cut off where the picture ends."""
    wanted = job.parameters
    noise = np.random.default_rng(wanted.seed).integers(
        0, 16, 3 * wanted.height * wanted.width, dtype=np.uint8
    )
    # Four bits of noise make a PNG about as large as that of a real picture.
    pixels = noise * np.uint8(16)
    record = np.frombuffer(_record(job), dtype=np.uint8)[: pixels.size]
    pixels[: record.size] = record
    return pixels.reshape(wanted.height, wanted.width, 3)


def _record(job: EngineJob) -> bytes:
    facts = {
        "job_id": job.job_id.hex(),
        "execution_id": job.execution_id.hex(),
        "prompt_digest": prompt_digest(job.prompt),
        **asdict(job.parameters),
    }
    text = json.dumps(facts, separators=(",", ":")).encode()
    return _MAGIC + _LENGTH.pack(len(text)) + text + _CHECKSUM.pack(zlib.crc32(text))


def read_fake_image(png: bytes) -> FakeImageContent | None:
    """What the picture says about itself; None where it is too small to hold that.

    Raises:
        DamagedImageError: no PNG, not of the fake engine, changed, or of another size than it says.
    """
    pixels, height, width = _pixels_of(png)
    if pixels[: len(_MAGIC)] != _MAGIC[: len(pixels)]:
        raise DamagedImageError("the picture does not begin with the fake engine's mark")
    text = _checked_text(pixels)
    if text is None:
        return None
    content = _parse(text)
    if (content.height, content.width) != (height, width):
        raise DamagedImageError(
            f"the picture is {height} x {width} (height x width) and says {content.height} x {content.width}"
        )
    return content


def _pixels_of(png: bytes) -> tuple[bytes, int, int]:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode != "RGB":
                raise DamagedImageError(f"the picture is {image.mode}, not RGB")
            return image.tobytes(), image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DamagedImageError(f"not a whole PNG: {error}") from error


def _checked_text(pixels: bytes) -> bytes | None:
    start = len(_MAGIC) + _LENGTH.size
    if len(pixels) < start:
        return None
    (length,) = _LENGTH.unpack_from(pixels, len(_MAGIC))
    if length > _MAX_TEXT_BYTES:
        raise DamagedImageError(f"the record claims {length} bytes, at most {_MAX_TEXT_BYTES} are possible")
    if len(pixels) < start + length + _CHECKSUM.size:
        return None
    text = pixels[start : start + length]
    (checksum,) = _CHECKSUM.unpack_from(pixels, start + length)
    if zlib.crc32(text) != checksum:
        raise DamagedImageError("the record's checksum is wrong")
    return text


def _parse(text: bytes) -> FakeImageContent:
    try:
        facts = json.loads(text)
        return FakeImageContent(
            job_id=bytes.fromhex(facts["job_id"]),
            execution_id=bytes.fromhex(facts["execution_id"]),
            prompt_digest=str(facts["prompt_digest"]),
            height=int(facts["height"]),
            width=int(facts["width"]),
            steps=int(facts["steps"]),
            guidance=float(facts["guidance"]),
            seed=int(facts["seed"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedImageError(f"the record cannot be read: {error}") from error
