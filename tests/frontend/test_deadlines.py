"""The deadlines of open calls, in order."""

from math import inf

import pytest

from frontend.deadlines import Deadlines


@pytest.fixture
def deadlines():
    three = Deadlines()
    for job_id, deadline in ((b"late", 9.0), (b"early", 3.0), (b"also early", 3.0)):
        three.add(job_id, deadline)
    return three


def test_the_earliest_comes_first(deadlines):
    assert deadlines.first() == 3.0
    assert Deadlines().first() == inf


def test_a_deadline_has_passed_from_its_instant_on(deadlines):
    assert deadlines.passed(2.9) == []
    assert set(deadlines.passed(3.0)) == {b"early", b"also early"}
    assert deadlines.passed(9.0)[-1] == b"late"


def test_one_of_two_at_the_same_instant_can_be_removed(deadlines):
    deadlines.remove(b"early", 3.0)
    assert deadlines.passed(inf) == [b"also early", b"late"]


@pytest.mark.parametrize(("job_id", "deadline"), [(b"early", 9.0), (b"unknown", 3.0), (b"unknown", 99.0)])
def test_what_is_not_there_cannot_be_removed(deadlines, job_id, deadline):
    with pytest.raises(LookupError):
        deadlines.remove(job_id, deadline)
    assert len(deadlines.passed(inf)) == 3
