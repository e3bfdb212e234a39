"""The fault matrix names tests that exist, and its page is fresh."""

import re

import pytest
from chaos.matrix import PAGE, ROWS, TESTS, Row, with_table

_NEVER_GIVEN = 20


def test_every_row_is_there() -> None:
    assert [row.number for row in ROWS] == [n for n in range(1, 39) if n != _NEVER_GIVEN]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_its_tests_exist(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE), test


def test_each_test_of_a_row_is_in_it() -> None:
    named = {test for row in ROWS for test in row.tests}
    for file in sorted((TESTS / "chaos").glob("test_*.py")):
        for name, number in re.findall(r"^def (test_row_(\d+)_\w+)\(", file.read_text(), re.MULTILINE):
            row = next(row for row in ROWS if row.number == int(number))
            assert f"chaos/{file.name}::{name}" in row.tests
            named.discard(f"chaos/{file.name}::{name}")
    assert not [test for test in named if test.startswith("chaos/")]


def test_the_page_is_fresh() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "python -m chaos --write"
