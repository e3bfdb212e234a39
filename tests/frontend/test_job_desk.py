"""The job desk: each RPC's job from its opening to its one end. Events in, actions out."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from samples.desk_driver import INCARNATION, DeskDriver, epoch_of
from samples.wire import (
    CARD,
    EPOCH,
    PARAMETERS,
    failure_outcome,
    frontend_view,
    identifier,
    image_outcome,
)

from frontend.actions import (
    EndJob,
    ImageDelivered,
    JobGivenUp,
    JobRefused,
    ReconnectToBroker,
    SendToBroker,
    SnapshotArrived,
)
from frontend.events import (
    DrainRequested,
    FromBroker,
    JobOpened,
    LeaveRequested,
    SnapshotWanted,
    TimerFired,
    WaiterLeft,
)
from frontend.job_desk import DRAIN_RETRY_S, GATHER_S
from frontend.validation import ValidJob
from proto.codec import decode, encode
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    FrontendReport,
    ImageMade,
    JobClaim,
    JobFailed,
    JobState,
    JobStatus,
    Leave,
    Refuse,
    Snapshot,
    SnapshotRequest,
    Submit,
)

JOB = identifier("job")
EXECUTION = identifier("execution")


@pytest.fixture
def desk() -> DeskDriver:
    """Its broker has answered."""
    driver = DeskDriver()
    driver.tell(TimerFired())
    driver.viewed()
    return driver


@pytest.fixture
def submitted(desk) -> DeskDriver:
    desk.open()
    return desk


@pytest.fixture
def accepted(submitted) -> DeskDriver:
    submitted.status(JobState.RUNNING, execution_id=EXECUTION, attempts=1)
    return submitted


# --- Opening and submitting --------------------------------------------------------------------


def test_it_begins_with_a_report():
    desk = DeskDriver()
    desk.tell(TimerFired())
    assert desk.report() == FrontendReport(frontend_id="frontend", incarnation=INCARNATION, seq=1)


def test_a_job_is_submitted_at_once(desk):
    desk.open(remaining_s=12.5, key_job_limit=2)
    assert desk.submit() == Submit(
        frontend_id="frontend",
        incarnation=INCARNATION,
        seq=desk.desk.contacts[0].contact.seq,
        claim=JobClaim(
            job_id=JOB,
            key_fingerprint="key",
            parameters_digest=identifier("digest"),
            remaining_ms=12_500,
        ),
        parameters=PARAMETERS,
        key_job_limit=2,
        body="a cät".encode(),
    )


@pytest.mark.parametrize("detach", [False, True])
def test_a_claim_says_what_is_repeated_and_whether_it_goes_on_alone(desk, detach):
    desk.open(idempotency_hash=identifier("hash"), detach=detach)
    assert (desk.submit().claim.idempotency_hash, desk.submit().claim.detach) == (identifier("hash"), detach)
    desk.status(JobState.RUNNING)
    desk.status(JobState.UNKNOWN)
    assert (desk.submit().claim.idempotency_hash, desk.submit().claim.detach) == (identifier("hash"), detach)


def test_open_jobs_are_in_every_report(accepted):
    accepted.open("second")
    accepted.after(1.1)
    assert accepted.sent(FrontendReport)[-1].jobs == (
        JOB,
        identifier("second"),
    )


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.ENDED])
def test_what_the_broker_lists_is_accepted(submitted, state):
    submitted.status(state, execution_id=EXECUTION)
    assert submitted.actions == []
    submitted.status(JobState.UNKNOWN)
    assert submitted.submit().accepted


def test_a_job_that_the_broker_does_not_know_is_submitted_again(submitted):
    submitted.status(JobState.UNKNOWN)
    assert not submitted.submit().accepted, "nobody has taken it yet"


def test_a_resubmission_says_what_is_known_of_the_job(accepted):
    accepted.status(JobState.QUEUED, attempts=2, crashes=1)
    accepted.now += 10.0
    accepted.status(JobState.UNKNOWN)
    submit = accepted.submit()
    assert submit.accepted
    assert submit.execution_id == EXECUTION
    assert (submit.claim.attempts, submit.claim.crashes) == (2, 1)
    assert submit.claim.remaining_ms == 50_000


def test_a_job_that_waits_for_its_judgement_is_neither_accepted_nor_submitted_again(submitted):
    submitted.status(JobState.PENDING)
    assert submitted.actions == []
    submitted.refused(RefusalReason.ALL_WORKERS_BUSY)
    assert submitted.end().reason is RefusalReason.ALL_WORKERS_BUSY


def test_a_job_that_waits_for_its_judgement_is_accepted_by_a_later_view(submitted):
    submitted.status(JobState.PENDING)
    submitted.status(JobState.QUEUED)
    submitted.refused(RefusalReason.ALL_WORKERS_BUSY)
    assert submitted.actions == []


def test_a_job_that_waits_for_its_judgement_is_reported_and_refused_with_its_broker_gone(submitted):
    submitted.status(JobState.PENDING)
    submitted.after(1.1)
    assert submitted.sent(FrontendReport)[-1].jobs == (JOB,)
    submitted.status(JobState.PENDING)
    submitted.after(3.1, answered=False)
    assert submitted.end().reason is RefusalReason.BROKER_UNREACHABLE


def test_a_job_that_waits_for_its_judgement_ends_at_its_deadline(desk):
    desk.open(remaining_s=0.5)
    desk.status(JobState.PENDING)
    desk.after(0.6)
    assert desk.end().code is FailureCode.DEADLINE_EXCEEDED


def test_an_acceptance_is_not_taken_back_by_a_judgement_to_come(accepted):
    accepted.status(JobState.PENDING)
    accepted.status(JobState.UNKNOWN)
    assert accepted.submit().accepted
    assert accepted.submit().execution_id == EXECUTION


def test_counters_only_grow(accepted):
    accepted.status(JobState.QUEUED, attempts=2, crashes=2)
    accepted.status(JobState.QUEUED, attempts=1, crashes=1)
    accepted.status(JobState.UNKNOWN)
    assert (accepted.submit().claim.attempts, accepted.submit().claim.crashes) == (2, 2)


def test_a_view_from_before_the_submission_says_nothing_about_it(submitted):
    before = submitted.desk.jobs[JOB].submit_seq - 1
    submitted.status(JobState.UNKNOWN, echo=before)
    assert submitted.sent(Submit) == []


def test_a_new_life_of_the_broker_gets_a_report_at_once(accepted):
    accepted.viewed()
    assert accepted.sent(FrontendReport) == []
    accepted.viewed(epoch=identifier("another"))
    assert accepted.report().jobs == (JOB,)


def test_a_detached_job_may_take_longer_than_its_call(desk):
    desk.open(remaining_s=5.0, job_time_s=600.0, detach=True)
    assert desk.submit().claim.remaining_ms == 600_000
    desk.after(5.1)
    assert desk.end().code is FailureCode.DEADLINE_EXCEEDED


# --- Ends --------------------------------------------------------------------------------------


def test_an_image_ends_the_job_and_the_broker_learns_it_soon(accepted):
    image = ImageMade(inference_time_s=1.0, seed=7, model=CARD)
    accepted.heard(image_outcome(EXECUTION, body=b"these pixels", image=image))
    assert accepted.end() == ImageDelivered(
        png=b"these pixels", inference_time_s=1.0, seed=7, worker_id="worker", attempts=1, model=CARD
    )
    accepted.after(GATHER_S, answered=False)
    assert accepted.report().jobs == ()
    accepted.heard(image_outcome(identifier("another")))
    assert accepted.actions == [], "an RPC is answered once"


def test_an_image_that_comes_before_the_acceptance_counts(submitted):
    submitted.heard(image_outcome(EXECUTION))
    assert isinstance(submitted.end(), ImageDelivered)


def test_a_failure_ends_the_job(accepted):
    failure = JobFailed(code=FailureCode.OUT_OF_MEMORY, detail="too large")
    accepted.heard(failure_outcome(EXECUTION, failure, attempts=3))
    assert accepted.end() == JobGivenUp(code=FailureCode.OUT_OF_MEMORY, detail="too large", attempts=3)


def test_a_failure_counts_all_attempts_that_anybody_knows_of(accepted):
    accepted.status(JobState.RUNNING, attempts=3)
    accepted.heard(failure_outcome(EXECUTION, JobFailed(code=FailureCode.WORKER_LOST), attempts=1))
    assert accepted.end().attempts == 3


def test_a_repeat_for_another_image_ends(submitted):
    submitted.refused(RefusalReason.IDEMPOTENCY_MISMATCH)
    assert submitted.end().reason is RefusalReason.IDEMPOTENCY_MISMATCH
    assert submitted.desk.jobs == {}


def test_a_refusal_ends_a_job_that_was_not_accepted(submitted):
    submitted.refused(RefusalReason.ALL_WORKERS_BUSY, detail="all busy", retry_after_ms=1500)
    assert submitted.end() == JobRefused(
        reason=RefusalReason.ALL_WORKERS_BUSY, detail="all busy", retry_after_s=1.5
    )


def test_a_refusal_without_delay_has_none(submitted):
    submitted.refused(RefusalReason.NO_WORKERS)
    assert submitted.end().retry_after_s is None


def test_an_accepted_job_is_refused_no_more(accepted):
    accepted.refused(RefusalReason.ALL_WORKERS_BUSY)
    assert accepted.actions == []


def test_words_about_unknown_jobs_mean_nothing(desk):
    desk.refused(RefusalReason.NO_WORKERS, "unknown")
    desk.heard(image_outcome(EXECUTION, "unknown"))
    desk.status(JobState.UNKNOWN, "unknown")
    assert desk.actions == []


def test_the_desks_own_clock_ends_a_job_at_its_deadline(accepted):
    accepted.after(59.9)
    assert accepted.ends() == {}
    accepted.after(0.2)
    end = accepted.end()
    assert (end.code, end.attempts) == (FailureCode.DEADLINE_EXCEEDED, 1)
    assert accepted.sent(FrontendReport)[-1].jobs == ()


@pytest.mark.parametrize("remaining_s", [0.0, -5.0])
def test_a_call_without_time_ends_at_once(desk, remaining_s):
    desk.open(remaining_s=remaining_s)
    assert desk.end().code is FailureCode.DEADLINE_EXCEEDED


def test_a_waiter_that_left_gets_nothing_and_the_broker_learns_it_soon(accepted):
    accepted.waiter_left()
    accepted.after(GATHER_S, answered=False)
    assert accepted.report().jobs == ()
    accepted.heard(image_outcome(EXECUTION))
    assert accepted.actions == []
    accepted.waiter_left()
    assert accepted.actions == []


def test_a_detached_job_is_left_out_like_any_other(desk):
    """The broker knows that it goes on."""
    desk.open(idempotency_hash=identifier("hash"), detach=True)
    desk.status(JobState.RUNNING)
    desk.waiter_left()
    desk.after(GATHER_S, answered=False)
    assert desk.report().jobs == ()


# --- The broker is away ------------------------------------------------------------------------


def test_a_broker_that_never_answered_is_given_its_time():
    desk = DeskDriver()
    desk.tell(TimerFired())
    desk.open()
    desk.after(2.9, answered=False)
    assert desk.ends() == {}
    assert not desk.desk.broker_alive(desk.now)
    desk.after(0.2, answered=False)
    assert desk.end().reason is RefusalReason.BROKER_UNREACHABLE
    assert desk.end().retry_after_s


def test_while_no_broker_answers_a_call_is_refused_at_once(desk):
    desk.after(3.1, answered=False)
    assert desk.of(ReconnectToBroker)
    desk.open()
    assert desk.end().reason is RefusalReason.BROKER_UNREACHABLE
    desk.viewed()
    desk.open("second")
    assert desk.submit()


def test_an_accepted_job_waits_for_the_broker_to_come_back(accepted):
    accepted.after(20.0, answered=False)
    assert accepted.ends() == {}
    accepted.viewed(epoch=identifier("another"))
    accepted.status(JobState.UNKNOWN)
    assert accepted.submit().accepted


def test_fresh_connections_are_made_as_long_as_nobody_answers(desk):
    desk.after(12.5, answered=False)
    assert len(desk.of(ReconnectToBroker)) == 4


@pytest.mark.parametrize("reason", [RefusalReason.VERSION_MISMATCH, RefusalReason.SUPERSEDED])
def test_a_broker_that_does_not_serve_this_frontend_is_as_good_as_none(desk, reason):
    """Its refusals answer no job: a call must not wait for it until its deadline."""
    desk.open()
    ends = {}
    for _ in range(8):
        desk.heard(Refuse(reason=reason, detail="no"))
        desk.after(0.5, answered=False)
        ends |= desk.ends()
    assert ends[JOB].reason is RefusalReason.BROKER_UNREACHABLE


def test_readiness_is_what_a_living_broker_says(desk):
    desk.viewed(ready_workers=2)
    assert desk.desk.ready_workers(desk.now) == 2
    assert desk.desk.broker_alive(desk.now)
    desk.after(3.1, answered=False)
    assert desk.desk.ready_workers(desk.now) == 0
    assert not desk.desk.broker_alive(desk.now)


# --- Limits, drain, end ------------------------------------------------------------------------


def test_a_full_desk_refuses(desk):
    for n in range(3):
        desk.open(n)
    desk.open("one more")
    assert desk.end("one more").reason is RefusalReason.FRONTEND_FULL
    assert desk.end("one more").retry_after_s
    desk.waiter_left(0)
    desk.open("and another")
    assert desk.submit()


def test_a_draining_desk_refuses_new_jobs_and_keeps_the_open_ones(accepted):
    accepted.tell(DrainRequested())
    assert accepted.actions == []
    accepted.open("second")
    assert accepted.end("second").reason is RefusalReason.FRONTEND_DRAINING
    accepted.heard(image_outcome(EXECUTION))
    assert isinstance(accepted.end(), ImageDelivered)


def test_leaving_ends_every_job_and_says_good_bye(accepted):
    accepted.open("second", idempotency_hash=identifier("hash"))
    accepted.tell(LeaveRequested())
    assert set(accepted.ends()) == {JOB, identifier("second")}
    assert {end.retry_after_s for end in accepted.ends().values()} == {DRAIN_RETRY_S}
    (leave,) = accepted.sent(Leave)
    assert leave.incarnation == INCARNATION
    assert accepted.desk.next_deadline() is None
    accepted.now += 100.0
    assert accepted.tell(TimerFired()) == []
    assert accepted.heard(image_outcome(EXECUTION)) == []


def test_a_call_that_comes_after_leaving_is_refused_and_told_to_no_broker(accepted):
    accepted.tell(LeaveRequested())
    accepted.open("late")
    assert accepted.end("late").reason is RefusalReason.FRONTEND_DRAINING
    assert accepted.end("late").retry_after_s == DRAIN_RETRY_S
    assert len(accepted.actions) == 1
    assert accepted.waiter_left("late") == []
    assert accepted.desk.next_deadline() is None


def test_a_snapshot_is_asked_for_and_handed_on(desk):
    desk.tell(SnapshotWanted())
    (request,) = desk.sent(SnapshotRequest)
    snapshot = Snapshot(
        broker_id="broker",
        epoch=EPOCH,
        echo=request.seq,
        in_flight=0,
        queued=0,
        completed=0,
        failed=0,
        cancelled=0,
        rejected={},
    )
    desk.heard(snapshot)
    assert desk.actions == [SnapshotArrived(broker=0, snapshot=snapshot)]


# --- Anything in any order ---------------------------------------------------------------------

JOBS = tuple(f"job {n}" for n in range(5))
jobs = st.sampled_from(JOBS)
rarely = st.integers(0, 9).map(lambda n: n == 0)
some_broker = st.integers(0, 1)


class DeskMachine(RuleBasedStateMachine):
    """Every job that was opened gets exactly one end, by its deadline, unless its waiter has left."""

    brokers = 1

    def __init__(self) -> None:
        super().__init__()
        self.driver = DeskDriver(brokers=self.brokers)
        self.open: dict[bytes, float] = {}
        """Deadlines of the RPCs that wait."""
        self.count = 0
        self.last_seq = [0] * self.brokers

    def tell(self, event) -> None:
        self.driver.tell(event)
        for action in self.driver.actions:
            match action:
                case EndJob(job_id=job_id):
                    assert job_id in self.open, "an end for nobody, or a second one"
                    del self.open[job_id]
                case SendToBroker(broker=broker, message=message):
                    assert decode(encode(message)) == message, "a message that the broker would drop"
                    assert message.seq > self.last_seq[broker]
                    self.last_seq[broker] = message.seq
                    if isinstance(message, FrontendReport):
                        self.look_at(message)
                case _:
                    pass

    def look_at(self, report) -> None:
        assert not set(report.jobs) & set(report.elsewhere), "a job both here and elsewhere"
        assert set(report.jobs) | set(report.elsewhere) <= set(self.open)

    @invariant()
    def each_job_is_at_one_broker(self) -> None:
        for job in self.driver.desk.jobs.values():
            assert job.broker in range(self.brokers)
            assert job.broker not in job.left

    @invariant()
    def the_desk_has_the_jobs_that_wait(self) -> None:
        assert set(self.driver.desk.jobs) == set(self.open)
        assert all(deadline > self.driver.now for deadline in self.open.values()), "an RPC hangs"

    def some_job(self, data) -> bytes:
        return data.draw(st.sampled_from(sorted(self.open) or [identifier("unknown")]))

    @rule(
        remaining_s=st.sampled_from([-1.0, 0.0, 0.4, 5.0, 60.0, 600.0]),
        repeats=st.sampled_from([None, "", "detached"]),
    )
    def opens(self, remaining_s, repeats) -> None:
        self.count += 1
        job_id = identifier(f"job {self.count}")
        self.open[job_id] = self.driver.now + remaining_s
        job = ValidJob(prompt="p", parameters=PARAMETERS, digest=identifier("digest"))
        opened = JobOpened(
            job_id=job_id,
            key_fingerprint="key",
            job=job,
            time_remaining_s=remaining_s,
            idempotency_hash=identifier("hash") if repeats is not None else None,
            detach=bool(repeats),
        )
        self.tell(opened)

    @rule(data=st.data())
    def waiter_leaves(self, data) -> None:
        job_id = self.some_job(data)
        self.open.pop(job_id, None)
        self.tell(WaiterLeft(job_id=job_id))

    @rule(
        data=st.data(),
        state=st.sampled_from(JobState),
        behind=st.integers(0, 3),
        attempts=st.integers(0, 1000),
        new_epoch=rarely,
        broker=some_broker,
        standing=st.sampled_from(
            [{}, {}, {}, {"draining": True}, {"rebuilding": True}, {"ready_workers": 0}]
        ),
    )
    def views(self, data, state, behind, attempts, new_epoch, broker, standing) -> None:
        broker %= self.brokers
        status = JobStatus(job_id=self.some_job(data), state=state, execution_id=EXECUTION, attempts=attempts)
        view = frontend_view(
            jobs=(status,),
            echo=max(0, self.last_seq[broker] - behind),
            epoch=identifier(f"epoch {self.count} of {broker}") if new_epoch else epoch_of(broker),
            **standing,
        )
        self.tell(FromBroker(broker=broker, message=view))

    @rule(data=st.data(), failure=st.none() | st.sampled_from(FailureCode), broker=some_broker)
    def outcomes(self, data, failure, broker) -> None:
        broker %= self.brokers
        job_id = self.some_job(data)
        outcome = image_outcome(EXECUTION, body=b"png")
        if failure is not None:
            outcome = failure_outcome(EXECUTION, JobFailed(code=failure))
        job = self.driver.desk.jobs.get(job_id)
        is_over = job is not None and (failure is None or job.broker == broker)
        self.tell(FromBroker(broker=broker, message=type(outcome)(**{**_fields(outcome), "job_id": job_id})))
        has_moved = failure is FailureCode.WORKER_LOST and job is not None and job.broker != broker
        assert (job_id in self.driver.ends()) == (is_over and not has_moved), "the first outcome ends a job"

    @rule(data=st.data(), reason=st.sampled_from(RefusalReason), of_peer=rarely, broker=some_broker)
    def refusals(self, data, reason, of_peer, broker) -> None:
        job_id = None if of_peer else self.some_job(data)
        self.tell(FromBroker(broker=broker % self.brokers, message=Refuse(reason=reason, job_id=job_id)))

    @rule()
    def asks(self) -> None:
        self.tell(SnapshotWanted())

    @rule(sure=st.integers(0, 40).map(lambda n: n == 0))
    def drains(self, sure) -> None:
        if sure:
            self.tell(DrainRequested())

    @rule(duration_s=st.sampled_from([0.01, 0.3, 1.1, 3.1, 9.0]))
    def time_passes(self, duration_s) -> None:
        end = self.driver.now + duration_s
        while (deadline := self.driver.desk.next_deadline()) is not None and deadline <= end:
            self.driver.now = deadline
            self.tell(TimerFired())
        self.driver.now = end

    def teardown(self) -> None:
        self.tell(LeaveRequested())
        assert self.open == {}
        assert self.driver.desk.next_deadline() is None


def _fields(outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__slots__}


DeskMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
test_anything_in_any_order = DeskMachine.TestCase


class TwoBrokersMachine(DeskMachine):
    brokers = 2


TwoBrokersMachine.TestCase.settings = DeskMachine.TestCase.settings
test_anything_in_any_order_from_two_brokers = TwoBrokersMachine.TestCase


def test_its_own_refusals_are_counted_and_the_brokers_are_not(submitted):
    submitted.heard(Refuse(reason=RefusalReason.NO_WORKERS, job_id=identifier("job")))
    submitted.tell(DrainRequested())
    submitted.open("late")
    assert submitted.desk.refusals == {RefusalReason.FRONTEND_DRAINING: 1}
