"""Ways to break a core that the simulation has to notice.

Each is a change of source text, made in a copy of the packages. A text that is not found exactly once is an
error: the core has changed, and the mutant has to follow it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Change:
    file: str
    """Below the folder of the packages."""
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    changes: tuple[Change, ...]
    first: int
    """The seed to begin with: of one that few worlds show, a seed that did."""


class AnchorLost(Exception):
    """The text to be changed is not there, or more than once."""


def mutant(name: str, *changes: tuple[str, str, str], first: int = 1) -> Mutant:
    return Mutant(name, tuple(Change(*change) for change in changes), first)


def apply(wanted: Mutant, packages: Path) -> None:
    """Make the changes in the copy of the packages in this folder."""
    for change in wanted.changes:
        path = packages / change.file
        text = path.read_text()
        found = text.count(change.old)
        if found != 1:
            raise AnchorLost(f"{wanted.name}: {change.file} has {found} times\n{change.old}")
        path.write_text(text.replace(change.old, change.new))


MUTANTS: Final = [
    mutant(
        "no rebuild window",
        (
            "broker/state.py",
            "        return self.started_at is None or now < self.started_at + self.window_s\n",
            "        return False\n",
        ),
    ),
    mutant(
        "worker forgets after sending",
        ("gpu_worker/executions.py", "        self.held.add(ended, now)\n", ""),
    ),
    mutant(
        "no fence",
        (
            "broker/worker_side.py",
            "        job = self._state.jobs.wanting(outcome.execution_id)\n        if job is None:\n",
            (
                "        jobs = self._state.jobs\n"
                "        job = jobs.wanting(outcome.execution_id) or jobs.get(outcome.job_id)\n"
                "        if job is None:\n"
            ),
        ),
    ),
    mutant(
        "fence by order of attempts",
        (
            "broker/worker_side.py",
            "        job = self._state.jobs.wanting(outcome.execution_id)\n        if job is None:\n",
            (
                "        jobs = self._state.jobs\n"
                "        job = jobs.get(outcome.job_id) or jobs.wanting(outcome.execution_id)\n"
                "        if job is None or outcome.attempts < job.attempts:\n"
            ),
        ),
        first=212,
    ),
    mutant(
        "attempts reset at a restart",
        (
            "broker/job_life.py",
            "        job.count(submit.claim)\n        self._state.jobs.add(job)\n",
            "        self._state.jobs.add(job)\n",
        ),
    ),
    mutant(
        "outcome dropped at the first release",
        (
            "gpu_worker/executions.py",
            "            self.held.keep(execution_id, now)\n",
            "            self.held.release(execution_id)\n",
        ),
    ),
    mutant(
        "last waiter ignored",
        (
            "broker/job_life.py",
            "        if not job.waiters and not self._goes_on_detached(job):\n",
            "        if not job.waiters and not job.is_active:\n",
        ),
    ),
    mutant(
        "cancelled when the first of two leaves",
        (
            "broker/job_life.py",
            (
                "        self._state.jobs.detach(job, waiter_id)\n"
                "        if not job.waiters and not self._goes_on_detached(job):\n"
            ),
            (
                "        if self._state.jobs.of_waiter(waiter_id) is None:\n            return\n"
                "        self._state.jobs.detach(job, waiter_id)\n"
                "        if not self._goes_on_detached(job):\n"
            ),
        ),
    ),
    mutant(
        "adoption without key",
        (
            "broker/jobs.py",
            "    return one.key_fingerprint == other.key_fingerprint and one.parameters_digest",
            "    return one.parameters_digest",
        ),
        ("broker/jobs.py", "        and one.key_fingerprint == other.key_fingerprint\n", ""),
        ("broker/jobs.py", "None else (claim.key_fingerprint, claim.", 'None else ("", claim.'),
    ),
    mutant(
        "adoption without parameters",
        ("broker/jobs.py", " and one.parameters_digest == other.parameters_digest\n", "\n"),
    ),
    mutant(
        "queue limit applied to retries",
        (
            "broker/job_life.py",
            "        self._state.jobs.change(job, Returned(give_up_at, failure))\n",
            (
                "        self._state.jobs.change(job, Returned(give_up_at, failure))\n"
                "        if len(self._state.jobs.returned) > self._state.queue_limit:\n"
                "            self.fail(job, self._own_outcome(job, failure), now)\n"
            ),
        ),
    ),
    mutant(
        "expiry of idle workers only",
        (
            "broker/worker_side.py",
            "        silent_s = silence_at - worker.heard_at\n        gone = worker.unreachable_since\n",
            (
                "        silent_s = silence_at - worker.heard_at\n        gone = worker.unreachable_since\n"
                "        if not isinstance(worker.slot, Idle):\n            return\n"
            ),
        ),
    ),
    # And of our own.
    mutant(
        "resubmissions are admitted like new jobs",
        (
            "broker/submissions.py",
            "        elif submit.accepted or self._has_begun(submit.claim):\n",
            "        elif self._has_begun(submit.claim):\n",
        ),
    ),
    mutant(
        "frontend forgets that a job was accepted",
        (
            "frontend/desk_job.py",
            "            accepted=isinstance(self.state, Accepted),\n",
            "            accepted=False,\n",
        ),
    ),
    mutant(
        "frontend does not submit again",
        (
            "frontend/job_desk.py",
            "                if echo >= job.submit_seq:\n",
            "                if False:\n",
        ),
    ),
    mutant(
        "only the first waiter gets the outcome",
        ("broker/job_life.py", "dataclasses.replace(outcome, job_id=waiter_id))", "outcome)"),
    ),
    mutant(
        "detached jobs are cancelled",
        (
            "broker/job_life.py",
            "        return job.is_active and job.claim.detach and job.claim.idempotency_hash is not None\n",
            "        return False\n",
        ),
    ),
    mutant(
        "no grace for what a lost frontend leaves behind",
        (
            "broker/job_life.py",
            "        if job.is_active and job.claim.idempotency_hash is not None:\n",
            "        if False:\n",
        ),
    ),
    mutant(
        "crashes are not counted",
        (
            "gpu_worker/executions.py",
            "            claim = dataclasses.replace(claim, crashes=claim.crashes + 1)\n",
            "            pass\n",
        ),
    ),
    mutant(
        "a busy worker begins another job",
        (
            "gpu_worker/executions.py",
            "        return None if isinstance(self.slot, Free) else RefusalReason.WORKER_BUSY\n",
            "        return None\n",
        ),
    ),
    mutant(
        "no limit for a key",
        ("broker/admission.py", "        if active < submit.key_job_limit:\n", "        if True:\n"),
    ),
    mutant(
        "first come, first served, whoever it is",
        (
            "broker/jobs.py",
            "job_id = self.turns.first()\n",
            "job_id = next((job.job_id for job in self if isinstance(job.state, Queued)), None)\n",
        ),
    ),
    mutant(
        "a key keeps its turn",
        ("broker/jobs.py", "has_begun=isinstance(state, Dispatched))\n", "has_begun=False)\n"),
    ),
    mutant(
        "images are released rather than kept",
        (
            "broker/wishes.py",
            "return not is_fenced and not self._is_held_elsewhere(outcome)\n",
            "return False\n",
        ),
    ),
    mutant(
        "ended executions are not remembered",
        ("gpu_worker/executions.py", "        self._ended.append(execution_id)\n", ""),
    ),
    mutant(
        "a worker does not list what it makes a PNG of",
        (
            "gpu_worker/broker_side.py",
            "listed = (*encoding.listed(), *held.listed())[:MAX_LISTED_OUTCOMES]\n",
            "listed = held.listed()\n",
        ),
    ),
    mutant(
        "an outcome is passed on only once",
        (
            "broker/job_life.py",
            "            waiter.served_at = None\n            waiter.repeats += 1\n",
            "            return\n",
        ),
    ),
    # With several brokers.
    mutant(
        "a standby cancels what another broker wants",
        (
            "broker/wishes.py",
            (
                "        if running.wanted_elsewhere:\n            return True\n"
                "        doubts = self._doubts(worker, running.execution_id, moment)\n        is_fenced"
            ),
            "        doubts = self._doubts(worker, running.execution_id, moment)\n        is_fenced",
        ),
    ),
    mutant(
        "a standby waits for no claims when another broker has gone",
        (
            "broker/wishes.py",
            "            is_new=known_for_s < self.timing.rebuild_s,\n",
            "            is_new=not moment.is_rebuilt,\n",
        ),
    ),
    mutant(
        "a repeat does not join what runs for another broker",
        (
            "broker/wishes.py",
            (
                "        if running.wanted_elsewhere:\n            return True\n"
                "        doubts = self._doubts(worker, running.execution_id, moment)\n        return"
            ),
            (
                "        if running.wanted_elsewhere:\n            return False\n"
                "        doubts = self._doubts(worker, running.execution_id, moment)\n        return"
            ),
        ),
    ),
    mutant(
        "a worker obeys any cancel",
        (
            "gpu_worker/executions.py",
            "        for execution_id in filter(may_end, view.cancel):\n",
            "        for execution_id in view.cancel:\n",
        ),
        first=140,
    ),
    mutant(
        "a worker obeys any release",
        (
            "gpu_worker/executions.py",
            "        for execution_id in filter(may_end, view.release):\n",
            "        for execution_id in view.release:\n",
        ),
    ),
    mutant(
        "outcomes go to the first broker only",
        (
            "gpu_worker/executions.py",
            "        told = self.brokers.wanting(execution_id, now) or list(self.brokers)\n",
            "        told = [0]\n",
        ),
    ),
    mutant(
        "a silent broker's wishes last",
        (
            "gpu_worker/brokers.py",
            "            if known.contact.is_heard(now) and execution_id in known.wanted\n",
            "            if execution_id in known.wanted\n",
        ),
    ),
    mutant(
        "a call that has moved is cancelled",
        (
            "frontend/job_desk.py",
            "elsewhere=tuple(job_id for job_id, job in self.jobs.items() if broker in job.left),\n",
            "elsewhere=(),\n",
        ),
    ),
    mutant(
        "what a call that has moved had begun is not left to the other broker",
        (
            "broker/job_life.py",
            "                self._state.let_go(execution_id, worker_id)\n",
            "                pass\n",
        ),
    ),
    mutant(
        "calls stay with a silent broker",
        (
            "frontend/job_desk.py",
            "            if self.contacts[broker].calls and not self.contacts.keeps_calls(broker, now):\n",
            "            if False:\n",
        ),
    ),
    mutant(
        "attempts are forgotten with a move",
        (
            "frontend/desk_job.py",
            "        self.broker = broker\n",
            "        self.broker, self.attempts = broker, 0\n",
        ),
    ),
    mutant(
        "a report that crossed a START is taken for its refusal",
        (
            "broker/worker_side.py",
            "        if self._has_crossed_start(worker, now):\n",
            "        if running is None and self._has_crossed_start(worker, now):\n",
        ),
        (
            "broker/worker_side.py",
            'knows nothing of it")\n            self._job_life.put_back(job, failure, now)\n',
            'knows nothing of it")\n            self._job_life.take_back(execution_id, now)\n',
        ),
    ),
    mutant(
        "what a worker runs that refuses a START is forgotten",
        (
            "broker/worker_side.py",
            (
                "            return Unclear()\n"
                "        return Running(running.claim.job_id, running.execution_id)\n"
            ),
            "            return Unclear()\n        return Unclear()\n",
        ),
        first=110021,
    ),
    mutant(
        "a view counts that a START has overtaken",
        (
            "gpu_worker/brokers.py",
            "            known.wanted, known.echo = {*view.wanted, *known.started}, view.echo\n",
            "            known.wanted, known.echo = set(view.wanted), view.echo\n",
        ),
        first=40390,
    ),
    mutant(
        "a view counts that a later one has overtaken",
        ("gpu_worker/brokers.py", "        if view.echo >= known.echo:", "        if True:"),
        first=155,
    ),
    mutant(
        "a job does not look at what runs instead of a START that was refused",
        ("broker/worker_side.py", "                self._take_what_runs_instead(worker, now)\n", ""),
        first=300958,
    ),
    mutant(
        "a job is begun though another broker's failures have exhausted it",
        ("broker/job_life.py", "            if job.is_waiting and job.is_exhausted:", "            if 0:"),
        first=614199,
    ),
    mutant(
        "a worker that was sent a START counts as idle",
        (
            "broker/workers.py",
            "slot.since if serves and isinstance(slot, Idle) else None",
            "worker.heard_at if serves and isinstance(slot, Idle | Offered) else None",
        ),
    ),
    mutant(
        "a worker that speaks is given up",
        (
            "broker/worker_side.py",
            "        if silent_s >= self._state.timing.peer_lost_s:\n",
            (
                "        is_due = worker.report.running is not None and worker.report.seq % 20 == 0\n"
                "        if silent_s >= self._state.timing.peer_lost_s or (is_due and silent_s > 0.4):\n"
            ),
        ),
    ),
    mutant(
        "a repeat does not join what another life of the broker has left",
        (
            "broker/submissions.py",
            "        return any(True for _ in self._unowned_with_key_of(claim))\n",
            "        return False\n",
        ),
    ),
]
