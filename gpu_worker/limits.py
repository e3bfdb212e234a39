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
    backoff_s: float = 1.0
    """Before the second start in a row; doubled for each one more."""
    backoff_max_s: float = 60.0
    held_bytes_max: int = 64 * 1024 * 1024
    held_age_max_s: float = 120.0

    def of(self, phase: JobPhase) -> float:
        return {JobPhase.TEXT: self.text_s, JobPhase.STEP: self.step_s, JobPhase.DECODE: self.decode_s}[phase]
