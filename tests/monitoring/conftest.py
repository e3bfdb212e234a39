"""Tests with Prometheus' own programs, as a distribution has them."""

import shutil

import pytest
from monitoring.watchers import TOOLS


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.exit(f"missing {', '.join(missing)}: apt install prometheus prometheus-alertmanager", 2)
