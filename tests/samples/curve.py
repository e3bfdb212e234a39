"""Key files for tests: a folder with a broker's, a worker's, a frontend's and a stranger's keys."""

from dataclasses import dataclass
from pathlib import Path

from proto.curve import CurveClient
from proto.key_file import KeyPair
from proto.keys import make_key_pair, write_key_pair


@dataclass(frozen=True)
class KeyFolder:
    folder: Path
    pairs: dict[str, KeyPair]

    @property
    def authorized_keys(self) -> Path:
        return self.folder / "authorized_keys"

    @property
    def known_brokers(self) -> Path:
        return self.folder / "known_brokers"

    def secret_file(self, name: str) -> Path:
        return self.folder / f"{name}.key_secret"

    def authorize(self, **roles: str) -> None:
        """The whole list: roles by name."""
        lines = [f"{role} {name} {self.pairs[name].public}\n" for name, role in roles.items()]
        self.authorized_keys.write_text("# who may connect\n\n" + "".join(lines))

    def know(self, broker: str, where: str = "*") -> None:
        self.known_brokers.write_text(f"{where} {self.pairs[broker].public}\n")

    def client(self, name: str, broker: str = "broker") -> CurveClient:
        return CurveClient(keys=self.pairs[name], broker_key=self.pairs[broker].public)

    def options(self, name: str, broker: str = "broker") -> dict[str, bytes]:
        """A raw peer's socket options."""
        pair = self.pairs[name]
        return {
            "curve_publickey": pair.public.encode(),
            "curve_secretkey": pair.secret.encode(),
            "curve_serverkey": self.pairs[broker].public.encode(),
        }


def key_folder(folder: Path) -> KeyFolder:
    """The broker knows `worker` and `frontend`; `*` is known to be `broker`."""
    names = ("broker", "other_broker", "worker", "frontend", "stranger")
    keys = KeyFolder(folder, {name: make_key_pair() for name in names})
    for name, pair in keys.pairs.items():
        write_key_pair(keys.secret_file(name), name, pair)
    keys.authorize(worker="worker", frontend="frontend")
    keys.know("broker")
    return keys
