"""A worker that serves two brokers: none may end what the other one wants."""

import pytest
from samples.session_driver import SessionDriver, epoch_of
from samples.wire import claim, identifier

from gpu_worker.actions import CancelJob, ReconnectToBroker
from gpu_worker.brokers import GATHER_S, STARTED_MAX
from gpu_worker.events import FromBroker
from gpu_worker.slot import Busy, Free
from proto.failures import FailureCode, RefusalReason
from proto.messages import Leave, Outcome, Refuse, WorkerReport

FIRST, SECOND = 0, 1
EXECUTION = identifier("execution")
WANTED = {"wanted": (EXECUTION,)}


@pytest.fixture
def ready() -> SessionDriver:
    """Its engine is up, and both brokers have answered."""
    worker = SessionDriver(brokers=2)
    worker.become_ready()
    worker.viewed(SECOND)
    return worker


@pytest.fixture
def busy(ready) -> SessionDriver:
    """It runs an execution of the first broker."""
    ready.start()
    return ready


@pytest.fixture
def ended(busy) -> SessionDriver:
    """It holds the image of it."""
    busy.finished()
    return busy


def wanted_elsewhere(worker, broker):
    """What it says to this broker of its one execution."""
    worker.session.contacts.contact(broker).report_soon(worker.now)
    worker.after(0, answered=False)
    (report,) = worker.sent(WorkerReport, broker)
    (execution,) = (*report.held, *(() if report.running is None else (report.running,)))
    return execution.wanted_elsewhere


# --- What it says ------------------------------------------------------------------------------


def test_it_reports_to_each_with_numbers_of_its_own(ready):
    ready.after(1.5, answered=False)
    for broker in (FIRST, SECOND):
        seqs = [report.seq for report in ready.sent(WorkerReport, broker)]
        assert seqs == sorted(set(seqs))
        assert seqs


def test_a_change_of_the_slot_is_told_at_once_to_those_that_cannot_know(busy):
    assert busy.sent(WorkerReport, FIRST) == [], "it has sent the START"
    (report,) = busy.sent(WorkerReport, SECOND)
    assert report.running.execution_id == EXECUTION


def test_each_is_told_what_the_other_one_wants(busy):
    assert not wanted_elsewhere(busy, FIRST)
    assert wanted_elsewhere(busy, SECOND)
    busy.viewed(FIRST)
    assert not wanted_elsewhere(busy, SECOND)
    busy.viewed(SECOND, **WANTED)
    assert wanted_elsewhere(busy, FIRST)
    assert not wanted_elsewhere(busy, SECOND)


def test_the_same_of_what_is_held(ended):
    assert wanted_elsewhere(ended, SECOND)
    ended.viewed(FIRST)
    assert not wanted_elsewhere(ended, SECOND)


def test_what_a_silent_broker_wants_counts_no_more(busy):
    busy.after(0.5, answered=False)
    busy.viewed(SECOND)
    busy.after(busy.timing.broker_silent_s - 0.6, answered=False)
    assert wanted_elsewhere(busy, SECOND)
    busy.viewed(SECOND)
    busy.after(0.2, answered=False)
    assert not wanted_elsewhere(busy, SECOND)


def test_when_it_leaves_it_says_so_to_all(ready):
    ready.drain()
    assert len(ready.sent(Leave, FIRST)) == len(ready.sent(Leave, SECOND)) == 1


# --- Outcomes ----------------------------------------------------------------------------------


def test_an_outcome_goes_to_those_that_want_it(busy):
    busy.finished()
    assert len(busy.sent(Outcome, FIRST)) == 1
    assert busy.sent(Outcome, SECOND) == []


def test_an_outcome_that_both_want_goes_to_both(busy):
    busy.viewed(SECOND, **WANTED)
    busy.failed(FailureCode.ENGINE_ERROR)
    assert [message.failure.code for message in busy.sent(Outcome)] == [FailureCode.ENGINE_ERROR] * 2


def test_an_outcome_that_nobody_wants_goes_to_all(busy):
    """A crash counts for its job wherever that is now."""
    busy.after(GATHER_S, answered=False)
    busy.viewed(FIRST)
    busy.exited(code=FailureCode.ENGINE_CRASHED)
    for broker in (FIRST, SECOND):
        (outcome,) = busy.sent(Outcome, broker)
        assert outcome.crashes == 1


def test_it_is_sent_again_to_whoever_asks(ended):
    ended.viewed(SECOND, resend=(EXECUTION,), **WANTED)
    (outcome,) = ended.sent(Outcome)
    assert ended.sent(Outcome, SECOND) == [outcome]


# --- The fence ---------------------------------------------------------------------------------


def test_none_cancels_what_the_other_one_wants(busy):
    busy.viewed(SECOND, cancel=(EXECUTION,))
    assert isinstance(busy.session.slot, Busy)
    busy.viewed(SECOND, **WANTED)
    busy.viewed(FIRST, cancel=(EXECUTION,))
    assert isinstance(busy.session.slot, Busy)
    busy.viewed(SECOND)
    busy.viewed(FIRST, cancel=(EXECUTION,))
    assert busy.of(CancelJob)


def test_a_start_is_a_want_before_any_view_says_so(ready):
    ready.start(broker=SECOND)
    ready.viewed(FIRST, cancel=(EXECUTION,))
    assert ready.of(CancelJob) == []


def test_a_view_that_a_start_has_overtaken_says_nothing_of_it(ready):
    sent_before = ready.session.contacts.contact(FIRST).seq
    ready.start()
    ready.viewed(FIRST, echo=sent_before)
    assert wanted_elsewhere(ready, SECOND)
    ready.viewed(SECOND, cancel=(EXECUTION,))
    assert ready.of(CancelJob) == []
    assert not wanted_elsewhere(ready, FIRST)
    ready.viewed(FIRST, echo=sent_before + 1)
    assert not wanted_elsewhere(ready, SECOND)


def test_a_view_that_a_later_one_has_overtaken_says_nothing_of_what_is_wanted(ready):
    sent_before = ready.session.contacts.contact(FIRST).seq
    ready.start()
    ready.viewed(FIRST, echo=sent_before + 1, **WANTED)
    ready.viewed(FIRST, echo=sent_before)
    assert wanted_elsewhere(ready, SECOND)
    ready.viewed(SECOND, cancel=(EXECUTION,))
    assert ready.of(CancelJob) == []


def test_a_broker_that_starts_without_end_is_remembered_in_part(ready):
    for number in range(3 * STARTED_MAX):
        ready.session.contacts.started(FIRST, b"%016d" % number)
    assert len(ready.session.contacts._known[FIRST].started) == STARTED_MAX


def test_unless_it_was_meant_to_call_that_start_back(busy):
    busy.viewed(SECOND, **WANTED)
    busy.viewed(FIRST, cancel=(EXECUTION,))
    assert not wanted_elsewhere(busy, SECOND)


@pytest.mark.parametrize("wish", ["release", "keep"])
def test_none_settles_what_the_other_one_waits_for(ended, wish):
    ended.viewed(SECOND, **{wish: (EXECUTION,)})
    assert ended.session.held.unreleased == 1
    ended.viewed(SECOND, **WANTED)
    ended.viewed(FIRST, **{wish: (EXECUTION,)})
    assert ended.session.held.unreleased == 1
    ended.viewed(SECOND, **{wish: (EXECUTION,)})
    assert ended.session.held.unreleased == 0


def test_none_drops_an_unfinished_png_that_the_other_one_waits_for(busy):
    busy.drawn()
    busy.viewed(SECOND, release=(EXECUTION,))
    busy.encoded()
    assert busy.outcome().image is not None


def test_a_silent_broker_stops_nobody(busy):
    busy.after(busy.timing.broker_silent_s + 0.1, answered=False)
    busy.viewed(SECOND, cancel=(EXECUTION,))
    assert busy.of(CancelJob)


def test_of_two_that_start_something_the_later_one_is_refused(busy):
    busy.start("other", "other job", broker=SECOND)
    (refuse,) = busy.sent(Refuse, SECOND)
    assert (refuse.reason, refuse.execution_id) == (RefusalReason.WORKER_BUSY, identifier("other"))
    assert busy.sent(Refuse, FIRST) == []
    assert not busy.session.contacts.wanting(identifier("other"), busy.now)


def test_a_claim_that_another_broker_renews_loses_nothing(ready):
    ready.start(claim=claim(attempts=2, crashes=1, detach=True, idempotency_hash=identifier("again")))
    ready.start(
        broker=SECOND,
        claim=claim(attempts=1, idempotency_hash=identifier("again"), remaining_ms=90_000),
    )
    renewed = ready.session.slot.claim
    assert (renewed.attempts, renewed.crashes, renewed.detach) == (2, 1, True)
    assert ready.session.slot.deadline == ready.now + 90.0
    assert wanted_elsewhere(ready, FIRST)


def test_a_start_counts_by_the_life_of_the_broker_that_sent_it(ready):
    ready.start("late", broker=SECOND, epoch=epoch_of(FIRST))
    (refuse,) = ready.sent(Refuse, SECOND)
    assert refuse.reason is RefusalReason.STALE_START
    assert isinstance(ready.session.slot, Free)


# --- Connections -------------------------------------------------------------------------------


def test_only_the_silent_connection_is_replaced(ready):
    ready.after(2.9)
    ready.after(0.2)
    assert {action.broker for action in ready.of(ReconnectToBroker)} == {SECOND}


def test_it_ends_for_any_broker_that_knows_a_younger_one(ready):
    ready.tell(FromBroker(broker=SECOND, message=Refuse(reason=RefusalReason.SUPERSEDED)))
    assert ready.session.next_deadline() is None


def test_two_endpoints_of_one_broker_are_named_and_used_once(ready):
    ready.viewed(SECOND, epoch=epoch_of(FIRST))
    ready.after(2.5)
    assert ready.sent(WorkerReport, SECOND) == []
    assert len(ready.sent(WorkerReport, FIRST)) > 1


def test_a_second_endpoint_is_used_when_the_first_one_is_silent(ready):
    """An address that moves led to the first broker, and leads to another one when that one is gone."""
    ready.viewed(SECOND, epoch=epoch_of(FIRST))
    ready.after(ready.session.timing.broker_silent_s + 1.0, answered=False)
    assert ready.sent(WorkerReport, SECOND)
