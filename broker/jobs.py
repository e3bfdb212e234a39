"""The jobs that the broker knows of, the state of each, and who waits for it.

    (SUBMIT) --> Queued --> Dispatched --> Delivering --> (nobody waits for it any more)
                              |    ^  \\_> Failed ______/
                              v    |
                             Returned

A job ends in any state when nobody waits for it any more, or with its deadline. One that is detached, or
whose frontend was lost a short time ago, goes on without waiters.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from broker.groups import Groups
from broker.turns import Turns
from proto.messages import (
    Body,
    ImageParameters,
    JobClaim,
    JobFailed,
    JobState,
    JobStatus,
    Outcome,
    TraceContext,
)

MAX_ATTEMPTS: Final = 3
"""Executions that one job may begin."""
MAX_JOBS: Final = 16_384
"""Known at once, whoever waits for them."""
MAX_WAITERS: Final = 64
"""Calls that wait for one job: each gets a copy of its image."""
MAX_CRASHES: Final = 2
"""Engine processes that one job may cost; then it is poison."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Admitted for the first time; it waits for its key's turn until its deadline."""

    since: float


@dataclass(frozen=True, slots=True)
class Returned:
    """An attempt failed, or an earlier broker had accepted it.

    It goes before all `Queued` ones, and waits no longer than `give_up_at`.
    """

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
    """Its image is there, and held by the worker until nobody waits for it any more."""

    worker_id: str
    execution_id: bytes
    asked_at: float | None
    """When it was asked for once more; None if it was passed on since to everyone who waits."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It ends in this failure, which is kept here to be said again."""

    outcome: Outcome


State = Queued | Returned | Dispatched | Delivering | Failed


@dataclass(slots=True)
class Waiter:
    """An RPC that waits for a job. It is known by the `job_id` of its own SUBMIT."""

    frontend: bytes
    """Its frontend's incarnation."""
    submit_seq: int
    served_at: float | None = None
    """When the outcome was passed on to it; None if it has to be, or has to be again."""
    repeats: int = 0
    """How often it was passed on in vain."""


@dataclass(slots=True, kw_only=True)
class Job:
    claim: JobClaim
    """As its first SUBMIT had it; later ones may detach it. `attempts` and `crashes` below go on from it."""
    parameters: ImageParameters
    prompt: Body
    deadline: float
    """The latest of all who wait; of a job with a single call, what that call says."""
    state: State
    attempts: int = 0
    crashes: int = 0
    waiters: dict[bytes, Waiter] = field(default_factory=dict)
    executions: list[bytes] = field(default_factory=list)
    """All that it has had, begun for it or adopted."""
    lost: dict[bytes, Waiter] = field(default_factory=dict)
    """Calls that were lost with their frontends since one was last submitted: they may wait on."""
    orphaned_at: float | None = None
    """When its last waiter was lost with its frontend; None while there is one."""
    has_moved: bool = False
    """A call of it waits at another broker now, which may want what was begun here."""
    is_counted: bool = False
    """Among the completed."""
    last_worker_id: str | None = None
    """Where the latest attempt was; the next one goes elsewhere if it can."""
    last_failure: JobFailed | None = None
    """Of the latest attempt that counted."""
    number: int = 0
    """Its place in the order of admission."""
    trace: TraceContext | None = None
    """Of its first SUBMIT; None: it is not traced."""

    @property
    def job_id(self) -> bytes:
        """Of its first SUBMIT: the one that workers know."""
        return self.claim.job_id

    @property
    def is_active(self) -> bool:
        """Counts for its API key."""
        return isinstance(self.state, Queued | Returned | Dispatched)

    @property
    def is_waiting(self) -> bool:
        return isinstance(self.state, Queued | Returned)

    @property
    def is_exhausted(self) -> bool:
        """It has been tried often enough."""
        return self.attempts >= MAX_ATTEMPTS or self.crashes >= MAX_CRASHES

    @property
    def current_execution(self) -> bytes | None:
        match self.state:
            case Dispatched(execution_id=execution_id) | Delivering(execution_id=execution_id):
                return execution_id
            case _:
                return None

    def count(self, told: JobClaim | Outcome) -> None:
        """Take over the counters of somebody who may have seen more of the job."""
        self.attempts = max(self.attempts, min(told.attempts, MAX_ATTEMPTS))
        self.crashes = max(self.crashes, min(told.crashes, MAX_CRASHES))

    def pardon(self, absence_s: float, now: float) -> None:
        """The broker stood still for so long: what it did not do in that time is not held against the job."""
        if isinstance(self.state, Returned):
            self.state = replace(self.state, give_up_at=self.state.give_up_at + absence_s)
        if self.orphaned_at is not None:
            self.orphaned_at = min(self.orphaned_at + absence_s, now)

    def remaining_ms(self, now: float) -> int:
        return max(0, round((self.deadline - now) * 1000))

    def status(self, waiter_id: bytes) -> JobStatus:
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
            job_id=waiter_id,
            state=state,
            execution_id=execution_id,
            attempts=self.attempts,
            crashes=self.crashes,
        )


def is_same_image(one: JobClaim, other: JobClaim) -> bool:
    """Whether both ask for the same image on behalf of the same API key."""
    return one.key_fingerprint == other.key_fingerprint and one.parameters_digest == other.parameters_digest


def is_same_key(one: JobClaim, other: JobClaim) -> bool:
    """Whether both carry the same idempotency key of the same API key."""
    return (
        one.idempotency_hash is not None
        and one.idempotency_hash == other.idempotency_hash
        and one.key_fingerprint == other.key_fingerprint
    )


def is_same_call(one: JobClaim, other: JobClaim) -> bool:
    """Whether an execution of the one answers the other: the same job, or a repeat of it."""
    return is_same_image(one, other) and (one.job_id == other.job_id or is_same_key(one, other))


Key = tuple[str, bytes]


def key_of(claim: JobClaim) -> Key | None:
    """The idempotency key, with the API key that it belongs to."""
    return None if claim.idempotency_hash is None else (claim.key_fingerprint, claim.idempotency_hash)


Name = bytes | Key
"""What an execution can be asked for by: a `job_id`, or an idempotency key."""


def names_of(claim: JobClaim) -> tuple[Name, ...]:
    key = key_of(claim)
    return (claim.job_id,) if key is None else (claim.job_id, key)


def _admission(job: Job) -> int:
    return job.number


@dataclass(slots=True)
class JobTable:
    """By primary `job_id`, in the order of their admission; and the other ways to find one."""

    tell_traced: Callable[[Job, TraceContext, State | None], None]
    """Of each change of state of a job that is traced; None for one that is forgotten."""
    jobs: dict[bytes, Job] = field(default_factory=dict)
    by_waiter: dict[bytes, Job] = field(default_factory=dict)
    """By the `job_id` of each call that waits."""
    by_execution: dict[bytes, Job] = field(default_factory=dict)
    """By the current execution."""
    by_key: Groups[Key, bytes, Job] = field(default_factory=Groups)
    """Those with an idempotency key."""
    by_frontend: Groups[bytes, bytes, Job] = field(default_factory=Groups)
    """By the incarnation of a frontend, and there by the `job_id` of each of its calls."""
    lost: Groups[bytes, bytes, Job] = field(default_factory=Groups)
    """Likewise, by the calls that were lost with a frontend."""
    by_worker: Groups[str, bytes, Job] = field(default_factory=Groups)
    """Those that are dispatched, by their worker's `worker_id`."""
    active: Groups[str, bytes, Job] = field(default_factory=Groups)
    """Those that count for an API key, by its fingerprint."""
    dispatched: dict[bytes, Job] = field(default_factory=dict)
    """The earliest first."""
    returned: dict[bytes, Job] = field(default_factory=dict)
    exhausted: dict[bytes, Job] = field(default_factory=dict)
    """Those that wait, and are not to be tried again."""
    turns: Turns = field(default_factory=Turns)
    """Those that are queued."""
    _admitted: int = 0

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def waiting(self) -> int:
        """How many wait for a worker."""
        return len(self.turns) + len(self.returned)

    def get(self, job_id: bytes) -> Job | None:
        return self.jobs.get(job_id)

    def of_waiter(self, waiter_id: bytes) -> Job | None:
        return self.by_waiter.get(waiter_id)

    def add(self, job: Job) -> None:
        self._admitted += 1
        job.number = self._admitted
        self.jobs[job.job_id] = job
        self._file(job)
        if (key := key_of(job.claim)) is not None:
            self.by_key.add(key, job.job_id, job)
        if job.trace is not None:
            self.tell_traced(job, job.trace, job.state)

    def count(self, job: Job, told: JobClaim | Outcome) -> None:
        """Take over the counters of somebody who may have seen more of the job."""
        job.count(told)
        if job.is_waiting and job.is_exhausted:
            self.exhausted[job.job_id] = job

    def change(self, job: Job, state: State) -> None:
        """The only way from one state to another; `Job.pardon` only moves a time within one."""
        self._unfile(job, has_begun=isinstance(state, Dispatched))
        job.state = state
        self._file(job)
        if job.trace is not None:
            self.tell_traced(job, job.trace, state)

    def remove(self, job: Job) -> None:
        for waiter_id in list(job.waiters):
            self.detach(job, waiter_id)
        self._miss_all(job)
        self._unfile(job, has_begun=False)
        if (key := key_of(job.claim)) is not None:
            self.by_key.remove(key, job.job_id)
        del self.jobs[job.job_id]
        if job.trace is not None:
            self.tell_traced(job, job.trace, None)

    def _file(self, job: Job) -> None:
        """Where its state can be found."""
        job_id, key_fingerprint = job.job_id, job.claim.key_fingerprint
        match job.state:
            case Queued():
                self.turns.join(key_fingerprint, job_id)
            case Returned():
                self.returned[job_id] = job
            case Dispatched(worker_id=worker_id, execution_id=execution_id):
                self.dispatched[job_id] = self.by_execution[execution_id] = job
                self.by_worker.add(worker_id, job_id, job)
            case Delivering(execution_id=execution_id):
                self.by_execution[execution_id] = job
            case Failed():
                pass
            case _:
                assert_never(job.state)
        if job.is_active:
            self.active.add(key_fingerprint, job_id, job)
        if job.is_waiting and job.is_exhausted:
            self.exhausted[job_id] = job

    def _unfile(self, job: Job, *, has_begun: bool) -> None:
        """Undo it."""
        job_id, key_fingerprint = job.job_id, job.claim.key_fingerprint
        match job.state:
            case Queued():
                self.turns.leave(key_fingerprint, job_id, has_begun=has_begun)
            case Returned():
                del self.returned[job_id]
            case Dispatched(worker_id=worker_id, execution_id=execution_id):
                del self.dispatched[job_id], self.by_execution[execution_id]
                self.by_worker.remove(worker_id, job_id)
            case Delivering(execution_id=execution_id):
                del self.by_execution[execution_id]
            case Failed():
                pass
            case _:
                assert_never(job.state)
        if job.is_active:
            self.active.remove(key_fingerprint, job_id)
        self.exhausted.pop(job_id, None)

    def attach(self, job: Job, waiter_id: bytes, waiter: Waiter) -> None:
        if (known := job.waiters.get(waiter_id)) is not None:
            self.by_frontend.remove(known.frontend, waiter_id)
        job.waiters[waiter_id] = waiter
        self.by_waiter[waiter_id] = job
        self.by_frontend.add(waiter.frontend, waiter_id, job)
        self._miss_all(job)
        job.orphaned_at = None

    def detach(self, job: Job, waiter_id: bytes) -> Waiter:
        waiter = job.waiters.pop(waiter_id)
        self.by_frontend.remove(waiter.frontend, waiter_id)
        del self.by_waiter[waiter_id]
        return waiter

    def lose(self, job: Job, waiter_id: bytes) -> None:
        """Its frontend is lost."""
        job.lost[waiter_id] = waiter = self.detach(job, waiter_id)
        self.lost.add(waiter.frontend, waiter_id, job)

    def miss(self, job: Job, waiter_id: bytes) -> None:
        """It was lost, and will not come back."""
        self.lost.remove(job.lost.pop(waiter_id).frontend, waiter_id)

    def _miss_all(self, job: Job) -> None:
        for waiter_id in list(job.lost):
            self.miss(job, waiter_id)

    def waited_for_by(self, frontend: bytes) -> list[tuple[Job, bytes, Waiter]]:
        """The jobs that a frontend waits for; one that has several of its calls comes several times."""
        calls = self.by_frontend.of(frontend)
        return [(job, waiter_id, job.waiters[waiter_id]) for waiter_id, job in calls.items()]

    def lost_with(self, frontend: bytes) -> list[tuple[Job, bytes, Waiter]]:
        """The same for those that were lost with it."""
        return [(job, waiter_id, job.lost[waiter_id]) for waiter_id, job in self.lost.of(frontend).items()]

    def with_key_of(self, claim: JobClaim) -> Job | None:
        """The job that a repeat with this idempotency key joins. One that failed is joined by nobody.

        Of several, which brokers that did not know of each other had accepted, one for the same image.
        """
        key = key_of(claim)
        if key is None:
            return None
        jobs = [job for job in self.by_key.of(key).values() if not isinstance(job.state, Failed)]
        return min(jobs, key=lambda job: not is_same_image(job.claim, claim), default=None)

    def active_of(self, key_fingerprint: str) -> list[Job]:
        return list(self.active.of(key_fingerprint).values())

    def on_worker(self, worker_id: str) -> list[Job]:
        """Those whose current attempt is there."""
        return list(self.by_worker.of(worker_id).values())

    def next_waiting(self) -> Job | None:
        """The one that goes to a worker next: a returned one, otherwise by the keys' turns."""
        if self.returned:
            return min(self.returned.values(), key=_admission)
        job_id = self.turns.first()
        return None if job_id is None else self.jobs[job_id]

    def waiting_for(self, names: Iterable[Name]) -> list[Job]:
        """Those that wait, and have one of these names; who was admitted first goes first."""
        named: dict[bytes, Job] = {}
        for name in names:
            if isinstance(name, tuple):
                named.update(self.by_key.of(name))
            elif (job := self.jobs.get(name)) is not None:
                named[name] = job
        return sorted((job for job in named.values() if job.is_waiting), key=_admission)

    def wanting(self, execution_id: bytes) -> Job | None:
        """The job whose current execution this is."""
        return self.by_execution.get(execution_id)

    def answered_by(self, claim: JobClaim) -> Job | None:
        """The job that an execution with this claim would answer, if it were the current one."""
        job = self.jobs.get(claim.job_id) or self.with_key_of(claim)
        return job if job is not None and is_same_call(job.claim, claim) else None
