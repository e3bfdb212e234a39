"""The service as real processes: start, watch, freeze, kill and stop its components.

What a test waits for is always something that it can see, with a limit; nothing here guesses durations.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import psutil
import pytest
import waiting
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status
from samples.curve import key_folder

import image_gen_pb2
import image_gen_pb2_grpc
from gpu_worker.engines.fake import FakeImageContent, prompt_digest, read_fake_image
from proto.timing import Timing

LIMIT_S: Final = 50.0
"""For what must happen, however slow this machine is."""
SLACK_S: Final = 10.0
"""What a loaded machine may add to a duration that the service promises."""
POLL_S: Final = 0.02
LOG_LINES_SHOWN: Final = 60
KEYS: Final = ("client1", "client2")
PREFIXES: Final = {"broker": "FLUX_BROKER_", "gpu_worker": "FLUX_WORKER_", "frontend": "FLUX_FRONTEND_"}

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S, poll_s: float = POLL_S) -> T:
    return waiting.until(what, look, limit_s, poll_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An RPC's error, with what its details say."""

    code: grpc.StatusCode
    text: str
    reason: str
    retry_after_s: float | None
    attempts: int | None
    bad_fields: Mapping[str, str]
    """Descriptions by field."""


Drawn = image_gen_pb2.GenerateResponse


def content_of(image: Drawn) -> FakeImageContent:
    """What a picture of the fake engine says about itself."""
    content = read_fake_image(image.image_png)
    assert content is not None, "the picture is too small to say whose it is"
    return content


def refusal_of(error: Any) -> Refusal:
    """`error` is a `grpc.RpcError` and a `grpc.Call` in one, which no type can say."""
    status = rpc_status.from_call(error)
    info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
    has_retry = False
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        has_retry = detail.Unpack(retry) or has_retry
        detail.Unpack(bad)
    return Refusal(
        code=error.code(),
        text=error.details() or "",
        reason=info.reason,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
        attempts=int(info.metadata["attempts"]) if "attempts" in info.metadata else None,
        bad_fields={violation.field: violation.description for violation in bad.field_violations},
    )


class OpenCall:
    """A `Generate` that was begun."""

    def __init__(self, call: Any) -> None:
        self._call = call

    @property
    def is_open(self) -> bool:
        return not self._call.done()

    @property
    def job_id(self) -> str:
        """Of a call that has ended: as its metadata say."""
        return dict(self._call.trailing_metadata())["job-id"]

    def cancel(self) -> None:
        self._call.cancel()

    def outcome(self, limit_s: float = LIMIT_S) -> Drawn | Refusal:
        """How it ended; a call that does not end fails the test."""
        try:
            image: Drawn = self._call.result(timeout=limit_s)
            return image
        except grpc.FutureTimeoutError:
            pytest.fail(f"the call hangs: no answer within {limit_s:g} s")
        except grpc.FutureCancelledError:
            return refusal_of(self._call)
        except grpc.RpcError as error:
            return refusal_of(error)

    def image(self, limit_s: float = LIMIT_S) -> Drawn:
        outcome = self.outcome(limit_s)
        assert isinstance(outcome, Drawn), f"no image: {outcome}"
        return outcome

    def refusal(self, limit_s: float = LIMIT_S) -> Refusal:
        outcome = self.outcome(limit_s)
        assert isinstance(outcome, Refusal), "there is an image, though none was expected"
        return outcome


class Client:
    """A caller with a key and a connection of its own."""

    def __init__(
        self, address: str, key: str = KEYS[0], more_options: Sequence[tuple[str, int]] = ()
    ) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # otherwise all clients share one connection
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),  # also the limit for an attempt on a loaded machine
            ("grpc.max_reconnect_backoff_ms", 200),
            *more_options,
        ]
        self.channel = grpc.insecure_channel(address, options)
        self.stub = image_gen_pb2_grpc.ImageGenStub(self.channel)
        self.metadata: tuple[tuple[str, str | bytes], ...] = (("api-key", key),)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        self.channel.close()

    def begin(
        self,
        prompt: str = "a lighthouse",
        *,
        height: int = 64,
        width: int = 64,
        steps: int = 20,
        guidance: float = 2.5,
        seed: int | None = None,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
        detach: bool = False,
    ) -> OpenCall:
        request = image_gen_pb2.GenerateRequest(
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
        )
        metadata = self.metadata
        if idempotency_key is not None:
            metadata += (("idempotency-key", idempotency_key),)
        if detach:
            metadata += (("on-disconnect", "detach"),)
        return OpenCall(self.stub.Generate.future(request, timeout=deadline_s, metadata=metadata))

    def draw(self, prompt: str = "a lighthouse", *, steps: int = 1, **wishes: Any) -> Drawn:
        return self.begin(prompt, steps=steps, **wishes).image()

    def ping(self) -> str:
        return self.stub.Ping(image_gen_pb2.PingRequest(), timeout=LIMIT_S, metadata=self.metadata).message

    def metrics(self) -> image_gen_pb2.MetricsResponse:
        return self.stub.Metrics(image_gen_pb2.MetricsRequest(), timeout=LIMIT_S, metadata=self.metadata)


class Component:
    """One component: what it is started with, and its present process."""

    def __init__(
        self,
        name: str,
        package: str,
        settings: dict[str, object],
        folder: Path,
        keys: Sequence[str],
        through: Sequence[str] = (),
    ) -> None:
        """`through`: a command that becomes the one behind it, in other surroundings."""
        self.name = name
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.sessions: list[int] = []
        """Of all its processes until now, their children included."""
        self._package = package
        self._folder = folder
        self._keys = keys
        self.through = through

    def start(self) -> None:
        assert not self.is_running
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
        with self.log_file(len(self.sessions)).open("wb") as log:
            self.process = subprocess.Popen(
                [*self.through, *self._command()],
                cwd=self._folder,
                env={**inherited, **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.sessions.append(self.process.pid)

    def _command(self) -> Sequence[str]:
        return (sys.executable, "-m", self._package)

    def _environment(self) -> dict[str, str]:
        prefix = PREFIXES[self._package]
        own = {f"{prefix}{name.upper()}": str(value) for name, value in self.settings.items()}
        return {"API_KEYS": ",".join(self._keys), **own}

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def life(self) -> psutil.Process:
        """The present process: it compares by its start as well, as numbers are given again."""
        return psutil.Process(self.pid)

    def send(self, number: signal.Signals) -> None:
        assert self.is_running, f"{self.name} has ended:\n{self.log_tail()}"
        os.kill(self.pid, number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)
        until(f"{self.name} is frozen", lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.ends() == -signal.SIGKILL

    def ends(self, limit_s: float = LIMIT_S) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {limit_s:g} s:\n{self.log_tail()}")

    def engine(self) -> psutil.Process:
        """The present engine process of a worker."""
        return until(f"{self.name} has an engine process", self.engine_now)

    def engine_now(self) -> psutil.Process | None:
        """The forkserver's child."""
        forkserver = self.forkserver()
        try:
            return None if forkserver is None else next(iter(forkserver.children()), None)
        except psutil.NoSuchProcess:
            return None  # It ended while we looked.

    def forkserver(self) -> psutil.Process | None:
        """The present one of a worker, if there is one."""
        for child in psutil.Process(self.pid).children():
            try:
                if "multiprocessing.forkserver" in child.cmdline()[-1]:
                    return child
            except (psutil.NoSuchProcess, IndexError):
                continue  # It ended while we looked.
        return None

    # --- What it has written -------------------------------------------------------------------

    def log_file(self, run: int) -> Path:
        return self._folder / f"{self.name}-{run}.log"

    def _lines(self, run: int) -> list[str]:
        return self.log_file(run).read_text().splitlines()

    def log_text(self) -> str:
        """Of the present process, or the last one."""
        return self.log_file(len(self.sessions) - 1).read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of this event."""
        text = self.log_text()
        whole_lines = text[: text.rfind("\n") + 1].splitlines()
        parsed = (json.loads(line) for line in whole_lines if line.startswith("{"))
        return [line for line in parsed if line["event"] == event]

    def until_event(self, event: str, **facts: object) -> dict[str, Any]:
        """The first log line of this event with these facts."""

        def look() -> dict[str, Any] | None:
            lines = self.events(event)
            found = next((line for line in lines if facts.items() <= line.items()), None)
            if found is None and not self.is_running:
                pytest.fail(f"{self.name} ended without {event!r}:\n{self.log_tail()}")
            return found

        return until(f"{self.name} logs {event!r} {facts}", look)

    def log_tail(self) -> str:
        logs = (
            f"--- {self.name}, process {pid}\n" + "\n".join(lines[-LOG_LINES_SHOWN:])
            for run, pid in enumerate(self.sessions)
            for lines in [[line for line in self._lines(run) if '"Metrics"' not in line]]
        )
        return "\n".join(logs)


class Stack:
    """Brokers, workers and a frontend. At its end every process must be gone."""

    def __init__(
        self,
        folder: Path,
        *,
        over_tcp: bool = False,
        encrypted: bool = False,
        keys: Sequence[str] = KEYS,
        brokers: int = 1,
        time_scale: float = 1.0,
        tracing: bool = False,
    ) -> None:
        """`encrypted`: with the keys of `key_folder`, of which all workers have the same."""
        self.timing = Timing().scaled(time_scale)
        self.workers: dict[str, Component] = {}
        self._folder = folder
        self._keys = keys
        self._gate = folder / "gate"
        # A unix socket's path holds 107 bytes: less than the folders of tests have.
        self._sockets = tempfile.TemporaryDirectory(prefix="flux-", dir="/tmp")
        endpoints = (
            [f"tcp://127.0.0.1:{port}" for port in free_ports(2 * brokers)]
            if over_tcp
            else [f"ipc://{self._sockets.name}/{number}" for number in range(2 * brokers)]
        )
        for_frontends, for_workers = endpoints[:brokers], endpoints[brokers:]
        self._for_workers = ",".join(for_workers)
        self._shared: dict[str, object] = {"log_format": "json", "time_scale": time_scale, "tracing": tracing}
        self.curve = key_folder(folder) if encrypted else None
        self.brokers = [
            self._component(
                f"broker-{number}",
                "broker",
                broker_id=f"broker-{number}",
                frontends_endpoint=for_frontends[number - 1],
                workers_endpoint=for_workers[number - 1],
                **self._key_files("broker"),
            )
            for number in range(1, brokers + 1)
        ]
        self.broker = self.brokers[0]
        self.frontend = self._component(
            "frontend",
            "frontend",
            broker_endpoints=",".join(for_frontends),
            grpc_port=0,
            http_port=0,
            **self._key_files("frontend"),
        )
        self._clients: list[Client] = []
        self._watcher: Client | None = None
        self.address = ""
        self.http = ""

    def _component(self, name: str, package: str, **settings: object) -> Component:
        return Component(name, package, {**self._shared, **settings}, self._folder, self._keys)

    def _key_files(self, role: str) -> dict[str, object]:
        if self.curve is None:
            return {}
        others = (
            {"authorized_keys_file": self.curve.authorized_keys}
            if role == "broker"
            else {"known_brokers_file": self.curve.known_brokers}
        )
        return {"curve_key_file": self.curve.secret_file(role), **others}

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
            for client in self._clients:
                client.disconnect()
            if kind is None:
                self.stop()
                self.until_no_process_is_left()
        finally:
            self._kill_all()
            self._sockets.cleanup()

    def start(self, *, workers: int = 1, limit_s: float = LIMIT_S, **settings: object) -> Self:
        """All components, until the workers are ready. `settings` are the workers', fake ones by default."""
        for broker in self.brokers:
            broker.start()
        for number in range(1, workers + 1):
            self.start_worker(f"worker-{number}", **settings)
        self.start_frontend()
        for name in self.workers:
            self.until_state(name, "ready", limit_s)
        return self

    def start_worker(self, name: str, **settings: object) -> Component:
        """A new worker, or the successor of an ended one with the same settings."""
        worker = self.prepared_worker(name, **settings)
        worker.start()
        return worker

    def prepared_worker(self, name: str, **settings: object) -> Component:
        """Likewise, to be started later."""
        if name not in self.workers:
            defaults = {
                "worker_id": name,
                "broker_endpoints": self._for_workers,
                "engine": "fake",
                "fake_step_s": 0.01,
                "fake_gate": self._gate,
                "engine_backoff_s": 0.2,
            }
            own = {**defaults, **self._key_files("worker"), **settings}
            self.workers[name] = self._component(name, "gpu_worker", **own)
        return self.workers[name]

    def start_frontend(self) -> None:
        """On the ports that it had before, if it had any."""
        self.frontend.start()
        serving = self.frontend.until_event("serving")
        if not self.address:
            self.address, self.http = serving["grpc"], serving["http"]
            self.frontend.settings["grpc_port"] = self.address.rpartition(":")[2]
            self.frontend.settings["http_port"] = self.http.rpartition(":")[2]

    def stop(self) -> None:
        """Frontend first, so that nothing is asked of what ends; every one has to end by itself, with 0."""
        for component in (self.frontend, *self.workers.values(), *self.brokers):
            if component.is_running:
                component.send(signal.SIGTERM)
                status = component.ends()
                assert status == 0, f"{component.name} ended with {status}:\n{component.log_tail()}"

    def until_the_broker_is_heard(self) -> None:
        """By the frontend, in its present life: from then on calls are not refused for want of one."""
        epoch = self.broker.until_event("broker listens")["epoch"]
        self.frontend.until_event("broker answers", epoch=epoch)

    def until_no_process_is_left(self) -> None:
        until(f"none is left of {self.sessions}", lambda: not processes_of(self.sessions))

    @property
    def components(self) -> list[Component]:
        return [*self.brokers, self.frontend, *self.workers.values()]

    @property
    def sessions(self) -> list[int]:
        return [session for component in self.components for session in component.sessions]

    def _kill_all(self) -> None:
        for process in processes_of(self.sessions):
            process.kill()
        for component in self.components:
            if component.process is not None:
                component.process.wait()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No job of a fake engine gets beyond its first step in here: what runs goes on running."""
        self._gate.touch()
        try:
            yield
        finally:
            self._gate.unlink()

    # --- Calls and what can be seen from outside -----------------------------------------------

    def client(self, key: str | None = None) -> Client:
        """By default with the first key."""
        self._clients.append(Client(self.address, self._keys[0] if key is None else key))
        return self._clients[-1]

    def draws(self, key: str = KEYS[1]) -> None:
        """Every worker is ready, and a further call gets the picture that it asked for."""
        for name in self.workers:
            self.until_state(name, "ready")
        prompt = f"whatever was, {len(self._clients)}"
        assert content_of(self.client(key).draw(prompt)).prompt_digest == prompt_digest(prompt)

    def metrics(self) -> image_gen_pb2.MetricsResponse:
        if self._watcher is None:
            self._watcher = self.client()
        return self._watcher.metrics()

    def rows(self) -> list[image_gen_pb2.WorkerStatus]:
        """The workers as the broker knows them now; none while no broker answers."""
        metrics = self.metrics()
        return list(metrics.workers) if metrics.broker_alive else []

    def executions(self) -> int:
        """That the present processes of the workers have begun."""
        return sum(len(worker.events("job started")) for worker in self.workers.values())

    def row(self, worker: str) -> image_gen_pb2.WorkerStatus | None:
        return next((row for row in self.rows() if row.worker_id == worker), None)

    def until_state(self, worker: str, state: str, limit_s: float = LIMIT_S) -> image_gen_pb2.WorkerStatus:
        """Until the metrics show this worker in this state."""

        def look() -> image_gen_pb2.WorkerStatus | None:
            row = self.row(worker)
            if row is None or row.state != state:
                assert state == "lost" or self.workers[worker].is_running, f"{worker} has ended"
                return None
            return row

        return until(f"{worker} is {state}", look, limit_s)

    def until_running(self, step: int = 1, worker: str | None = None) -> image_gen_pb2.WorkerStatus:
        """Until the metrics show a job that a worker has begun, and made `step` steps of."""

        def look() -> image_gen_pb2.WorkerStatus | None:
            rows = (row for row in self.rows() if row.job_id and row.step >= step)
            return next((row for row in rows if worker in {None, row.worker_id}), None)

        return until(f"a job runs on {worker or 'a worker'}, step {step}", look)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and document of a page of the HTTP side."""
        try:
            with urllib.request.urlopen(f"{self.http}{path}", timeout=LIMIT_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def logs(self) -> str:
        """For the report of a failed test."""
        return "\n".join(component.log_tail() for component in self.components)


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def processes_of(sessions: list[int]) -> list[psutil.Process]:
    """The living processes of these sessions, orphans included."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue  # It ended while we looked.
    return found
