"""A real Prometheus and Alertmanager with the files that are shipped, and somebody who is told."""

import http.server
import json
import queue
import re
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from processes.stack import LIMIT_S, free_ports, until

ROOT: Final = Path(__file__).resolve().parents[2]
SHIPPED: Final = ROOT / "deploy" / "prometheus"
RULES: Final = SHIPPED / "flux-server.rules.yml"
TOOLS: Final = ("promtool", "prometheus", "prometheus-alertmanager")
INTERVAL: Final = "2s"
"""Of scrapes and rules, in place of 15 s."""
HOST: Final = "127.0.0.1"

Configuration = dict[str, Any]


def example(*, with_edge: bool = False) -> Configuration:
    """What the shipped example says; `with_edge`: with its lines for TLS and a key."""
    text = (SHIPPED / "prometheus.yml").read_text()
    if with_edge:
        text = re.sub(
            r"^    # (scheme|tls_config|  ca_file|authorization|  credentials_file):",
            r"    \1:",
            text,
            flags=re.MULTILINE,
        )
    read: Configuration = yaml.safe_load(text)
    return read


class Receiver:
    """An HTTP server that Alertmanager sends to."""

    def __init__(self) -> None:
        received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

        class Request(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in message["alerts"]:
                    received.put(alert)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._received = received
        self._alerts: list[dict[str, Any]] = []
        self._server = http.server.ThreadingHTTPServer((HOST, 0), Request)
        self.url = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def forget(self) -> None:
        self._collect()
        self._alerts.clear()

    def until(self, status: str, limit_s: float, **labels: str) -> dict[str, Any]:
        """The alert with these labels that has arrived as `firing` or `resolved`."""

        def look() -> dict[str, Any] | None:
            self._collect()
            return next(
                (
                    alert
                    for alert in self._alerts
                    if alert["status"] == status and labels.items() <= alert["labels"].items()
                ),
                None,
            )

        return until(f"{labels} arrives as {status}", look, limit_s)

    def names(self) -> set[str]:
        """Of all alerts that have arrived since they were last forgotten."""
        self._collect()
        return {alert["labels"]["alertname"] for alert in self._alerts}

    def _collect(self) -> None:
        while not self._received.empty():
            self._alerts.append(self._received.get())


class Prometheus:
    """Its answers."""

    def __init__(self, port: int, logs: Sequence[Path]) -> None:
        self._url = f"http://{HOST}:{port}"
        self._logs = logs

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of its answer; None until it is ready."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
                    return None  # It is starting.
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        except urllib.error.URLError:
            return None

    def ask(self, query: str) -> list[float] | None:
        """The values that the query finds; None until it is ready."""
        data = self.get("query", query=query)
        return None if data is None else [float(sample["value"][1]) for sample in data["result"]]

    def until_scraped(self, targets: int) -> None:
        until(f"{targets} frontends are scraped", lambda: self.ask('sum(up{job="flux"})') == [targets])

    def logs(self) -> str:
        """For the report of a failed test."""
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self._logs)


@contextmanager
def prometheus(
    folder: Path, targets: Sequence[str], configuration: Configuration, alertmanager_port: int | None = None
) -> Iterator[Prometheus]:
    """One that scrapes these targets as the configuration says."""
    configuration["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    configuration["rule_files"] = [str(RULES)]
    configuration["alerting"]["alertmanagers"] = (
        [{"static_configs": [{"targets": [f"{HOST}:{alertmanager_port}"]}]}] if alertmanager_port else []
    )
    (scrape,) = configuration["scrape_configs"]
    scrape["static_configs"] = [{"targets": list(targets)}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    (port,) = free_ports(1)
    log = folder / "prometheus.log"
    options = {
        "config.file": file,
        "storage.tsdb.path": folder / "prometheus",
        "web.listen-address": f"{HOST}:{port}",
        "log.level": "warn",
    }
    with _running("prometheus", options, log):
        yield Prometheus(port, [log])


@contextmanager
def alertmanager(folder: Path, receiver: Receiver) -> Iterator[int]:
    """One that tells the receiver at once; its port."""
    file = folder / "alertmanager.yml"
    told = {"name": "somebody", "webhook_configs": [{"url": receiver.url, "send_resolved": True}]}
    route = {
        "receiver": "somebody",
        "group_by": ["..."],
        "group_wait": "0s",
        "group_interval": "1s",
        "repeat_interval": "1h",
    }
    file.write_text(yaml.safe_dump({"route": route, "receivers": [told]}))
    (port,) = free_ports(1)
    options = {
        "config.file": file,
        "storage.path": folder / "alertmanager",
        "web.listen-address": f"{HOST}:{port}",
        "cluster.listen-address": "",
        "log.level": "warn",
    }
    with _running("prometheus-alertmanager", options, folder / "alertmanager.log"):
        yield port


@contextmanager
def _running(program: str, options: Mapping[str, object], log: Path) -> Iterator[None]:
    """Until the end of the block; then it must end when it is asked to."""
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
