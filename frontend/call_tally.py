"""What this frontend has answered since it started, counted. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proto.histogram import Histogram
from proto.messages import Distribution

DRAWING_METHOD: Final = "Generate"
_COMMON_CODES: Final = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
    "UNAVAILABLE",
)
"""Those of `Generate` begin at 0: a series that begins at its first failure hides it from `rate()`."""
REQUEST_BOUNDS_S: Final = (
    0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Up to the default of `max_job_s`."""
IMAGE_BOUNDS_BYTES: Final = tuple(float(2**exponent) for exponent in range(14, 25))
"""16 KiB to 16 MiB, the most that the service carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallNumbers:
    """A tally at one moment."""

    ended: Mapping[tuple[str, str], int]
    """By method and gRPC code."""
    request_s: Mapping[str, Distribution]
    """Of `Generate`, by gRPC code."""
    image_bytes: Distribution


class CallTally:
    """Counters only. Calls without a valid API key are not among them."""

    def __init__(self) -> None:
        self._ended: Counter[tuple[str, str]] = Counter(
            dict.fromkeys(((DRAWING_METHOD, code) for code in _COMMON_CODES), 0)
        )
        self._request_s = {code: Histogram(REQUEST_BOUNDS_S) for code in _COMMON_CODES}
        self._image_bytes = Histogram(IMAGE_BOUNDS_BYTES)

    def call_ended(self, method: str, code: str, duration_s: float) -> None:
        self._ended[method, code] += 1
        if method == DRAWING_METHOD:
            if code not in self._request_s:
                self._request_s[code] = Histogram(REQUEST_BOUNDS_S)
            self._request_s[code].observe(duration_s)

    def image_sent(self, size_bytes: int) -> None:
        self._image_bytes.observe(size_bytes)

    def numbers(self) -> CallNumbers:
        return CallNumbers(
            ended=dict(self._ended),
            request_s={code: each.distribution() for code, each in self._request_s.items()},
            image_bytes=self._image_bytes.distribution(),
        )
