"""What is learnt from finished executions."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples.strategies import REPEATABLE
from samples.wire import PARAMETERS

from broker.estimates import ENOUGH, MAX_AGE_S, OBSERVATIONS, RunTimes, work_units


def image(steps: int, side: int = 64):
    return dataclasses.replace(PARAMETERS, height=side, width=side, steps=steps)


@pytest.mark.parametrize(("side", "steps", "units"), [(1, 1, 1), (16, 1, 1), (17, 1, 4), (64, 5, 80)])
def test_work_is_counted_in_patches_and_steps(side, steps, units):
    assert work_units(image(steps, side)) == units


def test_before_anything_was_seen_nothing_is_claimed():
    assert RunTimes().expected_s(image(4), 1.0) is None
    assert RunTimes().lower_bound_s(image(4), 1.0) == 0.0


def test_what_is_expected_grows_with_the_work():
    seen = RunTimes()
    seen.observe(image(10), 11.0, 0.0)
    seen.observe(image(20), 21.0, 0.0)
    assert seen.expected_s(image(15), 1.0) == pytest.approx(16.0)
    assert seen.expected_s(image(5), 1.0) == pytest.approx(11.0), "never less than what was ever seen"


def test_of_one_size_the_mean_is_expected():
    seen = RunTimes()
    seen.observe(image(10), 1.0, 0.0)
    seen.observe(image(10), 3.0, 0.0)
    assert seen.expected_s(image(10), 1.0) == seen.expected_s(image(20), 1.0) == 2.0


def test_only_the_latest_count():
    seen = RunTimes()
    seen.observe(image(4), 1000.0, 0.0)
    for _ in range(OBSERVATIONS):
        seen.observe(image(4), 1.0, 0.0)
    assert seen.expected_s(image(4), 1.0) == 1.0


def test_the_lower_bound_is_what_smaller_and_larger_ones_have_shown():
    seen = RunTimes()
    seen.observe(image(4), 4.0, 0.0)
    seen.observe(image(8), 3.0, 0.0)
    assert seen.lower_bound_s(image(20), 1.0) == 0.0, "two are not enough"
    for _ in range(ENOUGH):
        seen.observe(image(8), 3.5, 0.0)
    assert seen.lower_bound_s(image(2), 1.0) == 0.0
    assert seen.lower_bound_s(image(4), 1.0) == 3.0
    assert seen.lower_bound_s(image(20), 1.0) == 3.0


def test_what_was_seen_long_ago_counts_no_more():
    seen = RunTimes()
    for _ in range(ENOUGH):
        seen.observe(image(4), 15.0, 100.0)
    assert seen.lower_bound_s(image(4), 100.0 + MAX_AGE_S - 1) == 15.0
    assert seen.lower_bound_s(image(4), 100.0 + MAX_AGE_S) == 0.0
    assert seen.expected_s(image(4), 100.0 + MAX_AGE_S) is None


sizes = st.builds(image, st.integers(1, 20), st.integers(1, 1024))


@REPEATABLE
@given(seen=st.lists(st.tuples(sizes, st.floats(0, 1e6)), max_size=20), wanted=sizes)
def test_estimates_are_sane_whatever_was_seen(seen, wanted):
    run_times = RunTimes()
    for parameters, run_s in seen:
        run_times.observe(parameters, run_s, 0.0)
    expected, bound = run_times.expected_s(wanted, 1.0), run_times.lower_bound_s(wanted, 1.0)
    assert (expected is None) == (not seen)
    assert bound >= 0
    if expected is not None:
        assert min(run_s for _, run_s in seen) <= expected + 1e-6


@REPEATABLE
@given(seen=st.lists(st.tuples(sizes, st.floats(0, 1e6)), max_size=20), wanted=st.lists(sizes, max_size=50))
def test_the_lower_bound_is_that_of_the_largest_size_seen_that_is_not_larger(seen, wanted):
    run_times = RunTimes()
    for parameters, run_s in seen:
        run_times.observe(parameters, run_s, 0.0)
    units_seen = [(work_units(size), run_s) for size, run_s in seen]
    for each in wanted:
        floor = max((units for units, _ in units_seen if units <= work_units(each)), default=math.inf)
        as_large = [run_s for units, run_s in units_seen if units >= floor]
        known_s = min(as_large) if len(as_large) >= ENOUGH else 0.0
        assert run_times.lower_bound_s(each, 1.0) == known_s
    assert len(run_times._bounds or ()) <= len(seen), "kept for what was seen, not for what clients ask for"


@REPEATABLE
@given(seen=st.lists(sizes, max_size=20), wanted=sizes, unit_s=st.floats(0.001, 10))
def test_with_workers_of_one_speed_no_job_that_can_be_done_is_called_impossible(seen, wanted, unit_s):
    run_times = RunTimes()
    for parameters in seen:
        run_times.observe(parameters, work_units(parameters) * unit_s, 0.0)
    assert run_times.lower_bound_s(wanted, 1.0) <= work_units(wanted) * unit_s
