"""Whether a worker that loses one engine after the other should take jobs: a pure count of what they died on.

One job that kills engines is that job's fault, and the broker gives it up. Two different ones in a row speak
against the device: a worker that goes on would be the end of every job it is given, and its idle slot would
draw more of them than the sound workers' busy ones.
"""

from dataclasses import dataclass, field
from typing import Final

_DIFFERENT_JOBS: Final = 2


@dataclass(slots=True, kw_only=True)
class Quarantine:
    duration_s: float
    """0: never."""
    _died_on: frozenset[bytes] = field(default_factory=frozenset)
    """Parameter digests, since the last finished image; no more of them than it takes."""

    @property
    def is_due(self) -> bool:
        """After a death on a job; once due, each further one does it until an image is finished."""
        return self.duration_s > 0 and len(self._died_on) >= _DIFFERENT_JOBS

    def engine_died_on(self, parameters_digest: bytes) -> None:
        """The same job tried again has the same digest."""
        if len(self._died_on) < _DIFFERENT_JOBS:
            self._died_on |= {parameters_digest}

    def image_finished(self) -> None:
        """The engine works."""
        self._died_on = frozenset()

    def reason(self, last_death: str) -> str:
        """For a report."""
        return (
            f"quarantined for {self.duration_s:g} s: its engine died on two different jobs"
            f" without an image in between; at last: {last_death}"
        )
