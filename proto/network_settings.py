"""The settings of those components that talk to each other over ZeroMQ."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from proto.configuration import ComponentSettings


class NetworkSettings(ComponentSettings):
    """Endpoints are fields of subclasses, and so are validated after what is here."""

    curve_key_file: Path | None = Field(
        None,
        description="this component's own key pair, made by flux-keys; all its ZeroMQ connections are"
        " encrypted then",
    )
    insecure_allow_unencrypted_network: bool = Field(
        False,
        description="let prompts, images and commands cross the network unencrypted, to and from whoever"
        " reaches the ports",
    )


class PeerSettings(NetworkSettings):
    """Of workers and frontends, which connect to brokers."""

    known_brokers_file: Path | None = Field(
        None,
        description="public keys of the brokers: lines HOST PUBLIC_KEY, HOST:PORT PUBLIC_KEY or * PUBLIC_KEY",
    )

    @model_validator(mode="after")
    def _check_key_files(self) -> Self:
        require_together(curve_key_file=self.curve_key_file, known_brokers_file=self.known_brokers_file)
        return self


def require_together(**files: Path | None) -> None:
    """Raises ValueError if one setting is there and another is missing."""
    given = [name for name, path in files.items() if path is not None]
    missing = [name for name, path in files.items() if path is None]
    if given and missing:
        raise ValueError(f"{given[0]} is of no use without {missing[0]}")
