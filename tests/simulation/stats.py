"""What a simulation did: counts, so that a run which tested nothing can be told from one that did."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Of one world, or added up over many."""

    seeds: int = 0
    world_s: float = 0.0
    steps: int = 0
    calls: int = 0
    executions: int = 0
    """Begun in an engine."""
    images: int = 0
    """Executions that ended in one."""
    delivered: int = 0
    """Calls that got one."""
    endings: Counter[str] = field(default_factory=Counter)
    """Calls, by how they ended."""
    brokers: Counter[str] = field(default_factory=Counter)
    """Worlds, by how many they had."""
    faults: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    """By what became of them."""
    checked: Counter[str] = field(default_factory=Counter)
    """How often each invariant was put to the test."""

    def add(self, other: "Stats") -> None:
        for name in ("seeds", "world_s", "steps", "calls", "executions", "images", "delivered"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("endings", "brokers", "faults", "messages", "checked"):
            getattr(self, name).update(getattr(other, name))

    def told(self, invariants: Sequence[str], wall_s: float) -> str:
        """For people. `wall_s`: how long it took; `invariants`: all there are, tested or not."""
        per_image = self.executions / self.images if self.images else 0.0
        lines = [
            (
                f"{self.seeds} seeds, {self.world_s / 3600:.1f} simulated hours, {self.steps} steps"
                f" in {wall_s:.0f} s: {self.seeds / max(wall_s, 0.001):.2f} seeds per second"
            ),
            (
                f"{self.calls} calls, {self.delivered} got an image; {self.executions} executions begun,"
                f" {self.images} images made, {per_image:.2f} executions per image"
            ),
            _line("calls ended", self.endings),
            _line("brokers", self.brokers),
            _line("faults", self.faults),
            _line("messages", self.messages),
            "invariants, and how often each was put to the test:",
        ]
        width = max(len(name) for name in invariants)
        lines += [f"  {name:{width}} {self.checked[name]:9}" for name in invariants]
        return "\n".join(lines)


def _line(title: str, counted: Counter[str]) -> str:
    entries = sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))
    return f"{title}: " + ", ".join(f"{name} {count}" for name, count in entries)
