"""Runs the tests of the fault matrix, and says of each row how they ended."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import pytest
from chaos.matrix import PAGE, ROWS, TESTS, Row, with_table

DEFAULT_TIME_SCALE: Final = 0.2
LONGEST_TIME_SCALE: Final = 10.0
_PROCESSES: Final = "processes/"
_HOSTS: Final = "hosts/"


class Verdicts:
    """A plugin of pytest: how the tests of each row ended."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._failed: dict[str, bool] = {}
        self._duration_s: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.partition("[")[0].removeprefix("tests/")
        self._failed[test] = self._failed.get(test, False) or not report.passed
        self._duration_s[test] = self._duration_s.get(test, 0.0) + report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("fault matrix")
        for row in self._rows:
            terminalreporter.write_line(
                f"{row.number:3} {self._verdict(row):7} {self._took(row)} {row.fault}"
            )

    def _verdict(self, row: Row) -> str:
        if any(self._failed.get(test, False) for test in row.tests):
            return "FAILED"
        return "holds" if all(test in self._failed for test in row.tests) else "not run"

    def _took(self, row: Row) -> str:
        return f"{sum(self._duration_s.get(test, 0.0) for test in row.tests):6.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__, epilog="More is passed on to pytest.")
    parser.add_argument("--row", type=int, action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--time-scale",
        type=float,
        default=DEFAULT_TIME_SCALE,
        help="factor on the protocol's time limits, by default %(default)s",
    )
    parser.add_argument("--write", action="store_true", help=f"only make the table in {PAGE.name} anew")
    chosen, more = parser.parse_known_args()
    if chosen.write:
        PAGE.write_text(with_table(PAGE.read_text()))
        return 0
    if not 0 < chosen.time_scale <= LONGEST_TIME_SCALE:
        parser.error(f"--time-scale {chosen.time_scale:g}: more than 0, at most {LONGEST_TIME_SCALE:g}")
    if unknown := set(chosen.row or ()) - {row.number for row in ROWS}:
        parser.error(f"--row: there is no {min(unknown)}; there are 1 to {ROWS[-1].number}, without 20")
    rows = [row for row in ROWS if chosen.row is None or row.number in chosen.row]
    root = TESTS.parent
    where = ("-c", f"{root}/pyproject.toml", "--rootdir", str(root))
    scale = ("--time-scale", str(chosen.time_scale))
    return pytest.main(["-v", *where, *scale, *_tests(rows), *more], plugins=[Verdicts(rows)])


def _tests(rows: Sequence[Row]) -> list[str]:
    """What pytest is to run, each once; hosts come last, as their tests leave this process on one of them."""
    wanted = dict.fromkeys(_with_predecessors(test) for row in rows for test in row.tests)
    return [f"{TESTS}/{test}" for test in sorted(wanted, key=lambda test: test.startswith(_HOSTS))]


def _with_predecessors(test: str) -> str:
    """The tests of a file there share a service, and build on each other."""
    return test.partition("::")[0] if test.startswith(_PROCESSES) else test


if __name__ == "__main__":
    sys.exit(main())
