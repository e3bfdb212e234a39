"""A job at its frontend: an RPC that waits, and the broker that it waits at. Pure."""

from dataclasses import dataclass, field

from frontend.events import JobOpened
from frontend.validation import ValidJob
from proto.messages import JobClaim, Submit


@dataclass(frozen=True, slots=True)
class Submitted:
    """Sent, and neither taken nor refused yet."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A broker has taken it: it is refused no more."""

    execution_id: bytes | None
    """The latest one heard of."""


@dataclass(slots=True, kw_only=True)
class DeskJob:
    """An RPC that waits."""

    opened: JobOpened
    deadline: float
    """When the RPC ends, whatever becomes of the job."""
    job_deadline: float
    broker: int
    """That it was submitted to last."""
    left: set[int] = field(default_factory=set)
    """Brokers that it was submitted to before, and that may still have it."""
    given_up_by: set[int] = field(default_factory=set)
    """Brokers that could find no worker for it."""
    state: Submitted | Accepted = Submitted()
    submit_seq: int = 0
    """Of its latest SUBMIT: a view that does not echo it says nothing about this job."""
    attempts: int = 0
    crashes: int = 0

    @property
    def job(self) -> ValidJob:
        return self.opened.job

    @property
    def execution_id(self) -> bytes | None:
        return self.state.execution_id if isinstance(self.state, Accepted) else None

    def move(self, broker: int) -> None:
        """It is to be submitted there next."""
        self.left = (self.left | {self.broker}) - {broker}
        self.broker = broker

    def count(self, attempts: int, crashes: int) -> None:
        """Somebody else's counters: whoever has seen more is right."""
        self.attempts, self.crashes = max(self.attempts, attempts), max(self.crashes, crashes)

    def submit(self, seq: int, frontend_id: str, incarnation: bytes, now: float) -> Submit:
        """The SUBMIT with this number, from the frontend of this name and life."""
        self.submit_seq = seq
        claim = JobClaim(
            job_id=self.opened.job_id,
            key_fingerprint=self.opened.key_fingerprint,
            parameters_digest=self.job.digest,
            idempotency_hash=self.opened.idempotency_hash,
            detach=self.opened.detach,
            remaining_ms=max(0, round((self.job_deadline - now) * 1000)),
            attempts=self.attempts,
            crashes=self.crashes,
        )
        return Submit(
            frontend_id=frontend_id,
            incarnation=incarnation,
            seq=seq,
            claim=claim,
            parameters=self.job.parameters,
            accepted=isinstance(self.state, Accepted),
            execution_id=self.execution_id,
            key_job_limit=self.opened.key_job_limit,
            key_queue_share=self.opened.key_queue_share,
            trace=self.opened.trace,
            body=self.job.prompt.encode(),
        )
