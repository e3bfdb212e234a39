"""A CURVE key pair for each component, and the lists in which its peers find it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from proto.keys import make_key_pair, write_key_pair

ROLES: Final = ("frontend", "worker")


class Keys:
    """Made for hosts that are named for their component: `worker-1` is a worker's."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        folder.mkdir()
        self._folder = folder
        authorized, known = [], []
        for name, address in addresses.items():
            pair = make_key_pair()
            write_key_pair(self._secret_file(name), name, pair)
            role = name.partition("-")[0]
            if role == "broker":
                known.append(f"{address} {pair.public}\n")
            elif role in ROLES:
                authorized.append(f"{role} {name} {pair.public}\n")
        self._authorized_keys.write_text("".join(authorized))
        self._known_brokers.write_text("".join(known))

    def settings_of(self, name: str) -> dict[str, object]:
        lists: dict[str, object] = (
            {"authorized_keys_file": self._authorized_keys}
            if name.startswith("broker")
            else {"known_brokers_file": self._known_brokers}
        )
        return {"curve_key_file": self._secret_file(name), **lists}

    def _secret_file(self, name: str) -> Path:
        return self._folder / f"{name}.key_secret"

    @property
    def _authorized_keys(self) -> Path:
        return self._folder / "authorized_keys"

    @property
    def _known_brokers(self) -> Path:
        return self._folder / "known_brokers"
