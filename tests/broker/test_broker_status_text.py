"""What `systemctl status` shows of a broker."""

from samples.broker_driver import Driver
from samples.wire import identifier

from broker.events import DrainRequested, TimerFired
from broker.status_text import status_text


def test_it_listens_first_and_then_serves():
    broker = Driver(rebuild_s=3.0)
    broker.tell(TimerFired())
    assert (
        status_text(broker.core.state)
        == "listening for its peers: 0 workers (0 ready), 0 frontends, 0 running, 0 waiting"
    )
    broker.worker()
    while broker.core.state.is_rebuilding:
        broker.now += 0.25
        broker.tell(TimerFired())
    broker.worker()
    assert status_text(broker.core.state) == "serving: 1 worker (1 ready), 0 frontends, 0 running, 0 waiting"


def test_jobs_are_counted():
    broker = Driver(queue_limit=5)
    broker.worker()
    broker.frontend()
    broker.submit("first")
    broker.submit("second", key=identifier("another"))
    assert status_text(broker.core.state) == "serving: 1 worker (1 ready), 1 frontend, 1 running, 1 waiting"
    broker.tell(DrainRequested())
    assert status_text(broker.core.state).startswith("draining: ")
