"""When a peer reports, when its broker counts as silent, and which life of the broker it hears."""

import pytest
from samples.wire import identifier, worker_view

from proto.contact import NEVER_HEARD, SILENT, BrokerContact, Contacts
from proto.timing import Timing

TIMING = Timing()


@pytest.fixture
def contact() -> BrokerContact:
    return BrokerContact(timing=TIMING, started_at=100.0)


def test_the_first_report_is_due_at_once(contact):
    assert contact.next_report_at == 100.0


def test_until_it_is_answered_a_peer_reports_more_often(contact):
    contact.reported(100.0)
    assert contact.next_report_at == pytest.approx(100.25)
    contact.viewed(worker_view(), 100.1)
    contact.reported(100.2)
    assert contact.next_report_at == pytest.approx(101.2)


def test_a_new_epoch_is_a_reason_to_report(contact):
    contact.viewed(worker_view(), 100.0)
    contact.reported(100.0)
    contact.viewed(worker_view(), 100.3)
    assert contact.next_report_at == 101.0
    contact.viewed(worker_view(epoch=identifier("other")), 100.4)
    assert contact.next_report_at == 100.4
    assert contact.epoch == identifier("other")


@pytest.mark.parametrize(
    ("told_ms", "interval_s"), [(0, 0.01), (1, 0.01), (200, 0.2), (60_000, 60.0), (2**31, 60.0)]
)
def test_the_brokers_interval_counts_within_reason(contact, told_ms, interval_s):
    contact.viewed(worker_view(heartbeat_interval_ms=told_ms), 100.0)
    contact.reported(101.0)
    assert contact.next_report_at == pytest.approx(101.0 + interval_s)


def test_only_the_first_view_of_a_connection_is_news(contact):
    assert contact.viewed(worker_view(), 100.0)
    assert not contact.viewed(worker_view(), 101.0)
    assert contact.reconnected(104.0) == SILENT
    assert contact.reconnected(107.0) is None
    assert contact.viewed(worker_view(), 108.0)
    assert contact.reconnected(112.0) == SILENT


def test_another_life_of_the_broker_is_news(contact):
    contact.viewed(worker_view(), 100.0)
    assert contact.viewed(worker_view(epoch=identifier("other")), 101.0)
    assert not contact.viewed(worker_view(epoch=identifier("other")), 102.0)


def test_a_broker_that_never_answers_is_news_once(contact):
    assert contact.reconnected(103.0) == NEVER_HEARD
    assert contact.reconnected(106.0) is None


def test_silence_counts_from_what_was_heard_last(contact):
    contact.viewed(worker_view(), 101.0)
    contact.heard(102.0)
    assert contact.silent_at == 102.0 + TIMING.broker_silent_s
    assert not contact.is_unreachable(104.9)
    assert contact.is_unreachable(105.0)


def test_a_fresh_connection_gets_its_own_time(contact):
    contact.viewed(worker_view(), 100.0)
    contact.reported(102.5)
    contact.reconnected(103.0)
    assert contact.silent_at == 106.0
    assert contact.next_report_at == 103.0
    assert contact.is_unreachable(103.0)
    contact.reconnected(106.0)
    assert contact.silent_at == 109.0


def test_numbers_grow(contact):
    assert [contact.next_seq() for _ in range(3)] == [1, 2, 3]
    assert contact.seq == 3


def test_a_broker_is_heard_from_its_first_view_until_it_is_silent(contact):
    assert not contact.is_heard(100.1)
    contact.viewed(worker_view(broker_id="b1"), 100.2)
    assert contact.broker_id == "b1"
    assert contact.is_heard(100.1 + TIMING.broker_silent_s)
    assert not contact.is_heard(100.3 + TIMING.broker_silent_s)


def test_doubles_are_those_of_one_broker_behind_the_first_endpoint_that_leads_to_it():
    contacts = Contacts(timing=TIMING, started_at=100.0, count=5)
    for endpoint, life in enumerate(["one", "two", "one", "two", "one"]):
        contacts.contact(endpoint).viewed(worker_view(epoch=identifier(life)), 100.0)
    assert contacts.doubles(identifier("one"), 100.0) == [2, 4]
    assert contacts.doubles(identifier("two"), 100.0) == [3]
    contacts.contact(3).heard(102.0)
    assert contacts.doubles(identifier("two"), 103.5) == [], "the first one is silent"
