"""The broker core against peers that say anything, in any order: a Hypothesis state machine."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from samples.broker_driver import Driver
from samples.wire import (
    failure_outcome,
    frontend_report,
    held,
    identifier,
    image_outcome,
    leave,
    running,
    snapshot_request,
    submit,
    worker_report,
)

from broker.actions import SendToFrontend, SendToWorker
from broker.events import DrainRequested, FromWorker, HeardUntil, TimerFired
from broker.jobs import MAX_ATTEMPTS
from proto.codec import decode, encode
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    FrontendView,
    HeldOutcome,
    JobClaim,
    JobFailed,
    Outcome,
    Refuse,
    Snapshot,
    Start,
    WorkerPhase,
    WorkerView,
)
from proto.notes import Note

WORKERS = ("a", "b", "c")
FRONTENDS = ("f", "g")
JOBS = tuple(f"job {n}" for n in range(5))
KEY_OF = {job: "shared" if n < 2 else "repeats" if n > 2 else job for n, job in enumerate(JOBS)}
REPEATED = JOBS[3:]
"""Two calls with one idempotency key."""

workers = st.sampled_from(WORKERS)
frontends = st.sampled_from(FRONTENDS)
jobs = st.sampled_from(JOBS)
rarely = st.integers(0, 9).map(lambda n: n == 0)
codes = st.sampled_from(FailureCode)
START_REFUSALS = (
    RefusalReason.WORKER_BUSY,
    RefusalReason.WORKER_NOT_READY,
    RefusalReason.WORKER_DRAINING,
    RefusalReason.STALE_START,
)


def claim_of(job: str, *, detach: bool = False) -> dict[str, object]:
    repeats = {"idempotency": identifier("again"), "detach": detach} if job in REPEATED else {}
    return {"key": KEY_OF[job], **repeats}


def claimed(job: str) -> JobClaim:
    return submit(job, **claim_of(job)).claim


@dataclass
class SentStart:
    worker: str
    incarnation: bytes
    job_id: bytes
    execution_id: bytes


class BrokerMachine(RuleBasedStateMachine):
    rebuild_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.broker = Driver(queue_limit=1, rebuild_s=self.rebuild_s)
        self.lives = dict.fromkeys(WORKERS, 1)
        self.starts: list[SentStart] = []
        self.unanswered: dict[bytes, bytes] = {}
        """By incarnation: the START since which the worker has said nothing."""
        self.images: dict[bytes, tuple[bytes, float]] = {}
        """By job: the execution whose image was passed on last, and when."""

    # --- What is looked at after every step ----------------------------------------------------

    def look(self) -> None:
        for action in self.broker.actions:
            match action:
                case SendToWorker(route=route, message=message):
                    self._look_at_wire(message)
                    if isinstance(message, Start):
                        self._look_at_start(route, message)
                    if isinstance(message, WorkerView):
                        self._look_at_view(route, message)
                case SendToFrontend(message=message):
                    self._look_at_wire(message)
                    if isinstance(message, Outcome):
                        self._look_at_outcome(message)
                case Note():
                    pass
        self.images = {
            job_id: seen for job_id, seen in self.images.items() if self.broker.core.state.jobs.get(job_id)
        }

    def _look_at_wire(self, message) -> None:
        assert decode(encode(message)) == message, "a message that its receiver would drop"

    def _look_at_view(self, route: bytes, view: WorkerView) -> None:
        settled = {*view.cancel, *view.release, *view.keep}
        assert not settled & set(view.wanted), "wanted, and not wanted"
        assert set(view.resend) <= set(view.wanted), "asked for, and not wanted"
        worker = self.broker.core.state.workers.by_route(route)
        if worker is not None and worker.seq == worker.report.seq:
            running = () if worker.report.running is None else (worker.report.running,)
            theirs = {each.execution_id for each in (*running, *worker.report.held) if each.wanted_elsewhere}
            assert not settled & theirs, "another broker wants it"

    def _look_at_start(self, route: bytes, start: Start) -> None:
        worker = self.broker.core.state.workers.by_incarnation(start.incarnation)
        assert worker is not None, "a START for nobody"
        assert worker.route == route
        running = worker.report.running
        if running is not None and running.execution_id == start.execution_id:
            return  # Its claim is renewed.
        assert worker.report.phase is WorkerPhase.READY, "a START for a worker that is not ready"
        assert worker.unreachable_since is None
        assert 1 <= start.claim.attempts <= MAX_ATTEMPTS
        earlier = self.unanswered.get(start.incarnation)
        assert earlier in {None, start.execution_id}, "a second START before a word about the first"
        self.unanswered[start.incarnation] = start.execution_id
        job_id, timing = start.claim.job_id, self.broker.timing
        if job_id in self.images:
            execution_id, passed_on_at = self.images[job_id]
            assert execution_id != start.execution_id
            assert self.broker.now - passed_on_at >= timing.repeat_after_s, "run again though it was drawn"
        sent = SentStart(worker.worker_id, start.incarnation, job_id, start.execution_id)
        if sent not in self.starts:
            assert start.execution_id not in {other.execution_id for other in self.starts}
            self.starts.append(sent)

    def _look_at_outcome(self, outcome: Outcome) -> None:
        if outcome.image is not None:
            assert self.is_drawn_for(outcome), "an image that was never asked for"
            self.images[outcome.job_id] = (outcome.execution_id, self.broker.now)

    def is_drawn_for(self, outcome: Outcome) -> bool:
        """Whether its execution was begun for this job, or for one that it repeats."""
        name = outcome.job_id.decode().rstrip(".")
        jobs_ = REPEATED if name in REPEATED else (name,)
        return any(
            sent.execution_id == outcome.execution_id and sent.job_id in map(identifier, jobs_)
            for sent in self.starts
        ) or outcome.execution_id.startswith(b"stray")

    def spoke(self, incarnation: bytes) -> None:
        self.unanswered.pop(incarnation, None)

    def incarnation(self, worker: str) -> bytes:
        return identifier(f"{worker} {self.lives[worker]}")

    def some_start(self, worker: str | None, data) -> SentStart | None:
        """One of the latest, of this worker or of any."""
        latest = [sent for sent in self.starts if worker in {None, sent.worker}][-4:]
        return data.draw(st.sampled_from(latest)) if latest else None

    # --- Workers -------------------------------------------------------------------------------

    @rule(worker=workers)
    def idle_report(self, worker) -> None:
        self._report(worker, 1)

    @rule(worker=workers, data=st.data())
    def report(self, worker, data) -> None:
        if data.draw(rarely):
            self.lives[worker] += 1
        changes = {"phase": data.draw(st.sampled_from(WorkerPhase))} if data.draw(rarely) else {}
        started = self.some_start(worker, data)
        if started is not None and data.draw(st.booleans()):
            job = started.job_id.decode().rstrip(".")
            changes["running"] = running(
                started.execution_id, job, claim=claimed(job), wanted_elsewhere=data.draw(rarely)
            )
        elif data.draw(rarely):
            job = data.draw(jobs)
            changes["running"] = running(
                identifier(f"stray {worker}"),
                job,
                claim=claimed(job),
                wanted_elsewhere=data.draw(st.booleans()),
            )
        else:
            kept = [s for s in self.starts[-6:] if s.worker == worker and data.draw(st.booleans())]
            changes["held"] = tuple(
                self._held(s, released=data.draw(rarely), wanted_elsewhere=data.draw(rarely)) for s in kept
            )
        self._report(worker, data.draw(st.sampled_from([1, 1, 1, 2, 0, -1])), **changes)

    def _held(self, started: SentStart, *, released: bool, wanted_elsewhere: bool) -> HeldOutcome:
        job = started.job_id.decode().rstrip(".")
        released = released and job in REPEATED
        changes = {"released": released, "wanted_elsewhere": wanted_elsewhere}
        return held(started.execution_id, job, claim=claimed(job), **changes)

    def _report(self, worker: str, seq_step: int, **changes) -> None:
        incarnation = self.incarnation(worker)
        seq = max(0, self.broker.seq(incarnation) + seq_step - 1)
        known = self.broker.core.state.workers.of_incarnation(worker, incarnation)
        is_news = known is None or seq > known.seq
        if is_news:
            self.spoke(incarnation)
        route = b"to " + worker.encode()
        report = worker_report(worker, incarnation=incarnation, seq=seq, **changes)
        self.broker.from_worker(report, route)
        self.look()
        echoes = [view.echo for view in self.broker.to_worker(WorkerView, worker)]
        refusals = self.broker.to_worker(Refuse, worker)
        assert echoes[-1:] == [seq] if is_news and not refusals else not refusals or not echoes

    @rule(worker=workers, data=st.data(), code=st.none() | codes, stale=rarely)
    def outcome(self, worker, data, code, stale) -> None:
        started = self.some_start(None if stale else worker, data)
        if started is None:
            return
        incarnation = started.incarnation if stale else self.incarnation(worker)
        changes = {
            "worker_id": started.worker,
            "incarnation": incarnation,
            "seq": self.broker.seq(incarnation),
            "attempts": data.draw(st.integers(0, 4)),
            "crashes": data.draw(st.integers(0, 2)),
        }
        self.spoke(incarnation)
        job = data.draw(jobs) if data.draw(rarely) else started.job_id.decode().rstrip(".")
        if code is None:
            message = image_outcome(started.execution_id, job, **changes)
        else:
            message = failure_outcome(started.execution_id, JobFailed(code=code), job, **changes)
        wanting = self.broker.core.state.jobs.wanting(started.execution_id)
        unserved = [] if wanting is None else [w for w in wanting.waiters.values() if w.served_at is None]
        self.broker.from_worker(message, b"to " + started.worker.encode())
        self.look()
        passed_on = [o for f in FRONTENDS for o in self.broker.to_frontend(Outcome, f)]
        if code is None:
            executions = {outcome.execution_id for outcome in passed_on if outcome.image is not None}
            assert executions <= {started.execution_id}
            assert bool(executions) == bool(unserved)

    @rule(data=st.data(), reason=st.sampled_from(START_REFUSALS))
    def start_refused(self, data, reason) -> None:
        started = self.some_start(None, data)
        if started is None:
            return
        self.spoke(started.incarnation)
        refuse = Refuse(reason=reason, job_id=started.job_id, execution_id=started.execution_id)
        self.broker.tell(FromWorker(route=b"to " + started.worker.encode(), message=refuse))
        self.look()

    @rule(worker=workers, sure=rarely)
    def worker_leaves(self, worker, sure) -> None:
        if sure:
            incarnation = self.incarnation(worker)
            self.spoke(incarnation)
            self.broker.from_worker(leave(incarnation))
            self.look()
            assert self.broker.core.state.workers.by_incarnation(incarnation) is None
            self.lives[worker] += 1

    @rule(worker=workers, sure=rarely)
    def worker_unreachable(self, worker, sure) -> None:
        if sure:
            self.broker.unreachable(worker)
            self.look()

    # --- Frontends -----------------------------------------------------------------------------

    @rule(
        job=jobs,
        frontend=frontends,
        accepted=rarely,
        attempts=st.sampled_from([0, 0, 0, 1, 2, 3, 1000]),
        remaining_ms=st.sampled_from([0, 500, 5_000, 60_000, 2**31]),
        limit=st.sampled_from([1, 1, 2]),
        late=rarely,
        detach=rarely,
    )
    def submits(self, job, frontend, accepted, attempts, remaining_ms, limit, late, detach) -> None:
        incarnation = identifier(frontend)
        seq = max(0, self.broker.seq(incarnation) - 3 * late)
        known = self.broker.core.state.frontends.get(incarnation)
        overtaken = known is not None and seq <= known.report_seq
        was_known = self.broker.core.state.jobs.of_waiter(identifier(job)) is not None
        message = submit(
            job,
            frontend_id=frontend,
            incarnation=incarnation,
            seq=seq,
            accepted=accepted,
            attempts=attempts,
            remaining_ms=remaining_ms if job not in REPEATED else min(remaining_ms, 60_000),
            key_job_limit=limit,
            **claim_of(job, detach=detach),
        )
        self.broker.from_frontend(message, b"to " + frontend.encode())
        self.look()
        if overtaken or incarnation in self.broker.core.state.frontends.left:
            assert self.broker.core.state.jobs.of_waiter(identifier(job)) is None or was_known
            return
        told = identifier(job) in self.broker.statuses(frontend)
        refusals = [r.job_id for r in self.broker.to_frontend(Refuse, frontend)]
        assert told != (refusals == [identifier(job)]), "a SUBMIT gets its view or its refusal"
        if refusals:
            assert not accepted, "an accepted job was refused"
            assert not was_known, "a known job was refused"
            assert self.broker.core.state.jobs.of_waiter(identifier(job)) is None

    @rule(frontend=frontends, listed=st.sets(jobs), moved=st.sets(jobs, max_size=2), late=rarely)
    def frontend_reports(self, frontend, listed, moved, late) -> None:
        incarnation = identifier(frontend)
        seq = max(0, self.broker.seq(incarnation) - 3 * late)
        known = self.broker.core.state.frontends.get(incarnation)
        overtaken = known is not None and seq <= known.report_seq
        awaited = self.broker.core.state.jobs.waited_for_by(incarnation)
        elsewhere = tuple(identifier(job) for job in sorted(moved - listed))
        report = frontend_report(
            *sorted(listed), frontend_id=frontend, incarnation=incarnation, seq=seq, elsewhere=elsewhere
        )
        self.broker.from_frontend(report, b"to " + frontend.encode())
        self.look()
        if overtaken or incarnation in self.broker.core.state.frontends.left:
            return
        (view,) = [v for v in self.broker.to_frontend(FrontendView, frontend) if len(v.jobs) == len(listed)][
            :1
        ]
        assert {status.job_id for status in view.jobs} == {identifier(job) for job in listed}
        for _, waiter_id, waiter in awaited:
            left_out = waiter_id not in {identifier(name) for name in listed}
            if left_out and waiter.submit_seq <= seq:
                assert self.broker.core.state.jobs.of_waiter(waiter_id) is None, "a cancelled job lives on"

    @rule(frontend=frontends, sure=rarely)
    def frontend_leaves(self, frontend, sure) -> None:
        if sure:
            self.broker.from_frontend(leave(identifier(frontend)))
            self.look()
            assert not self.broker.core.state.jobs.waited_for_by(identifier(frontend))

    # --- Others --------------------------------------------------------------------------------

    @rule()
    def somebody_looks(self) -> None:
        self.broker.from_frontend(snapshot_request())
        (snapshot,) = self.broker.to_frontend(Snapshot)
        self._look_at_wire(snapshot)
        assert snapshot.in_flight + snapshot.queued <= len(self.broker.core.state.jobs)

    @rule(sure=rarely)
    def drains(self, sure) -> None:
        if sure:
            self.broker.tell(DrainRequested())
            self.look()

    @rule(duration_s=st.sampled_from([0.01, 0.3, 1.0, 1.6, 3.1, 9.0]))
    def time_passes(self, duration_s) -> None:
        end = self.broker.now + duration_s
        while (deadline := self.broker.core.next_deadline()) is not None and deadline <= end:
            self.broker.now = deadline
            self.broker.tell(TimerFired())
            self.look()
        self.broker.now = end

    @rule(lag_s=st.none() | st.sampled_from([0.0, 0.5, 2.0, 12.0]))
    def falls_behind_or_catches_up(self, lag_s) -> None:
        self.broker.tell(HeardUntil(instant=None if lag_s is None else self.broker.now - lag_s))
        self.look()

    def teardown(self) -> None:
        """When everybody has gone and all time is over, nothing is left."""
        self.broker.tell(HeardUntil(instant=None))
        self.broker.after(700.0)
        state = self.broker.core.state
        assert not len(state.jobs)
        assert not len(state.workers)
        assert not len(state.frontends)
        assert not state.workers.lost
        assert self.broker.core.next_deadline() is None


BrokerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
test_peers_that_say_anything = BrokerMachine.TestCase


class RestartedBrokerMachine(BrokerMachine):
    """The same, from the first moment of a broker that has to find out what is going on."""

    rebuild_s = 3.0


RestartedBrokerMachine.TestCase.settings = BrokerMachine.TestCase.settings
test_peers_of_a_restarted_broker_that_say_anything = RestartedBrokerMachine.TestCase
