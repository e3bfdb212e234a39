"""The broker's settings: `FLUX_BROKER_…` in the environment, and the command line."""

import platform

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from proto.endpoints import ListenEndpoint
from proto.network_settings import NetworkSettings


class BrokerSettings(NetworkSettings):
    """The broker: takes jobs from frontends and gives each to an idle worker, or refuses it at once."""

    model_config = SettingsConfigDict(env_prefix="FLUX_BROKER_")

    broker_id: str = Field(
        f"broker-{platform.node()[:100] or 'host'}",
        min_length=1,
        max_length=128,
        description="name of this broker in logs",
    )
    frontends_endpoint: ListenEndpoint = Field(
        "tcp://127.0.0.1:5560", description="where to listen for frontends"
    )
    workers_endpoint: ListenEndpoint = Field(
        "tcp://127.0.0.1:5561", description="where to listen for workers"
    )
    queue_limit: int = Field(
        0, ge=0, le=10_000, description="new jobs that may wait for an idle worker; 0: refuse at once"
    )
