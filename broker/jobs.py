"""The jobs that the broker knows of, and the state of each.

    (SUBMIT) --> Queued <--> Dispatched --> Delivering --> (left out of its frontend's report)
                    \\______________\\_____> Failed ______/

Any state ends when the frontend leaves the job out of a report, is lost, or the deadline has passed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from proto.messages import (
    Body,
    ImageParameters,
    JobClaim,
    JobFailed,
    JobState,
    JobStatus,
    Outcome,
)

MAX_ATTEMPTS: Final = 3
"""Executions that one job may begin."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Admitted for the first time; it waits for its turn until its deadline."""

    since: float


@dataclass(frozen=True, slots=True)
class Returned:
    """An attempt failed; it goes before all `Queued` ones, and waits no longer than `give_up_at`."""

    since: float
    give_up_at: float
    failure: JobFailed


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A worker was told to run it. `execution_id` is the only one whose outcome counts."""

    worker_id: str
    execution_id: bytes
    since: float


@dataclass(frozen=True, slots=True)
class Delivering:
    """Its image was passed on; the worker holds it until the frontend stops listing the job."""

    worker_id: str
    execution_id: bytes
    passed_on_at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Its failure was passed on to its frontend, and is kept here to be said again."""

    outcome: Outcome
    passed_on_at: float


State = Queued | Returned | Dispatched | Delivering | Failed


@dataclass(slots=True, kw_only=True)
class Job:
    claim: JobClaim
    """As it came; `attempts` and `crashes` below go on from there."""
    parameters: ImageParameters
    prompt: Body
    owner: bytes
    """The incarnation of the frontend that waits for it."""
    submit_seq: int
    deadline: float
    attempts: int
    crashes: int
    state: State
    is_counted: bool = False
    """Among the completed."""
    last_worker_id: str | None = None
    """Where the latest attempt was; the next one goes elsewhere if it can."""
    last_failure: JobFailed | None = None
    """Of the latest attempt that counted."""

    @property
    def job_id(self) -> bytes:
        return self.claim.job_id

    @property
    def is_active(self) -> bool:
        """Counts for its API key."""
        return isinstance(self.state, Queued | Returned | Dispatched)

    @property
    def is_waiting(self) -> bool:
        return isinstance(self.state, Queued | Returned)

    @property
    def current_execution(self) -> bytes | None:
        match self.state:
            case Dispatched(execution_id=execution_id) | Delivering(execution_id=execution_id):
                return execution_id
            case _:
                return None

    def remaining_ms(self, now: float) -> int:
        return max(0, round((self.deadline - now) * 1000))

    def status(self) -> JobStatus:
        match self.state:
            case Queued() | Returned():
                state, execution_id = JobState.QUEUED, None
            case Dispatched(execution_id=execution_id):
                state = JobState.RUNNING
            case Delivering(execution_id=execution_id):
                state = JobState.ENDED
            case Failed(outcome=outcome):
                state, execution_id = JobState.ENDED, outcome.execution_id
        return JobStatus(
            job_id=self.job_id,
            state=state,
            execution_id=execution_id,
            attempts=self.attempts,
            crashes=self.crashes,
        )


@dataclass(slots=True)
class JobTable:
    """By `job_id`, in the order of their admission."""

    jobs: dict[bytes, Job] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __len__(self) -> int:
        return len(self.jobs)

    def get(self, job_id: bytes) -> Job | None:
        return self.jobs.get(job_id)

    def add(self, job: Job) -> None:
        self.jobs[job.job_id] = job

    def remove(self, job: Job) -> None:
        del self.jobs[job.job_id]

    def owned_by(self, owner: bytes) -> list[Job]:
        return [job for job in self if job.owner == owner]

    def active_of(self, key_fingerprint: str) -> list[Job]:
        return [job for job in self if job.is_active and job.claim.key_fingerprint == key_fingerprint]

    def on_worker(self, worker_id: str) -> list[Job]:
        """Those whose current attempt is there."""
        return [job for job in self if isinstance(job.state, Dispatched) and job.state.worker_id == worker_id]

    def waiting(self) -> list[Job]:
        """In the order in which they go to workers: the returned ones first."""
        returned = [job for job in self if isinstance(job.state, Returned)]
        queued = [job for job in self if isinstance(job.state, Queued)]
        return returned + queued

    def wants(self, job_id: bytes, execution_id: bytes) -> bool:
        """Whether this execution is the current one of a job that somebody waits for."""
        job = self.jobs.get(job_id)
        return job is not None and job.current_execution == execution_id

    def dispatched_as(self, job_id: bytes, execution_id: bytes) -> Job | None:
        """The job, if this execution is its current one and its outcome has not come yet."""
        job = self.jobs.get(job_id)
        if job is None or not isinstance(job.state, Dispatched) or job.state.execution_id != execution_id:
            return None
        return job
