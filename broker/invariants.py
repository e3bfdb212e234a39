"""What must hold between the broker's tables after every event, whatever the peers did."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from broker.groups import Groups
from broker.jobs import MAX_ATTEMPTS, MAX_JOBS, Dispatched, Job, JobTable, Queued, Returned, key_of
from broker.state import BrokerState
from broker.workers import Idle, Offered, Running, Worker


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
    _check_ways(jobs)
    for job in jobs:
        assert job.attempts >= 0, "fewer than no attempts"
        assert job.attempts <= MAX_ATTEMPTS or not job.is_active, f"{job.attempts} attempts"
        _check_waiters(job, state)


def _check_ways(jobs: JobTable) -> None:
    """Whether every job is found in every way that leads to it, and nothing else is."""
    waiters = [(waiter.frontend, waiter_id) for job in jobs for waiter_id, waiter in job.waiters.items()]
    of_worker = [(job.state.worker_id, job.job_id) for job in jobs if isinstance(job.state, Dispatched)]
    of_key = [(key, job.job_id) for job in jobs if (key := key_of(job.claim)) is not None]
    active = [(job.claim.key_fingerprint, job.job_id) for job in jobs if job.is_active]
    queued = {job.job_id for job in jobs if isinstance(job.state, Queued)}
    returned = {job.job_id for job in jobs if isinstance(job.state, Returned)}
    exhausted = {job.job_id for job in jobs if job.is_waiting and job.is_exhausted}
    lost = [(waiter.frontend, waiter_id) for job in jobs for waiter_id, waiter in job.lost.items()]
    ways: dict[str, tuple[Iterable[object], Iterable[object]]] = {
        "by frontend": (waiters, _pairs(jobs.by_frontend)),
        "lost": (lost, _pairs(jobs.lost)),
        "by worker": (of_worker, _pairs(jobs.by_worker)),
        "by key": (of_key, _pairs(jobs.by_key)),
        "by API key": (active, _pairs(jobs.active)),
        "by turn": (queued, jobs.turns),
        "dispatched": ((job_id for _, job_id in of_worker), jobs.dispatched),
        "returned": (returned, jobs.returned),
        "exhausted": (exhausted, jobs.exhausted),
    }
    for way, (true, found) in ways.items():
        assert Counter(iter(true)) == Counter(iter(found)), f"the ways to find a job disagree: {way}"
    assert len(jobs.turns) == len(queued), "the ways to find a job disagree: length of the queue"


def _pairs(groups: Groups[Any, Any, Any]) -> Iterator[tuple[object, object]]:
    return ((name, member_id) for name, members in groups for member_id in members)


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
    _check_presence(state)
    for worker in workers:
        assert worker.incarnation not in workers.fenced, "a superseded worker is registered"
    for job in jobs:
        if isinstance(job.state, Dispatched):
            assert job.state.worker_id in workers.registered, "a job on a worker that is not there"
            _check_place(workers.registered[job.state.worker_id], job.state.execution_id)


def _check_presence(state: BrokerState) -> None:
    """Whether the workers that serve, are idle, run or hold something are found as such."""
    workers = state.workers
    serving = [
        worker
        for worker in workers
        if worker.takes_jobs and state.silence_at - worker.heard_at < state.timing.probe_after_s
    ]
    idle = [
        (worker.slot.since, worker.number, worker.worker_id)
        for worker in serving
        if isinstance(worker.slot, Idle)
    ]
    running = {worker.slot.execution_id: worker for worker in workers if isinstance(worker.slot, Running)}
    names = [(name, worker.worker_id) for worker in workers for name in worker.all_names()]
    assert {worker.worker_id for worker in serving} == set(workers.serving), "who serves"
    assert [name for _, _, name in sorted(idle)] == [each.worker_id for each in workers.idle], "who is idle"
    assert running.keys() == workers.running.keys(), "who runs something"
    assert Counter(names) == Counter(_pairs(workers.by_name)), "who has what"


def _check_place(worker: Worker, execution_id: bytes) -> None:
    """A dispatched execution is in its worker's slot, or held there with its outcome to be sent again."""
    in_slot = isinstance(worker.slot, Offered | Running) and worker.slot.execution_id == execution_id
    assert in_slot or worker.holds(execution_id), "a job on a worker that neither runs nor holds it"
