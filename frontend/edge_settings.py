"""The frontend's settings that say who is let in, and how what they send is protected."""

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, model_validator

from frontend.api_keys import parse_api_keys
from frontend.tls import TlsFiles
from proto.network_settings import PeerSettings, require_together

UNENCRYPTED_CLIENTS: Final = "insecure_allow_unencrypted_clients"
"""The setting that lets keys cross the network in clear."""
_UNLESS: Final = f"or set {UNENCRYPTED_CLIENTS}"


def _usable_keys(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None:
        parse_api_keys(secret.get_secret_value())
    return secret


def _unset_if_empty(value: object) -> object:
    return None if value == "" else value


NamedFile = Annotated[Path | None, BeforeValidator(_unset_if_empty)]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Names other than localhost are not looked up: they can change."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class EdgeSettings(PeerSettings):
    """The addresses are fields of a subclass, and so are validated after what is here."""

    api_keys: Annotated[SecretStr | None, AfterValidator(_usable_keys)] = Field(
        None,
        validation_alias="api_keys",
        description="the keys that clients may use, separated by commas; better in the environment than on "
        "the command line, which other users of this machine can read",
    )
    api_keys_file: NamedFile = Field(
        None,
        description="file with API keys, TOML: a name, limits and keys for each client; read again when it"
        " changes",
    )
    tls_certificate_file: NamedFile = Field(
        None,
        description="the server's certificate with its chain, PEM; with it gRPC speaks TLS; read again when"
        " it changes",
    )
    tls_private_key_file: NamedFile = Field(None, description="the certificate's private key, PEM")
    tls_client_ca_file: NamedFile = Field(
        None,
        description="authorities, PEM: with it gRPC clients need a certificate from one of them, beside"
        " their key",
    )
    http_tls: bool = Field(False, description="HTTPS on the HTTP port too, with the same certificate")
    http_needs_key: bool = Field(
        False,
        description="/metrics asks for an API key, as 'Authorization: Bearer KEY' or 'api-key: KEY'; /healthz"
        " and /readyz do not",
    )
    insecure_allow_unencrypted_clients: bool = Field(
        False, description="let API keys, prompts and images cross the network in clear"
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """Those from the setting, not from the file."""
        return () if self.api_keys is None else parse_api_keys(self.api_keys.get_secret_value())

    @property
    def tls_files(self) -> TlsFiles | None:
        certificate, private_key = self.tls_certificate_file, self.tls_private_key_file
        if certificate is None or private_key is None:
            return None
        return TlsFiles(certificate=certificate, private_key=private_key, client_ca=self.tls_client_ca_file)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.api_keys is None and self.api_keys_file is None:
            raise ValueError(
                "--api-keys (API_KEYS): missing; expected: the keys that clients may use, separated by"
                " commas; or --api-keys-file (FLUX_FRONTEND_API_KEYS_FILE)"
            )
        require_together(
            tls_certificate_file=self.tls_certificate_file, tls_private_key_file=self.tls_private_key_file
        )
        for name in ("tls_client_ca_file", "http_tls"):
            if getattr(self, name) and self.tls_certificate_file is None:
                raise ValueError(f"{name} is of no use without tls_certificate_file")
        return self


def _resolvable(host: str) -> str:
    """What Python could not even ask a resolver about would end in its own words."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("is neither an address nor a host's name") from None
    return host


def _keys_travel_safely(host: str, info: ValidationInfo) -> str:
    is_encrypted = info.data.get("tls_certificate_file") or info.data.get(UNENCRYPTED_CLIENTS)
    if is_loopback(host) or is_encrypted:
        return host
    raise ValueError(
        "leaves this machine, and keys and images would not be encrypted: stay on 127.0.0.1, ::1 or"
        f" localhost, set tls_certificate_file and tls_private_key_file, {_UNLESS}"
    )


def _http_keys_travel_safely(host: str, info: ValidationInfo) -> str:
    has_keys, is_encrypted = info.data.get("http_needs_key"), info.data.get("http_tls")
    if not has_keys or is_encrypted or is_loopback(host) or info.data.get(UNENCRYPTED_CLIENTS):
        return host
    raise ValueError(
        "leaves this machine, and the keys that /metrics asks for would not be encrypted: stay on 127.0.0.1,"
        f" ::1 or localhost, set http_tls, {_UNLESS}"
    )


GrpcHost = Annotated[str, AfterValidator(_resolvable), AfterValidator(_keys_travel_safely)]
HttpHost = Annotated[str, AfterValidator(_resolvable), AfterValidator(_http_keys_travel_safely)]
