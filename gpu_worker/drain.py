"""How a worker leaves: it finishes what runs, and waits a little for its outcomes to be released. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    deadline: float
    """It leaves then, whatever is not finished."""

    def leaves_at(self, idle_since: float | None, unreleased: int, patience_s: float) -> float:
        """When nothing is left to wait for. `idle_since` is None while a job is in the engine.

        Images that are kept for repeats hold up nothing: those run again elsewhere.
        """
        if idle_since is None:
            return self.deadline
        return min(self.deadline, idle_since + patience_s if unreleased else idle_since)
