"""The whole service, each process on a host of its own, and what callers and operators see of it.

Whatever a test waits for is seen from outside: in the answers to calls, or on the frontends' /metrics pages.
"""

import contextlib
import json
import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest
from hosts.keys import Keys
from hosts.network import Network
from processes.stack import LIMIT_S, SLACK_S, Client, Component, OpenCall, content_of, processes_of, until

from gpu_worker.engines.fake import prompt_digest
from proto.timing import Timing

BROKERS: Final = ("broker-1", "broker-2")
FRONTENDS: Final = ("frontend-1", "frontend-2")
WORKERS: Final = ("worker-1", "worker-2", "worker-3")
CLIENTS: Final = "clients"
"""The host of the callers, and of the tests themselves."""
HOSTS: Final = (*BROKERS, *FRONTENDS, *WORKERS, CLIENTS)

TOOLS: Final = ("ip", "tc", "nft", "unshare")
KEYS: Final = tuple(f"key-{number}" for number in range(16))
STEP_S: Final = 0.05
"""Of the fake engine: 20 steps take a second, and hardly any of a core."""
FOR_FRONTENDS, FOR_WORKERS, GRPC_PORT, HTTP_PORT = 5560, 5561, 50051, 8000
PAGE_LIMIT_S: Final = 10.0
CLIENT_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
)
"""Without them a caller learns of a frontend's host that has vanished at its deadline only."""
LOOK_S: Final = 0.2
"""Between two looks at the pages: seven components share the cores with the tests."""


@contextlib.contextmanager
def among_hosts() -> Iterator[Network]:
    """The network of all hosts; in here this thread is on that of the callers."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.exit(f"these tests need root and {', '.join(TOOLS)}; missing: {missing or 'root'}", 2)
    with Network(HOSTS) as network, network.inside(CLIENTS):
        yield network


class Cluster:
    """Two brokers, two frontends, three workers. At its end every process must be gone."""

    def __init__(self, network: Network, folder: Path, time_scale: float = 1.0) -> None:
        self.network = network
        self.timing = Timing().scaled(time_scale)
        self._time_scale = time_scale
        self._folder = folder
        self._clients: list[Client] = []
        self._keys = Keys(folder / "keys", {name: network.address(name) for name in HOSTS})
        self.components = {
            **{name: self._broker(name) for name in BROKERS},
            **{name: self._worker(name) for name in WORKERS},
            **{name: self._frontend(name) for name in FRONTENDS},
        }

    def _component(self, name: str, package: str, **settings: object) -> Component:
        shared = {"log_format": "json", "time_scale": self._time_scale, **self._keys.settings_of(name)}
        through = self.network.command_on(name)
        return Component(name, package, {**shared, **settings}, self._folder, KEYS, through)

    def _broker(self, name: str) -> Component:
        return self._component(
            name,
            "broker",
            broker_id=name,
            frontends_endpoint=self._endpoint(name, FOR_FRONTENDS),
            workers_endpoint=self._endpoint(name, FOR_WORKERS),
            queue_limit=len(KEYS),
        )

    def _worker(self, name: str) -> Component:
        return self._component(
            name,
            "gpu_worker",
            worker_id=name,
            broker_endpoints=",".join(self._endpoint(broker, FOR_WORKERS) for broker in BROKERS),
            engine="fake",
            fake_step_s=STEP_S,
            fake_gate=self._gate(name),
            engine_backoff_s=0.2,
        )

    def stranger(self, host: str) -> Component:
        """A worker on a host whose key no broker knows."""
        self.components[host] = self._worker(host)
        return self.components[host]

    def _frontend(self, name: str) -> Component:
        return self._component(
            name,
            "frontend",
            frontend_id=name,
            broker_endpoints=",".join(self._endpoint(broker, FOR_FRONTENDS) for broker in BROKERS),
            grpc_host=self.network.address(name),
            grpc_port=GRPC_PORT,
            http_host=self.network.address(name),
            http_port=HTTP_PORT,
            insecure_allow_unencrypted_clients=True,
        )

    def _endpoint(self, host: str, port: int) -> str:
        return f"tcp://{self.network.address(host)}:{port}"

    # --- Starting and stopping -----------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            self.network.heal()
            for client in self._clients:
                client.disconnect()
            if kind is None:
                self._stop()
        finally:
            for process in processes_of(self._sessions):
                process.kill()
            for component in self.components.values():
                if component.process is not None:
                    component.process.wait()

    def _stop(self) -> None:
        for name in (*FRONTENDS, *WORKERS, *BROKERS):
            if self.components[name].is_running:
                self.end(name)
        until("no process is left", lambda: not processes_of(self._sessions))

    @property
    def _sessions(self) -> list[int]:
        return [session for component in self.components.values() for session in component.sessions]

    def start(self) -> Self:
        """Whatever does not run, until all is idle."""
        for name in (*BROKERS, *WORKERS, *FRONTENDS):
            if not self.components[name].is_running:
                self.components[name].start()
        self.until_idle()
        return self

    def end(self, name: str) -> None:
        """Ask it to, as an operator does; not before it can hear that."""
        component = self.components[name]
        until(f"{name} has begun", lambda: '"event"' in component.log_text())
        component.send(signal.SIGTERM)
        status = component.ends()
        assert status == 0, f"{name} ended with {status}:\n{component.log_tail()}"

    def vanish(self, host: str) -> None:
        """As when its power fails: its peers hear nothing of the end of its processes."""
        self.network.unplug(host)
        self.components[host].kill()

    def come_back(self, host: str) -> None:
        self.network.plug_in(host)
        self.components[host].start()

    @contextlib.contextmanager
    def held(self, *workers: str) -> Iterator[None]:
        """No job gets beyond its first step on these workers, by default all: what runs goes on running."""
        gates = [self._gate(name) for name in workers or WORKERS]
        for gate in gates:
            gate.touch()
        try:
            yield
        finally:
            for gate in gates:
                gate.unlink(missing_ok=True)

    def let_go(self, *workers: str) -> None:
        """Of those that are held."""
        for name in workers:
            self._gate(name).unlink()

    def _gate(self, worker: str) -> Path:
        return self._folder / f"gate-{worker}"

    # --- What can be seen from outside ---------------------------------------------------------

    def client(self, frontend: str = FRONTENDS[0], key: str = KEYS[0]) -> Client:
        self._clients.append(Client(f"{self.network.address(frontend)}:{GRPC_PORT}", key, CLIENT_OPTIONS))
        return self._clients[-1]

    def draws(self, frontends: Sequence[str] = FRONTENDS) -> None:
        """Each of these frontends gives its caller the picture that was asked for."""
        for frontend in frontends:
            prompt = f"meanwhile, through {frontend}"
            content = content_of(self.client(frontend, KEYS[-1]).draw(prompt))
            assert content.prompt_digest == prompt_digest(prompt)

    def page(self, frontend: str) -> dict[str, Any] | None:
        """Its /metrics; None while it does not answer."""
        url = f"http://{self.network.address(frontend)}:{HTTP_PORT}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=PAGE_LIMIT_S) as answer:
                document: dict[str, Any] = json.load(answer)
                return document
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def row(self, worker: str, frontend: str = FRONTENDS[0]) -> dict[str, Any] | None:
        """What the page of this frontend says of this worker; None while there is none."""
        page = self.page(frontend)
        rows = page["workers"] if page is not None and page["broker_alive"] else []
        return next((row for row in rows if row["worker_id"] == worker), None)

    def until_state(
        self, worker: str, *states: str, limit_s: float = LIMIT_S, frontends: Sequence[str] = FRONTENDS
    ) -> dict[str, Any]:
        """Until all these pages show this worker in one of these states; its row."""

        def look() -> dict[str, Any] | None:
            rows = [self.row(worker, frontend) for frontend in frontends]
            return rows[0] if all(row is not None and row["state"] in states for row in rows) else None

        return until(f"{worker} is {' or '.join(states)} for {', '.join(frontends)}", look, limit_s, LOOK_S)

    def until_lost(self, worker: str, frontends: Sequence[str] = FRONTENDS) -> dict[str, Any]:
        """Within the time in which a silent peer has to be given up."""
        return self.until_state(
            worker, "lost", limit_s=self.timing.peer_lost_s + SLACK_S, frontends=frontends
        )

    def until_serving(self, worker: str) -> dict[str, Any]:
        """Under load it may never be seen idle."""
        return self.until_state(worker, "ready", "busy")

    def until_running(self, call: OpenCall, frontend: str = FRONTENDS[0]) -> dict[str, Any]:
        """The row of the worker that has begun a job, while this call is the only one."""

        def look() -> dict[str, Any] | None:
            assert call.is_open, f"it has ended: {call.outcome()}"
            page = self.page(frontend)
            rows = page["workers"] if page is not None else []
            return next((row for row in rows if row["job_id"] and row["step"] >= 1), None)

        return until(f"{frontend} shows a running job", look, poll_s=LOOK_S)

    def until_gone(self, worker: str) -> None:
        """Until no page shows a row of it any more."""
        limit_s = self.timing.lost_worker_shown_s + SLACK_S
        until(f"{worker} is forgotten", lambda: not any(self._shows(worker)), limit_s, 5 * LOOK_S)

    def _shows(self, worker: str) -> Iterator[bool]:
        for frontend in FRONTENDS:
            page = self.page(frontend)
            yield page is None or any(row["worker_id"] == worker for row in page["workers"])

    def until_back(self, name: str) -> None:
        """Until this component, which was started again, does its part."""
        if name in WORKERS:
            self.until_serving(name)
        elif name in BROKERS:
            self.until_broker_heard(name)
        else:
            until(f"{name} serves", lambda: (self.page(name) or {}).get("worker_alive"), poll_s=LOOK_S)

    def until_broker_heard(self, broker: str) -> None:
        """Until all peers have its answer, after a silence that all have noticed."""
        workers = [self.components[name] for name in WORKERS]

        def look() -> bool:
            return all(self.standing(broker, frontend) == "live" for frontend in FRONTENDS) and all(
                _hears(worker, broker) for worker in workers if worker.is_running
            )

        until(f"{broker} is heard by everybody", look, poll_s=LOOK_S)

    def standing(self, broker: str, frontend: str) -> str:
        """Of this broker with this frontend, as its page says; empty while that does not name it."""
        page = self.page(frontend)
        rows = page["brokers"] if page is not None else []
        return next((str(row["state"]) for row in rows if row["broker_id"] == broker), "")

    def totals(self) -> dict[str, int]:
        """Jobs that have ended, of both brokers."""
        page = self.page(FRONTENDS[0])
        assert page is not None
        return {kind: page[kind] for kind in ("completed", "failed", "cancelled")}

    def until_idle(self) -> None:
        """Until every page shows all workers ready, and no job anywhere."""

        def look() -> bool:
            pages = [self.page(frontend) for frontend in FRONTENDS]
            return all(page is not None and _is_idle(page) for page in pages)

        until("nothing is going on any more", look, poll_s=LOOK_S)

    def logs(self) -> str:
        """For the report of a failed test."""
        return "\n".join(component.log_tail() for component in self.components.values())


def _is_idle(page: dict[str, Any]) -> bool:
    workers = [row["state"] for row in page["workers"]]
    brokers = [row["state"] for row in page["brokers"]]
    return (
        workers == ["ready"] * len(WORKERS)
        and brokers == ["live"] * len(BROKERS)
        and page["in_flight"] == page["queued"] == 0
    )


def _hears(worker: Component, broker: str) -> bool:
    """The last word of its log about that broker."""
    words = [
        (line["timestamp"], heard)
        for event, heard in (("broker answers", True), ("broker silent, connecting anew", False))
        for line in worker.events(event)
        if line["broker_id"] == broker
    ]
    return bool(words) and max(words)[1]
