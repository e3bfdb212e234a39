"""What must hold between the broker's tables after every event, whatever the peers did."""

from broker.frontends import FrontendTable
from broker.jobs import MAX_ATTEMPTS, Dispatched, JobTable
from broker.workers import Offered, Running, Worker, WorkerTable


def check_tables(workers: WorkerTable, jobs: JobTable, frontends: FrontendTable) -> None:
    """Raises AssertionError, naming what does not hold."""
    _check_jobs(jobs, frontends)
    _check_workers(workers, jobs)


def _check_jobs(jobs: JobTable, frontends: FrontendTable) -> None:
    current = [job.current_execution for job in jobs if job.current_execution is not None]
    assert len(current) == len(set(current)), "one execution for two jobs"
    for job in jobs:
        assert job.attempts >= 0, "fewer than no attempts"
        assert job.attempts <= MAX_ATTEMPTS or not job.is_active, f"{job.attempts} attempts"
        assert job.owner in frontends.known, "a job without a frontend"


def _check_workers(workers: WorkerTable, jobs: JobTable) -> None:
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
