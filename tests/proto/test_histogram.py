"""Buckets that only grow."""

from hypothesis import given
from hypothesis import strategies as st

from proto.histogram import Histogram


def test_a_bound_belongs_to_its_bucket():
    histogram = Histogram((0.5, 1.0))
    for value in (0.0, 0.5, 0.75, 1.0, 1.25, 100.0):
        histogram.observe(value)
    told = histogram.distribution()
    assert (told.bounds, told.counts, told.sum) == ((0.5, 1.0), (2, 2, 2), 103.5)


@given(st.lists(st.floats(0, 1e6), max_size=20), st.floats(0, 1e6))
def test_nothing_becomes_less(values, last):
    histogram = Histogram((1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    before = histogram.distribution()
    histogram.observe(last)
    after = histogram.distribution()
    assert sum(after.counts) == sum(before.counts) + 1
    assert all(more >= less for more, less in zip(after.counts, before.counts, strict=True))
    assert after.sum >= before.sum
