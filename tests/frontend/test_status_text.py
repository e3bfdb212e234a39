"""What `systemctl status` shows of a frontend."""

from frontend.rpc import OpenCalls
from frontend.status_text import status_text


class Cluster:
    def __init__(self, *, broker_alive: bool) -> None:
        self.broker_alive = broker_alive
        self.ready_workers = 2


def test_it_says_what_it_has_and_what_it_lacks() -> None:
    calls = OpenCalls()
    there, gone = Cluster(broker_alive=True), Cluster(broker_alive=False)
    assert status_text(there, calls, draining=False) == "serving: 2 workers ready, 0 calls open"
    with calls:
        assert status_text(there, calls, draining=True) == "draining: 2 workers ready, 1 calls open"
        assert status_text(gone, calls, draining=False) == "serving: no broker answers, 1 calls open"
