"""Which processes make up the service on one machine, and how they find each other."""

import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from deploy.ports import free_ports, reachable
from deploy.settings import FrontendEnvironment, LauncherSettings
from proto.configuration import ComponentSettings
from proto.endpoints import IPC_PATH_MAX_BYTES

_PREFIXES: Final = {"broker": "FLUX_BROKER_", "gpu_worker": "FLUX_WORKER_", "frontend": "FLUX_FRONTEND_"}
_SHARED_FIELDS: Final = frozenset(ComponentSettings.model_fields)
"""What the launcher is told for all components at once."""
SECRETS: Final = frozenset({"API_KEYS"})
"""Variables, in capitals, that a component gets by its own `environment` only. Their case does not matter."""
_GENERATED_KEY_BYTES: Final = 16
_RANDOM_PART: Final = "flux-12345678"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One process. `environment` is what it gets beside the launcher's own, which is without the secrets."""

    name: str
    package: str
    environment: Mapping[str, str]
    first_environment: Mapping[str, str] = field(default_factory=dict)
    """What it gets beside that when it is started for the first time."""

    @property
    def command(self) -> tuple[str, ...]:
        # -P: what lies in the folder where we happen to run must not take our packages' place.
        return sys.executable, "-P", "-m", self.package

    def started(self) -> "Component":
        """As it is to be started the next time."""
        return replace(self, first_environment={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    broker: Component
    workers: tuple[Component, ...]
    frontend: Component
    grpc_address: str
    is_grpc_encrypted: bool
    metrics_url: str
    http_port: int
    api_keys: tuple[str, ...]
    api_key_was_generated: bool

    @property
    def layers(self) -> tuple[tuple[Component, ...], ...]:
        """What the others depend on first."""
        return (self.broker,), self.workers, (self.frontend,)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder for the ZeroMQ sockets that only this user may enter; removed afterwards."""
    usual = tempfile.gettempdir()
    longest = f"{usual}/{_RANDOM_PART}/frontends"
    parent = usual if len(longest.encode()) <= IPC_PATH_MAX_BYTES else "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="flux-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def build_stack(settings: LauncherSettings, inherited: FrontendEnvironment, folder: Path) -> Stack:
    """Plan the processes; their sockets go into `folder`."""
    generated = inherited.api_keys is None
    keys = _generated_key() if inherited.api_keys is None else inherited.api_keys
    grpc_port, http_port = _with_free_ones(
        _port(settings.grpc_port, inherited.grpc_port), _port(settings.http_port, inherited.http_port)
    )
    for_frontends, for_workers = f"ipc://{folder}/frontends", f"ipc://{folder}/workers"
    broker = _component(
        "broker",
        "broker",
        settings,
        frontends_endpoint=for_frontends,
        workers_endpoint=for_workers,
        is_first="false",  # Whatever the launcher's environment says: it is for no restart.
    )
    # Its sockets are in a folder that is new: nobody can have been connected to another one there.
    broker = replace(broker, first_environment={"FLUX_BROKER_IS_FIRST": "true"})
    workers = tuple(
        _component(
            f"worker-{number}",
            "gpu_worker",
            settings,
            broker_endpoints=for_workers,
            worker_id=f"worker-{number}",
            engine=settings.engine,
            model_dir=settings.model_dir,
        )
        for number in range(1, settings.workers + 1)
    )
    frontend = _component(
        "frontend",
        "frontend",
        settings,
        broker_endpoints=for_frontends,
        grpc_port=str(grpc_port),
        http_port=str(http_port),
        log_prompts=str(settings.log_prompts) if "log_prompts" in settings.model_fields_set else None,
    )
    scheme = "https" if inherited.http_tls else "http"
    return Stack(
        broker=broker,
        workers=workers,
        frontend=_with_api_keys(frontend, keys),
        grpc_address=reachable(inherited.grpc_host, grpc_port),
        is_grpc_encrypted=bool(inherited.tls_certificate_file),
        metrics_url=f"{scheme}://{reachable(inherited.http_host, http_port)}/metrics",
        http_port=http_port,
        api_keys=tuple(key.strip() for key in keys.get_secret_value().split(",")),
        api_key_was_generated=generated,
    )


def _component(name: str, package: str, settings: LauncherSettings, **own: str | None) -> Component:
    """`own` names the component's settings; None leaves one as it is in the launcher's environment."""
    given = {field: str(getattr(settings, field)) for field in settings.model_fields_set & _SHARED_FIELDS}
    values = given | {field: value for field, value in own.items() if value is not None}
    prefix = _PREFIXES[package]
    environment = {f"{prefix}{field.upper()}": value for field, value in values.items()}
    return Component(name=name, package=package, environment=environment)


def _generated_key() -> SecretStr:
    return SecretStr(secrets.token_urlsafe(_GENERATED_KEY_BYTES))


def _with_api_keys(frontend: Component, keys: SecretStr) -> Component:
    environment = {**frontend.environment, "API_KEYS": keys.get_secret_value()}
    return Component(name=frontend.name, package=frontend.package, environment=environment)


def _port(chosen: int | None, inherited: int) -> int:
    return inherited if chosen is None else chosen


def _with_free_ones(*ports: int) -> Iterator[int]:
    """In place of each 0. All at once: what is drawn later may be the same one again."""
    free = iter(free_ports(ports.count(0)))
    return (port or next(free) for port in ports)
