"""The broker's settings: `FLUX_BROKER_…` in the environment, and the command line."""

import platform
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from proto.endpoints import ListenEndpoint
from proto.network_settings import NetworkSettings, require_together


class BrokerSettings(NetworkSettings):
    """The broker: takes jobs from frontends and gives each to an idle worker, or refuses it at once."""

    model_config = SettingsConfigDict(env_prefix="FLUX_BROKER_")

    broker_id: str = Field(
        f"broker-{platform.node()[:100] or 'host'}",
        min_length=1,
        max_length=128,
        description="name of this broker in logs and metrics; each needs its own",
    )
    frontends_endpoint: ListenEndpoint = Field(
        "tcp://127.0.0.1:5560", description="where to listen for frontends"
    )
    workers_endpoint: ListenEndpoint = Field(
        "tcp://127.0.0.1:5561", description="where to listen for workers"
    )
    authorized_keys_file: Path | None = Field(
        None, description="who may connect: lines worker NAME PUBLIC_KEY or frontend NAME PUBLIC_KEY"
    )
    queue_limit: int = Field(
        0, ge=0, le=10_000, description="new jobs that may wait for an idle worker; 0: refuse at once"
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="how long a broker that is told to end stays for the jobs it has, s: for one that ends "
        "together with its peers; 0: they go on at another broker, or at this one when it is started again",
    )
    is_first: bool = Field(
        False,
        description="no broker of this service has run before, so that no peer can have anything to report: "
        "it serves at once; never for one that is started again",
    )

    @model_validator(mode="after")
    def _check_key_files(self) -> Self:
        require_together(curve_key_file=self.curve_key_file, authorized_keys_file=self.authorized_keys_file)
        return self
