"""An actor's own monotonic clock: it starts anywhere, and is a little fast or slow."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Readings and instants in seconds. An *instant* is the world's time, which no actor knows."""

    rate: float = 1.0
    """Seconds that it shows for a second of the world."""
    offset_s: float = 0.0

    def reading_at(self, instant: float) -> float:
        return self.offset_s + instant * self.rate

    def instant_of(self, reading: float) -> float:
        return (reading - self.offset_s) / self.rate
