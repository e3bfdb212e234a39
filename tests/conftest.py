"""What all tests share: a failed test shows what the processes of its service have written."""

import signal
from collections.abc import Generator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--time-scale",
        type=float,
        default=1.0,
        help="factor on the service's time limits, for tests with processes",
    )


@pytest.fixture(scope="session")
def time_scale(pytestconfig: pytest.Config) -> float:
    scale: float = pytestconfig.getoption("time_scale")
    return scale


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            logs = getattr(value, "logs", None)
            if callable(logs):
                report.sections.append((f"logs of {name}", logs()))
    return report


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Tests press Ctrl-C. Whoever runs them in the background had it ignored, for all child processes too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
