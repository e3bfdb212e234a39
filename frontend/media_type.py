"""Which form of a page a client wants, by its `Accept` header (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", re.ASCII)


class _Form(NamedTuple):
    name: str
    versions: tuple[str, ...]
    """Whose readers are served with it. The first is the one that is sent."""
    content_type: str


class MediaType(Enum):
    """The forms of /metrics, the preferred one first."""

    JSON = _Form("application/json", (), "application/json; charset=utf-8")
    OPEN_METRICS = _Form(
        "application/openmetrics-text",
        ("1.0.0",),
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )
    # Version 1.0.0 only adds quoted names, of which there are none.
    PROMETHEUS = _Form("text/plain", ("0.0.4", "1.0.0"), "text/plain; version=0.0.4; charset=utf-8")

    @property
    def content_type(self) -> str:
        return self.value.content_type


@dataclass(frozen=True, slots=True)
class _Range:
    """One entry of the header. Of its parameters only the version tells forms apart."""

    name: str
    version: str
    quality: float

    def specificity(self, media_type: MediaType) -> int:
        """How exactly it means this form; 0: not at all."""
        name, versions, _ = media_type.value
        if self.name == name and self.version in versions:
            return 5 if self.version == versions[0] else 4
        if self.version:
            return 0
        if self.name == name:
            return 3
        return {f"{name.partition('/')[0]}/*": 2, "*/*": 1}.get(self.name, 0)


def wanted_type(accept: Iterable[str]) -> MediaType:
    """The form with the highest quality; of several the first, JSON also where none is acceptable.

    `accept`: the values of all headers of that name. What is malformed in them is left out.
    """
    ranges = [entry for value in accept for entry in map(_parse, value.split(",")) if entry is not None]
    return max(MediaType, key=lambda each: _quality(each, ranges)) if ranges else MediaType.JSON


def _quality(media_type: MediaType, ranges: list[_Range]) -> float:
    """That of the entry which means it most exactly."""
    meant = [(each.specificity(media_type), each.quality) for each in ranges]
    specificity, quality = max(meant)
    return quality if specificity else 0.0


def _parse(entry: str) -> _Range | None:
    name, *rest = (part.strip() for part in entry.lower().split(";"))
    parameters = {key.strip(): value.strip().strip('"') for key, _, value in (p.partition("=") for p in rest)}
    quality = parameters.get("q", "1")
    if not _QUALITY.fullmatch(quality):
        return None
    return _Range(name, parameters.get("version", ""), float(quality))
