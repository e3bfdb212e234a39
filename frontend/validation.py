"""From what a caller sent to a `ValidJob`. Everything behind this module takes only the validated job."""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proto.messages import ID_SIZE_BYTES, MAX_PROMPT_BYTES, ImageParameters

if TYPE_CHECKING:  # the job desk imports this module, and is to be tested without protobuf
    from image_gen_pb2 import GenerateRequest

SIDE_MIN: Final = 1
SIDE_MAX: Final = 1024
STEPS_MIN: Final = 1
STEPS_MAX: Final = 20
GUIDANCE_MAX: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Those limits of the contract that an operator may set."""

    guidance_min: float = 1.0
    max_prompt_bytes: int = MAX_PROMPT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidJob:
    """What image to draw; every value is within the contract."""

    prompt: str
    parameters: ImageParameters
    digest: bytes
    """16 bytes over all that the caller asked for. A seed that the service drew is no part of it: a repeat
    of the same call has the same digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One field of a request, or entry of its metadata, that cannot be served."""

    field: str
    value: str
    allowed: str
    problem: str = "is out of range"

    @property
    def message(self) -> str:
        return f"{self.field}: {self.value} {self.problem}, allowed is {self.allowed}"


def validate(
    request: "GenerateRequest", limits: RequestLimits, draw_seed: Callable[[], int]
) -> ValidJob | tuple[FieldViolation, ...]:
    """The job, or everything that is wrong with the request.

    Args:
        draw_seed: gives a seed of 64 bits; called if the request has none.
    """
    prompt_bytes = request.prompt.encode()
    checks = (
        _prompt_size(len(prompt_bytes), limits.max_prompt_bytes),
        _integer("height", request.height, SIDE_MIN, SIDE_MAX, " pixels"),
        _integer("width", request.width, SIDE_MIN, SIDE_MAX, " pixels"),
        _integer("num_inference_steps", request.num_inference_steps, STEPS_MIN, STEPS_MAX, ""),
        _guidance(request.guidance_scale, limits.guidance_min),
    )
    violations = tuple(violation for violation in checks if violation is not None)
    if violations:
        return violations
    parameters = ImageParameters(
        height=request.height,
        width=request.width,
        steps=request.num_inference_steps,
        guidance=request.guidance_scale,
        seed=request.seed if request.HasField("seed") else draw_seed(),
    )
    return ValidJob(prompt=request.prompt, parameters=parameters, digest=_digest(request, prompt_bytes))


def _prompt_size(size_bytes: int, max_bytes: int) -> FieldViolation | None:
    if size_bytes <= max_bytes:
        return None
    # The prompt itself belongs neither into a message nor into a log.
    return FieldViolation(
        field="prompt", value=f"a text of {size_bytes} bytes", allowed=f"up to {max_bytes} bytes of UTF-8"
    )


def _integer(field: str, value: int, lowest: int, highest: int, unit: str) -> FieldViolation | None:
    if lowest <= value <= highest:
        return None
    return FieldViolation(field=field, value=str(value), allowed=f"{lowest} to {highest}{unit}")


def _guidance(value: float, lowest: float) -> FieldViolation | None:
    # The wire has 32 bits: what a caller writes as 0.7 arrives a little below the 64-bit 0.7.
    if _as_float32(lowest) <= value <= GUIDANCE_MAX:
        return None
    return FieldViolation(
        field="guidance_scale", value=shortest_float32(value), allowed=f"{lowest} to {GUIDANCE_MAX}"
    )


def _as_float32(value: float) -> float:
    try:
        narrowed: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return narrowed


def shortest_float32(value: float) -> str:
    """The shortest decimal that names this 32-bit float, so that people see the number they sent."""
    if not math.isfinite(value):
        return str(value)
    texts = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next((text for text in texts if _as_float32(float(text)) == value), str(value))


def _digest(request: "GenerateRequest", prompt_bytes: bytes) -> bytes:
    has_seed = request.HasField("seed")
    numbers = struct.pack(
        "<IIId?Q",
        request.height,
        request.width,
        request.num_inference_steps,
        request.guidance_scale,
        has_seed,
        request.seed if has_seed else 0,
    )
    return hashlib.blake2b(numbers + prompt_bytes, digest_size=ID_SIZE_BYTES).digest()
