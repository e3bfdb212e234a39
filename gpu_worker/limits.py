"""The bounds of a session, from the worker's settings."""

from dataclasses import dataclass

from proto.messages import JobPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Seconds without progress after which the engine process counts as hung, by phase; and other bounds."""

    load_s: float = 900.0
    text_s: float = 60.0
    step_s: float = 60.0
    decode_s: float = 120.0
    cancel_s: float = 30.0
    kill_s: float = 60.0
    """For a killed engine process to end; in a call of its driver it can take its time."""
    backoff_s: float = 1.0
    """Before the second start in a row; doubled for each one more."""
    backoff_max_s: float = 60.0
    engine_failures_max: int = 10
    """Engine processes in a row that never became ready; then the worker ends."""
    quarantine_s: float = 300.0
    """Without an engine, after its deaths on two different jobs. 0: never."""
    held_bytes_max: int = 64 * 1024 * 1024
    """Of all outcomes, released or not."""
    held_age_max_s: float = 120.0
    """For an outcome that nobody releases."""
    kept_max: int = 256
    """Released images that are kept for repeats."""
    kept_age_max_s: float = 600.0
    """For such an image, since it was released. 0: none is kept."""

    def of(self, phase: JobPhase) -> float:
        return {JobPhase.TEXT: self.text_s, JobPhase.STEP: self.step_s, JobPhase.DECODE: self.decode_s}[phase]
