"""A broker core that is driven by hand."""

import pytest
from samples.broker_driver import Driver


@pytest.fixture
def broker() -> Driver:
    return Driver()


@pytest.fixture
def queueing_broker() -> Driver:
    return Driver(queue_limit=2)
