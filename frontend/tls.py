"""The server's certificate for gRPC and HTTPS, and whose certificates clients must have."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from proto.operator_files import FileUnusable, OperatorFile, read_file


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """All in PEM."""

    certificate: Path
    """With the chain up to the authority, the server's own first."""
    private_key: Path
    """Without a passphrase."""
    client_ca: Path | None
    """Authorities of client certificates. None: clients need none."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.private_key, self.client_ca) if path)


class ServerTls:
    """What full handshakes get; connections that are there, and HTTPS clients that resume a session, go on
    with what they got. Python has no means against the latter in TLS 1.2: OpenSSL keeps sessions also where
    tickets are off."""

    def __init__(self, files: TlsFiles) -> None:
        """Nothing is read before `load`."""
        self._files = files
        self._contents: tuple[bytes, ...] = ()
        self._for_grpc: grpc.ServerCertificateConfiguration
        self._for_https: ssl.SSLContext
        self.https = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        """Asks clients for no certificate: scrapers and probes of a cluster seldom have one."""
        # It has no pair of its own: beside a new one of another type OpenSSL would keep the old one. It
        # asks for the latest at every handshake, also where the client names no server.
        self.https.sni_callback = self._take_latest

    def load(self) -> bool:
        """Read the files; true if they hold something new. Raises `FileUnusable`; then all is as it was."""
        certificate, private_key = read_file(self._files.certificate), read_file(self._files.private_key)
        private_key.require_secrecy("holds a private key")
        client_ca = read_file(self._files.client_ca) if self._files.client_ca else None
        for each in (certificate, client_ca):
            if each is not None:
                _require_certificates(each)
        for_https = self._read_pair()
        configuration = grpc.ssl_server_certificate_configuration(
            [(private_key.content, certificate.content)], client_ca.content if client_ca else None
        )
        contents = tuple(each.content for each in (certificate, private_key, client_ca) if each is not None)
        is_change = contents != self._contents
        self._for_grpc, self._for_https, self._contents = configuration, for_https, contents
        return is_change

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC port, which asks for the latest at every new connection, in a thread of gRPC's."""
        return grpc.dynamic_ssl_server_credentials(
            self._for_grpc,
            lambda: self._for_grpc,
            require_client_authentication=self._files.client_ca is not None,
        )

    def _take_latest(self, connection: ssl.SSLObject, _server_name: str, _context: ssl.SSLContext) -> None:
        connection.context = self._for_https

    def _read_pair(self) -> ssl.SSLContext:
        """Raises `FileUnusable`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, private_key = self._files.certificate, self._files.private_key
        try:
            context.load_cert_chain(certificate, private_key, password=_refuse_passphrase)
        except _HasPassphrase:
            raise FileUnusable(f"{private_key}: needs a passphrase; expected is a key without one") from None
        except (ssl.SSLError, OSError) as error:
            if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
                raise FileUnusable(
                    f"{private_key}: is not the key of the certificate {certificate}"
                ) from None
            raise FileUnusable(f"{private_key}: is no private key in PEM") from None
        return context


class _HasPassphrase(Exception):
    pass


def _refuse_passphrase() -> str:
    raise _HasPassphrase


def _require_certificates(file: OperatorFile) -> None:
    text = file.content.decode("ascii", errors="ignore")  # Around the certificates there may be anything.
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise FileUnusable(f"{file.path}: holds no certificate in PEM") from None
