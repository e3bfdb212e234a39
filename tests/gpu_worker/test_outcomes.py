"""The outcomes that a worker holds: what gives way to what, and what a report lists."""

import pytest
from samples.wire import claim, identifier

from gpu_worker.outcomes import MAX_LISTED_OUTCOMES, EndedExecution, OutcomeStore
from proto.failures import FailureCode
from proto.messages import ImageMade, JobFailed

IMAGE = ImageMade(inference_time_s=1.0, seed=7)
FAILURE = JobFailed(code=FailureCode.OUT_OF_MEMORY)


class Held:
    """A store that is checked after every step; executions go by their names."""

    def __init__(self, **bounds: float) -> None:
        self.store = OutcomeStore(
            **{"max_bytes": 1000, "max_age_s": 120.0, "kept_max": 3, "kept_age_max_s": 600.0, **bounds}
        )

    def add(self, name: object, size: int = 100, now: float = 0.0) -> None:
        ended = EndedExecution(
            execution_id=identifier(name), claim=claim(name), result=IMAGE, png=bytes(size)
        )
        self.store.add(ended, now)
        self.store.check_invariants()

    def fail(self, name: object) -> None:
        self.store.add(EndedExecution(execution_id=identifier(name), claim=claim(name), result=FAILURE), 0.0)

    def keep(self, *names: object, now: float = 0.0) -> None:
        for name in names:
            self.store.keep(identifier(name), now)
            self.store.check_invariants()

    def expire(self, now: float) -> None:
        self.store.expire(now)
        self.store.check_invariants()

    def listed(self) -> list[tuple[str, bool]]:
        return [(held.execution_id.decode().rstrip("."), held.released) for held in self.store.listed()]

    def names(self) -> set[str]:
        return {name for name, _released in self.listed()}


def test_kept_ones_are_no_longer_unreleased_but_there():
    held = Held()
    held.add("a")
    held.add("b")
    held.keep("a")
    assert (held.store.unreleased, held.store.kept, len(held.store)) == (1, 1, 2)
    assert held.listed() == [("b", False), ("a", True)]
    assert held.store.get(identifier("a")) is not None
    assert held.store.size_bytes == 200


def test_released_is_released_whether_it_was_kept_or_not():
    held = Held()
    held.add("a")
    held.add("b")
    held.keep("a")
    for name in "ab":
        held.store.release(identifier(name))
    assert len(held.store) == 0
    assert held.store.next_expiry() is None
    assert held.store.shed == 0


def test_what_was_never_there_cannot_be_kept():
    held = Held()
    held.keep("a")
    assert len(held.store) == 0


def test_a_failure_that_is_to_be_kept_is_dropped():
    held = Held()
    held.fail("a")
    held.keep("a")
    assert len(held.store) == 0
    assert held.store.shed == 0


def test_kept_ones_give_way_first_oldest_first_and_do_not_count_as_shed():
    held = Held()
    for name in "abc":
        held.add(name, 300)
    held.keep("c", "b")
    held.add("d", 300)
    assert held.names() == {"a", "b", "d"}, "c was kept before b; a is the oldest, but not released"
    held.add("e", 600)
    assert held.names() == {"d", "e"}
    assert held.store.shed == 1, "a"


def test_the_count_of_kept_ones_is_bounded():
    held = Held()
    for n in range(5):
        held.add(n)
        held.keep(n)
    assert held.listed() == [("4", True), ("3", True), ("2", True)]


def test_a_kept_one_must_fit_while_an_unreleased_one_need_not():
    held = Held()
    held.add("a", 5000)
    assert held.names() == {"a"}
    held.keep("a")
    assert held.names() == set()


@pytest.mark.parametrize("bounds", [{"kept_max": 0}, {"kept_age_max_s": 0.0}])
def test_keeping_can_be_turned_off(bounds):
    held = Held(**bounds)
    held.add("a")
    held.keep("a")
    held.expire(0.0)
    assert len(held.store) == 0


def test_ages_count_from_the_end_and_from_the_release():
    held = Held()
    held.add("a", now=0.0)
    held.add("b", now=10.0)
    held.keep("a", now=100.0)
    assert held.store.next_expiry() == 130.0
    held.expire(129.9)
    assert held.names() == {"a", "b"}
    held.expire(130.0)
    assert held.names() == {"a"}
    assert held.store.shed == 1
    assert held.store.next_expiry() == 700.0
    held.expire(700.0)
    assert held.names() == set()
    assert held.store.shed == 1


def test_told_again_to_keep_it_does_not_keep_it_for_longer():
    held = Held()
    held.add("a")
    held.keep("a", now=0.0)
    held.keep("a", now=500.0)
    assert held.store.next_expiry() == 600.0


def test_a_report_lists_the_oldest_unreleased_then_the_newest_kept():
    held = Held(kept_max=10, max_bytes=10**6)
    for n in range(MAX_LISTED_OUTCOMES + 3):
        held.add(n, 1)
    held.keep(0, 1, 2, 3, 4)
    listed = held.listed()
    assert len(listed) == MAX_LISTED_OUTCOMES
    assert listed[0] == ("5", False)
    assert listed[-3:] == [(str(MAX_LISTED_OUTCOMES + 2), False), ("4", True), ("3", True)]
