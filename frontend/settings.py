"""The frontend's settings: `FLUX_FRONTEND_…` in the environment, and the command line."""

import os
import platform
from typing import Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from frontend.edge_settings import EdgeSettings, GrpcHost, HttpHost
from frontend.validation import GUIDANCE_MAX, RequestLimits
from proto.endpoints import BrokerEndpoints
from proto.messages import MAX_LISTED, MAX_PROMPT_BYTES

DAY_S: Final = 86400.0


def _default_frontend_id() -> str:
    return f"{platform.node()[:100] or 'frontend'}-{os.getpid()}"


class FrontendSettings(EdgeSettings):
    """The gRPC and HTTP side of the image service. Settings are read once, at the start."""

    model_config = SettingsConfigDict(env_prefix="FLUX_FRONTEND_")

    broker_endpoints: BrokerEndpoints = Field(
        ("tcp://127.0.0.1:5560",),
        description="where brokers listen for frontends, separated by commas; the first one that answers"
        " gets the jobs",
    )
    frontend_id: str = Field(
        default_factory=_default_frontend_id,
        min_length=1,
        max_length=128,
        description="name of this frontend in logs; default: host name and process id",
    )
    grpc_host: GrpcHost = Field(
        "127.0.0.1",
        min_length=1,
        description="address for gRPC; one that other machines reach needs TLS",
    )
    grpc_port: int = Field(50051, ge=0, le=65535, description="port for gRPC; 0: any free one")
    http_host: HttpHost = Field(
        "127.0.0.1", min_length=1, description="address for /metrics, /healthz and /readyz"
    )
    http_port: int = Field(8000, ge=0, le=65535, description="port for HTTP; 0: any free one")
    max_job_s: float = Field(
        600.0,
        gt=0,
        le=DAY_S,
        description="longest time for one job, and that of a call without a deadline, s",
    )
    guidance_min: float = Field(
        1.0,
        ge=0,
        le=GUIDANCE_MAX,
        allow_inf_nan=False,
        description="lowest guidance_scale that is accepted",
    )
    max_prompt_bytes: int = Field(
        MAX_PROMPT_BYTES, ge=0, le=MAX_PROMPT_BYTES, description="longest prompt, bytes of UTF-8"
    )
    log_prompts: bool = Field(False, description="write prompts into the log")
    max_open_jobs: int = Field(1024, ge=1, le=MAX_LISTED, description="jobs that may be open at once")
    drain_s: float = Field(
        25.0, ge=0, le=3600, description="how long a stopping frontend waits for the jobs it has open, s"
    )
    keepalive_interval_s: float = Field(
        5.0, ge=1, le=3600, description="silence after which a client that waits for a job is probed, s"
    )
    keepalive_timeout_s: float = Field(
        10.0,
        ge=0.5,
        le=3600,
        description="how long a probed client may take before its calls are cancelled, s",
    )

    @property
    def request_limits(self) -> RequestLimits:
        return RequestLimits(guidance_min=self.guidance_min, max_prompt_bytes=self.max_prompt_bytes)
