"""A job desk with two brokers: which one gets a call, and when a call moves to the other one."""

import pytest
from samples.desk_driver import DeskDriver, epoch_of
from samples.wire import failure_outcome, identifier, image_outcome

from frontend.actions import ImageDelivered, ReconnectToBroker, SnapshotArrived
from frontend.brokers import Standing
from frontend.events import LeaveRequested, SnapshotWanted, TimerFired
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    FrontendReport,
    JobFailed,
    JobState,
    Leave,
    Snapshot,
    SnapshotRequest,
    Submit,
)
from proto.notes import Note

FIRST, SECOND = 0, 1
JOB = identifier("job")
EXECUTION = identifier("execution")
LOST = failure_outcome(EXECUTION, JobFailed(code=FailureCode.WORKER_LOST))


@pytest.fixture
def desk() -> DeskDriver:
    """Both brokers have answered."""
    driver = DeskDriver(brokers=2)
    driver.tell(TimerFired())
    driver.viewed()
    driver.viewed(broker=SECOND)
    return driver


@pytest.fixture
def accepted(desk) -> DeskDriver:
    """The first one has taken a call."""
    desk.open()
    desk.status(JobState.RUNNING, execution_id=EXECUTION, attempts=1)
    return desk


@pytest.fixture
def moved(accepted) -> DeskDriver:
    """It waits at the second one now."""
    falls_silent(accepted, FIRST)
    return accepted


def warnings_of(desk):
    """What was told last, warnings and errors."""
    return [note.event for note in desk.of(Note) if note.level in {"warning", "error"}]


def falls_silent(desk, broker):
    """Until the desk has noticed it; what it did then is kept."""
    other = SECOND if broker == FIRST else FIRST
    happened = []
    for _ in range(4):
        happened += desk.viewed(broker=other)
        happened += desk.after(0.9, answered=False)
    desk.actions = happened


def submitted_to(desk):
    (broker,) = (broker for broker in (FIRST, SECOND) if desk.sent(Submit, broker))
    return broker


# --- New calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ({}, {}, FIRST),
        ({"ready_workers": 0}, {}, SECOND),
        ({"ready_workers": 0}, {"ready_workers": 0}, FIRST),
        ({"rebuilding": True}, {}, SECOND),
        ({"rebuilding": True}, {"rebuilding": True}, FIRST),
        ({"rebuilding": True}, {"ready_workers": 0}, SECOND),
        ({"draining": True}, {}, SECOND),
        ({"draining": True}, {"rebuilding": True}, SECOND),
        ({"draining": True}, {"draining": True}, FIRST),
    ],
)
def test_a_new_call_goes_to_the_broker_that_stands_best(desk, first, second, chosen):
    desk.viewed(broker=FIRST, **first)
    desk.viewed(broker=SECOND, **second)
    desk.open()
    assert submitted_to(desk) == chosen


def test_one_that_has_not_answered_yet_is_no_better_than_one_that_has():
    desk = DeskDriver(brokers=2)
    desk.tell(TimerFired())
    desk.viewed(broker=SECOND, rebuilding=True)
    desk.open()
    assert submitted_to(desk) == SECOND


def test_a_call_does_not_wait_for_one_that_has_not_answered_when_another_one_does():
    desk = DeskDriver(brokers=2)
    desk.tell(TimerFired())
    desk.open()
    assert submitted_to(desk) == FIRST
    desk.viewed(broker=SECOND)
    assert submitted_to(desk) == SECOND


def test_when_the_first_one_is_back_it_gets_the_new_calls_and_the_old_ones_stay(moved):
    moved.viewed(broker=FIRST)
    assert moved.sent(Submit) == []
    moved.open("new")
    assert submitted_to(moved) == FIRST


def test_only_when_all_are_silent_a_call_is_refused(desk):
    falls_silent(desk, FIRST)
    desk.open()
    assert submitted_to(desk) == SECOND
    desk.after(3.1, answered=False)
    assert desk.end().reason is RefusalReason.BROKER_UNREACHABLE


# --- Moving ------------------------------------------------------------------------------------


def test_an_accepted_call_moves_as_one_when_its_broker_falls_silent(moved):
    assert submitted_to(moved) == SECOND
    submit = moved.submit()
    assert (submit.accepted, submit.execution_id, submit.claim.attempts) == (True, EXECUTION, 1)


def test_it_moves_at_once_when_its_broker_drains(accepted):
    accepted.viewed(draining=True)
    assert submitted_to(accepted) == SECOND
    (report,) = accepted.sent(FrontendReport, FIRST)
    assert (report.jobs, report.elsewhere) == ((), (JOB,))


def test_a_call_that_nobody_has_taken_moves_as_a_new_one(desk):
    desk.open()
    desk.viewed(draining=True)
    assert submitted_to(desk) == SECOND
    assert not desk.submit().accepted


def test_it_stays_while_there_is_no_better_place(accepted):
    accepted.viewed(broker=SECOND, draining=True)
    accepted.viewed(broker=FIRST, draining=True)
    assert accepted.sent(Submit) == []
    accepted.after(10.0, answered=False)
    assert accepted.sent(Submit) == []
    accepted.viewed(broker=SECOND, rebuilding=True)
    assert submitted_to(accepted) == SECOND


def passes(desk, duration_s, **of_first):
    """Both brokers say every half second how they stand; gives what was submitted meanwhile, and where."""
    happened = []
    for _ in range(round(duration_s / 0.5)):
        happened += desk.after(0.5, answered=False)
        for broker, standing in ((FIRST, of_first), (SECOND, {})):
            happened += desk.viewed(broker=broker, **standing)
    desk.actions = happened
    return [broker for broker in (FIRST, SECOND) for _ in desk.sent(Submit, broker)]


def test_it_moves_from_a_broker_that_is_cut_off_from_the_workers(accepted):
    accepted.viewed(ready_workers=0)
    assert passes(accepted, 2.5, ready_workers=0) == []
    assert passes(accepted, 1.0, ready_workers=0) == [SECOND]


def test_not_from_one_that_is_about_to_see_a_worker_which_another_one_has_just_seen(accepted):
    for broker in (FIRST, SECOND):
        accepted.viewed(broker=broker, ready_workers=0)
    for _ in range(20):
        accepted.after(0.5, answered=False)
        for broker in (FIRST, SECOND):
            accepted.viewed(broker=broker, ready_workers=0)
    accepted.viewed(broker=SECOND)
    assert accepted.sent(Submit) == []
    assert passes(accepted, 10.0) == []


def test_each_report_says_what_waits_there_and_what_waits_elsewhere(moved):
    moved.viewed(broker=FIRST)
    moved.open("new")
    for broker in (FIRST, SECOND):
        moved.desk.contacts[broker].contact.report_soon(moved.now)
    moved.after(0, answered=False)
    (to_first,) = moved.sent(FrontendReport, FIRST)
    (to_second,) = moved.sent(FrontendReport, SECOND)
    assert (to_first.jobs, to_first.elsewhere) == ((identifier("new"),), (JOB,))
    assert (to_second.jobs, to_second.elsewhere) == ((JOB,), ())


def test_a_call_may_move_back(moved):
    moved.viewed(broker=FIRST)
    moved.viewed(broker=SECOND, draining=True)
    assert submitted_to(moved) == FIRST
    (report,) = moved.sent(FrontendReport, SECOND)
    assert report.elsewhere == (JOB,)


def test_when_it_is_over_nobody_lists_it(moved):
    moved.viewed(broker=FIRST)
    moved.heard(image_outcome(EXECUTION), SECOND)
    moved.after(0.1, answered=False)
    for broker in (FIRST, SECOND):
        (report,) = moved.sent(FrontendReport, broker)
        assert (report.jobs, report.elsewhere) == ((), ())


# --- What the brokers say of a call ------------------------------------------------------------


def test_an_image_is_one_wherever_it_comes_from(moved):
    moved.heard(image_outcome(EXECUTION), FIRST)
    assert isinstance(moved.end(), ImageDelivered)


def test_a_failure_counts_only_where_the_call_is(moved):
    moved.heard(failure_outcome(EXECUTION, JobFailed(code=FailureCode.ENGINE_ERROR), crashes=2), FIRST)
    assert moved.ends() == {}
    moved.viewed(broker=FIRST, epoch=identifier("new"))
    moved.heard(failure_outcome(EXECUTION, JobFailed(code=FailureCode.ENGINE_ERROR)), SECOND)
    assert moved.end().code is FailureCode.ENGINE_ERROR


def test_so_does_a_refusal_and_what_is_not_known(desk):
    desk.open()
    desk.viewed(draining=True)
    desk.refused(RefusalReason.BROKER_DRAINING, broker=FIRST)
    assert desk.ends() == {}
    desk.status(JobState.UNKNOWN, broker=FIRST, draining=True)
    assert desk.sent(Submit) == []
    desk.status(JobState.UNKNOWN, broker=SECOND)
    assert submitted_to(desk) == SECOND
    desk.refused(RefusalReason.CLIENT_BUSY, broker=SECOND)
    assert desk.end().reason is RefusalReason.CLIENT_BUSY


def test_counters_are_merged_from_all(moved):
    moved.status(JobState.QUEUED, broker=FIRST, attempts=3)
    moved.status(JobState.UNKNOWN, broker=SECOND)
    assert moved.submit().claim.attempts == 3


def test_what_one_broker_cannot_place_the_other_one_may(accepted):
    """The first one may be cut off from the workers."""
    accepted.heard(LOST, FIRST)
    assert accepted.ends() == {}
    assert submitted_to(accepted) == SECOND
    accepted.heard(LOST, SECOND)
    assert accepted.end().code is FailureCode.WORKER_LOST


@pytest.mark.parametrize("reason", [RefusalReason.NO_WORKERS, RefusalReason.BROKER_DRAINING])
def test_the_same_of_a_call_that_it_has_not_taken(desk, reason):
    desk.open()
    desk.refused(reason, broker=FIRST)
    assert submitted_to(desk) == SECOND
    desk.refused(reason, broker=SECOND)
    assert desk.end().reason is reason


def test_a_refusal_by_a_broker_that_drains_says_what_its_view_would(desk):
    """The other one need not be live: it may be about to have a worker."""
    desk.viewed(broker=SECOND, ready_workers=0)
    desk.open()
    desk.refused(RefusalReason.BROKER_DRAINING, broker=FIRST)
    assert submitted_to(desk) == SECOND
    desk.open("next")
    assert submitted_to(desk) == SECOND


def test_it_is_not_asked_if_it_has_no_worker_either(accepted):
    accepted.viewed(broker=SECOND, ready_workers=0)
    accepted.heard(LOST, FIRST)
    assert accepted.end().code is FailureCode.WORKER_LOST


# --- Everything else ---------------------------------------------------------------------------


def test_ready_workers_are_those_of_the_broker_that_gets_the_calls(desk):
    desk.viewed(broker=FIRST, ready_workers=2)
    desk.viewed(broker=SECOND, ready_workers=5)
    assert desk.desk.ready_workers(desk.now) == 2
    falls_silent(desk, FIRST)
    desk.viewed(broker=SECOND, ready_workers=5)
    assert desk.desk.ready_workers(desk.now) == 5
    assert desk.desk.broker_alive(desk.now)


def test_a_key_is_reported_where_its_call_was_before_the_next_one_follows(accepted):
    accepted.waiter_left()
    accepted.open("next")
    assert [type(message) for message in accepted.sent(object, FIRST)] == [FrontendReport, Submit]


def test_a_broker_that_has_never_answered_is_told_once_and_by_its_endpoint():
    driver = DeskDriver(brokers=2)
    driver.tell(TimerFired())
    told = []
    for _ in range(10):
        driver.viewed()
        driver.after(0.9, answered=False)
        told += [note.with_endpoint(("tcp://a", "tcp://b")) for note in driver.of(Note)]
    silent = [note for note in told if note.event == "broker has not answered yet"]
    assert [(note.level, note.fields["endpoint"]) for note in silent] == [("warning", "tcp://b")]


def test_only_the_silent_connection_is_replaced(desk):
    falls_silent(desk, FIRST)
    assert {action.broker for action in desk.of(ReconnectToBroker)} == {FIRST}


def picture(broker):
    numbers = dict.fromkeys(("in_flight", "queued", "completed", "failed", "cancelled"), 0)
    return Snapshot(broker_id="b", epoch=epoch_of(broker), echo=1, rejected={}, **numbers)


def test_a_silent_broker_is_asked_for_no_picture(desk):
    falls_silent(desk, FIRST)
    desk.tell(SnapshotWanted())
    assert desk.sent(SnapshotRequest, SECOND)
    assert not desk.sent(SnapshotRequest, FIRST)


def test_a_late_picture_does_not_end_a_brokers_silence(desk):
    falls_silent(desk, FIRST)
    desk.heard(picture(FIRST), FIRST)
    assert desk.desk.contacts.standing(FIRST, desk.now) is Standing.SILENT
    desk.viewed(broker=FIRST)
    assert desk.desk.contacts.standing(FIRST, desk.now) is Standing.LIVE


def test_a_picture_is_asked_of_all_and_says_whose_it_is(desk):
    desk.tell(SnapshotWanted())
    assert all(desk.sent(SnapshotRequest, broker) for broker in (FIRST, SECOND))
    snapshot = picture(SECOND)
    desk.heard(snapshot, SECOND)
    assert desk.of(SnapshotArrived) == [SnapshotArrived(broker=SECOND, snapshot=snapshot)]


def test_it_leaves_all(desk):
    desk.tell(LeaveRequested())
    assert all(desk.sent(Leave, broker) for broker in (FIRST, SECOND))


def test_two_endpoints_of_one_broker_are_named_and_used_once(accepted):
    """A report through the second one would miss the calls of the first."""
    accepted.viewed(broker=SECOND, epoch=epoch_of(FIRST))
    assert accepted.desk.contacts.standing(SECOND, accepted.now) is Standing.SILENT
    accepted.after(2.0)
    assert accepted.sent(FrontendReport, SECOND) == []
    accepted.viewed(draining=True)
    assert accepted.sent(Submit) == []


@pytest.mark.parametrize(("name", "told"), [("one", ["two brokers have one name"]), ("other", [])])
def test_two_brokers_of_one_name_are_told_of_and_both_used(name, told):
    desk = DeskDriver(brokers=2)
    desk.tell(TimerFired())
    desk.viewed(broker_id="one")
    desk.viewed(broker=SECOND, broker_id=name)
    assert warnings_of(desk) == told
    assert desk.desk.contacts.heard(desk.now) == [FIRST, SECOND]


def test_a_broker_that_returns_under_the_name_of_another_is_told_of(desk):
    desk.viewed(broker=SECOND, broker_id="broker-1", epoch=identifier("next life"))
    assert warnings_of(desk) == ["two brokers have one name"]


def test_a_name_whose_broker_is_silent_may_be_taken(desk):
    falls_silent(desk, FIRST)
    desk.viewed(broker=SECOND, broker_id="broker-1", epoch=identifier("next life"))
    assert warnings_of(desk) == []


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST)])
def test_one_broker_at_two_endpoints_is_told_of_as_that_whichever_answers_first(desk, order):
    for broker in order:
        assert warnings_of(desk) == []
        desk.viewed(broker=broker, broker_id="one", epoch=identifier("its life"))
    (note,) = (note for note in desk.of(Note) if note.level == "error")
    assert note.event == "two endpoints lead to one broker"
    assert note.fields == {"broker": SECOND, "broker_id": "one"}


def test_a_second_endpoint_is_used_when_the_first_one_is_silent(desk):
    """An address that moves led to the first broker, and leads to another one when that one is gone."""
    desk.viewed(broker=SECOND, epoch=epoch_of(FIRST))
    desk.after(desk.timing.broker_silent_s + 1.0, answered=False)
    assert desk.sent(FrontendReport, SECOND)
    desk.viewed(broker=SECOND)
    desk.open()
    assert submitted_to(desk) == SECOND
