"""The launcher's settings: `FLUX_SERVER_…` in the environment, and the command line.

All other settings of the components pass through by their own environment variables.
"""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from proto.configuration import ComponentSettings, Settings


class LauncherSettings(ComponentSettings):
    """The whole service on this machine. API_KEYS sets the keys. All FLUX_BROKER_…, FLUX_WORKER_… and
    FLUX_FRONTEND_… variables reach their component, to which an unset option is left."""

    model_config = SettingsConfigDict(env_prefix="FLUX_SERVER_")

    workers: int = Field(
        1,
        ge=1,
        le=16,
        description="worker processes, each with a model of its own; all use the same device:"
        " the first GPU, or what FLUX_WORKER_DEVICE says",
    )
    engine: str | None = Field(None, description="what draws; as FLUX_WORKER_ENGINE")
    model_dir: str | None = Field(None, description="folder of a FLUX model; as FLUX_WORKER_MODEL_DIR")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port for gRPC; as FLUX_FRONTEND_GRPC_PORT"
    )
    http_port: int | None = Field(
        None, ge=0, le=65535, description="port for HTTP; as FLUX_FRONTEND_HTTP_PORT"
    )
    log_prompts: bool = Field(
        False, description="write prompts into the frontend's log; as FLUX_FRONTEND_LOG_PROMPTS"
    )
    stop_limit_s: float = Field(
        30.0, gt=0, le=3600, description="how long a component may take to finish before it is killed, s"
    )


class FrontendEnvironment(Settings):
    """Those of the frontend's own variables that the launcher must know to talk to it."""

    owns_prefix = False
    model_config = SettingsConfigDict(env_prefix="FLUX_FRONTEND_")

    grpc_host: str = Field("127.0.0.1", description="address for gRPC")
    grpc_port: int = Field(50051, ge=0, le=65535, description="port for gRPC; 0: any free one")
    http_host: str = Field("127.0.0.1", description="address for HTTP")
    http_port: int = Field(8000, ge=0, le=65535, description="port for HTTP; 0: any free one")
    http_tls: bool = Field(False, description="HTTPS on the HTTP port")
    tls_certificate_file: str = Field("", description="with it gRPC speaks TLS")
    api_keys: SecretStr | None = Field(
        None, validation_alias="api_keys", description="the keys that clients may use"
    )
