"""What must hold between the broker's tables after every event, whatever the peers did."""

from broker.jobs import MAX_ATTEMPTS, MAX_JOBS, Dispatched, Job, Queued, key_of
from broker.state import BrokerState
from broker.workers import Offered, Running, Worker


def check_tables(state: BrokerState) -> None:
    """Raises AssertionError, naming what does not hold."""
    _check_jobs(state)
    _check_workers(state)
    assert (
        state.is_rebuilding or not state.pending or state.age_s < _LATEST_JUDGEMENT * state.timing.rebuild_s
    ), "jobs that are never judged"


_LATEST_JUDGEMENT = 2


def _check_jobs(state: BrokerState) -> None:
    jobs = state.jobs
    current = [job.current_execution for job in jobs if job.current_execution is not None]
    assert len(current) == len(set(current)), "one execution for two jobs"
    assert len(jobs) + len(state.pending) <= MAX_JOBS, "more jobs than allowed"
    waiters = {waiter_id: job for job in jobs for waiter_id in job.waiters}
    executions = {job.current_execution: job for job in jobs if job.current_execution is not None}
    assert waiters == jobs.by_waiter, "the ways to find a job disagree: by waiter"
    assert executions == jobs.by_execution, "the ways to find a job disagree: by execution"
    keyed = [job for job in jobs if key_of(job.claim) is not None]
    assert len(keyed) == sum(map(len, jobs.by_key.values())), "the ways to find a job disagree: by key"
    queued = {job.job_id for job in jobs if isinstance(job.state, Queued)}
    assert sorted(jobs.turns) == sorted(queued), "the ways to find a job disagree: by turn"
    for job in jobs:
        assert job.attempts >= 0, "fewer than no attempts"
        assert job.attempts <= MAX_ATTEMPTS or not job.is_active, f"{job.attempts} attempts"
        _check_waiters(job, state)


def _check_waiters(job: Job, state: BrokerState) -> None:
    for waiter in job.waiters.values():
        assert waiter.frontend in state.frontends.known, "a waiter without a frontend"
    if not job.waiters:
        assert job.is_active, "an ended job that nobody waits for"
        assert job.claim.idempotency_hash is not None, "a job that nobody waits for, or can ask for"
        is_orphan = job.orphaned_at is not None and bool(job.lost)
        assert job.claim.detach or is_orphan, "a job that nobody waits for"
    assert not set(job.lost) & set(job.waiters), "a call both lost and waiting"


def _check_workers(state: BrokerState) -> None:
    workers, jobs = state.workers, state.jobs
    busy = [worker.slot.execution_id for worker in workers if isinstance(worker.slot, Offered | Running)]
    assert len(busy) == len(set(busy)), "one execution on two workers"
    assert not set(workers.registered) & set(workers.lost), "a worker both registered and lost"
    for worker in workers:
        assert worker.incarnation not in workers.fenced, "a superseded worker is registered"
    for job in jobs:
        if isinstance(job.state, Dispatched):
            assert job.state.worker_id in workers.registered, "a job on a worker that is not there"
            _check_place(workers.registered[job.state.worker_id], job.state.execution_id)


def _check_place(worker: Worker, execution_id: bytes) -> None:
    """A dispatched execution is in its worker's slot, or held there with its outcome to be sent again."""
    in_slot = isinstance(worker.slot, Offered | Running) and worker.slot.execution_id == execution_id
    assert in_slot or worker.holds(execution_id), "a job on a worker that neither runs nor holds it"
