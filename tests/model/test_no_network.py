"""A worker's engine is offline: it looks up no name and opens no connection, whatever the folder says."""

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gpu_worker.engines.flux import FluxEngine


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have left this process."""
    seen: list[str] = []

    def refuse(name: str) -> Any:
        def refused(*arguments: object, **_named: object) -> NoReturn:
            seen.append(f"{name}{arguments[-2:]}")
            raise OSError(f"{name} in a worker")

        return refused

    class Refusing(socket.socket):
        connect = refuse("connect")
        connect_ex = refuse("connect_ex")
        sendto = refuse("sendto")

    monkeypatch.setattr(socket, "socket", Refusing)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(name))
    return seen


def test_the_guard_sees_connections_and_lookups(attempts: list[str]) -> None:
    with pytest.raises(OSError, match="in a worker"):
        socket.getaddrinfo("localhost", 80)
    with socket.socket() as connection, pytest.raises(OSError, match="in a worker"):
        connection.connect(("127.0.0.1", 9))
    assert len(attempts) == 2


def test_loading_and_drawing_stay_offline(embedded_folder: Path, attempts: list[str]) -> None:
    engine = FluxEngine(embedded_folder, device="cpu", threads=1)
    engine.load(lambda _what, _percent: None)
    engine.warm_up()
    assert attempts == []
