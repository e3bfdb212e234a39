"""The protocol's time limits, in one object, so that a test can run all of them at a fifth of the scale."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations in seconds. The relations between them are checked, see `__post_init__`."""

    heartbeat_interval_s: float = 1.0
    """How often a peer reports when nothing changes. The broker's value counts: VIEW carries it."""
    probe_after_s: float = 1.5
    """Silence after which the broker probes a worker."""
    probe_interval_s: float = 0.25
    """Between two probes; also the granularity of the broker's clockwork."""
    unreachable_grace_s: float = 2.0
    """How long a worker whose connection is gone may take to report on a new one."""
    peer_lost_s: float = 8.0
    """Silence after which a peer is lost whatever its connection looks like."""
    backlog_excuse_s: float = 30.0
    """How long a broker may put off judging silence, as it has more to read than it can handle."""
    broker_silent_s: float = 3.0
    """Silence of the broker after which a peer opens a fresh connection and a frontend refuses at once."""
    retry_wait_s: float = 3.0
    """How long an accepted job that came back waits for a worker to run it again."""
    repeat_after_s: float = 1.5
    """How long an unanswered START or OUTCOME is left alone before it is sent again."""
    rebuild_s: float = 3.0
    """How long a new broker listens before it judges new jobs, and before it cancels what nobody has claimed.
    0: not at all."""
    orphan_grace_s: float = 30.0
    """How long a job with an idempotency key goes on without a waiter when its frontend was lost."""
    lost_worker_shown_s: float = 300.0
    """How long a lost worker stays in the metrics."""
    drain_s: float = 25.0
    """How long a draining process works on what it has begun. Below systemd's default stop time of 90 s."""

    def __post_init__(self) -> None:
        relations = {
            "probe_after_s > heartbeat_interval_s": self.probe_after_s > self.heartbeat_interval_s,
            "repeat_after_s > heartbeat_interval_s": self.repeat_after_s > self.heartbeat_interval_s,
            "broker_silent_s > 2 * heartbeat_interval_s": self.broker_silent_s
            > 2 * self.heartbeat_interval_s,
            "rebuild_s = 0 or rebuild_s > 2 * heartbeat_interval_s": self.rebuild_s == 0
            or self.rebuild_s > 2 * self.heartbeat_interval_s,
            "peer_lost_s > probe_after_s + unreachable_grace_s": self.peer_lost_s
            > self.probe_after_s + self.unreachable_grace_s,
        }
        broken = [text for text, holds in relations.items() if not holds]
        if broken:
            raise ValueError(f"timing needs {' and '.join(broken)}: {self}")

    def scaled(self, factor: float) -> "Timing":
        """The same timing with every duration multiplied by `factor`."""
        return Timing(
            **{field.name: getattr(self, field.name) * factor for field in dataclasses.fields(self)}
        )
