"""What clients want, and the RPCs in which they ask for it."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from frontend.actions import ImageDelivered, JobEnd, JobGivenUp, JobRefused
from frontend.validation import ValidJob
from proto.messages import ImageParameters, JobClaim

if TYPE_CHECKING:
    from simulation.frontend_actor import FrontendActor

Identity = tuple[object, ...]
"""Equal for two calls exactly when one execution may answer both."""


def digest_of(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """An image that a client wants, whatever calls it takes."""

    key: str
    """The API key's fingerprint."""
    job: ValidJob
    key_limit: int = 1
    queue_share: float = 1.0
    idempotency_hash: bytes | None = None
    detach: bool = False


def wish(
    key: str,
    prompt: str,
    *,
    steps: int = 4,
    seed: int = 0,
    size: int = 16,
    key_limit: int = 1,
    queue_share: float = 1.0,
    repeats: str | None = None,
    detach: bool = False,
) -> Wish:
    """`repeats`: the idempotency key."""
    parameters = ImageParameters(height=size, width=size, steps=steps, guidance=3.5, seed=seed)
    job = ValidJob(prompt=prompt, parameters=parameters, digest=digest_of(prompt, parameters))
    hashed = None if repeats is None else digest_of(key, repeats)
    return Wish(
        key=key,
        job=job,
        key_limit=key_limit,
        queue_share=queue_share,
        idempotency_hash=hashed,
        detach=detach,
    )


def identity_of(claim: JobClaim) -> Identity:
    """Of an execution, or of the job that it is for."""
    if claim.idempotency_hash is None:
        return (claim.job_id,)
    return (claim.key_fingerprint, claim.idempotency_hash, claim.parameters_digest)


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One RPC."""

    job_id: bytes
    wish: Wish
    frontend: "FrontendActor"
    opened_at: float
    deadline_at: float
    """When its client gives up. Both are instants."""
    identity: Identity = field(init=False)
    answer_by: float = 0.0
    """Its deadline on its frontend's clock."""
    at: int | None = None
    """The broker that its frontend has submitted it to last."""
    been_at: set[int] = field(default_factory=set)
    """All brokers that it was ever submitted to."""
    moved_at: float = -float("inf")
    """When it was submitted to another broker than before."""
    left_at: dict[int, float] = field(default_factory=dict)
    """By broker: when it went from there to another one, the last time."""
    was_taken_at: dict[int, float] = field(default_factory=dict)
    """Of these, those that had taken it, and since when its frontend knew."""
    taken_at: float | None = None
    """When its frontend first saw that this life of the broker that it is at has taken it."""
    taken_by: bytes = b""
    """The epoch of that life."""
    deaf_since: float | None = None
    """Since when the broker that it is at has certainly said nothing."""
    attempts: int = 0
    """As its frontend was told, by whichever broker."""
    crashes: int = 0
    accepted_at: float | None = None
    """When its frontend first saw a view that lists it as taken."""
    accepted_by: bytes = b""
    """The epoch of the broker that took it first."""
    admitted_by: dict[bytes, float] = field(default_factory=dict)
    """When which brokers, by epoch, made a job of its own of it, since it was submitted there."""
    passed_on: bool = False
    """The broker that it is at has sent its outcome."""
    submitted_accepted: bytes = b""
    """The epoch of the broker that has heard that it was accepted before."""
    end: JobEnd | None = None
    ended_at: float | None = None
    left: bool = False
    is_left_known: bool = False
    """Its frontend knows; a frozen one learns it later, and may answer first."""
    stuck_since: float | None = None

    def __post_init__(self) -> None:
        hashed = self.wish.idempotency_hash
        if hashed is None:
            self.identity = (self.job_id,)
        else:
            self.identity = (self.wish.key, hashed, self.wish.job.digest)

    @property
    def is_open(self) -> bool:
        return self.end is None and not self.left

    @property
    def is_waiting(self) -> bool:
        """It was accepted, and waits for its outcome."""
        return self.accepted_at is not None and self.end is None and not self.left

    def ending(self) -> str:
        match self.end:
            case ImageDelivered():
                return "image"
            case JobRefused(reason=reason):
                return reason.value
            case JobGivenUp(code=code):
                return code.value
            case None:
                return "left" if self.left else "open"
