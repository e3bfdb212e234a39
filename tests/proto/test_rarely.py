"""What happens often and is logged rarely."""

from proto.rarely import LINES_MAX, SILENCE_S, Rarely


def test_the_same_thing_makes_a_line_a_minute_which_says_how_often():
    rarely = Rarely()
    assert rarely.count("thing", 0.0) == 1
    assert rarely.count("thing", SILENCE_S - 1) is None
    assert rarely.count("other", SILENCE_S - 1) == 1
    assert rarely.count("thing", SILENCE_S) == 3


def test_ever_new_things_do_not_make_ever_more_lines():
    rarely = Rarely()
    lines = [rarely.count(number, number / 1000) for number in range(10_000)]
    assert lines == [1] * LINES_MAX + [None] * (10_000 - LINES_MAX)
    assert rarely.total == 10_000
    assert rarely.count("later", SILENCE_S) == 1
