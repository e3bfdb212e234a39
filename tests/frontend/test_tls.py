"""TLS at the ports: certificates, those of clients too, and their change while calls go on."""

import ssl
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from trustme import KeyType

import image_gen_pb2
import image_gen_pb2_grpc
from frontend.tls import ServerTls, TlsFiles
from proto.operator_files import FileUnusable

HOST = "127.0.0.1"
NAME = "localhost"
"""TLS tells a server by which name it is meant, but no address."""
OTHER_TYPE = [(KeyType.ECDSA, KeyType.RSA), (KeyType.RSA, KeyType.ECDSA)]
KEY = (("api-key", "key-of-alice"),)
NO_CONNECTION = grpc.StatusCode.UNAVAILABLE


class Authority:
    """One that issues a certificate for the frontend, and one for a client."""

    def __init__(self):
        self._ca = trustme.CA()
        self.pem = self._ca.cert_pem.bytes()

    def issue(self, *names, key_type=KeyType.ECDSA):
        issued = self._ca.issue_cert(*(names or (HOST, NAME)), key_type=key_type)
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return chain, issued.private_key_pem.bytes()


@pytest.fixture(scope="module")
def authorities():
    return Authority(), Authority(), Authority()


@pytest.fixture(scope="module")
def first(authorities):
    return authorities[0]


@pytest.fixture(scope="module")
def second(authorities):
    return authorities[1]


@pytest.fixture(scope="module")
def of_clients(authorities):
    return authorities[2]


class Files:
    """The operator's."""

    def __init__(self, folder):
        self.certificate, self.private_key = folder / "server.pem", folder / "server.key"
        self.client_ca = folder / "clients.pem"
        self.settings = {
            "tls_certificate_file": self.certificate,
            "tls_private_key_file": self.private_key,
        }

    def write(self, certificate, private_key):
        self.certificate.write_bytes(certificate)
        self.private_key.write_bytes(private_key)
        self.private_key.chmod(0o600)

    def require_clients_of(self, authority):
        self.client_ca.write_bytes(authority.pem)
        self.settings["tls_client_ca_file"] = self.client_ca


@pytest.fixture
def files(tmp_path, first):
    found = Files(tmp_path)
    found.write(*first.issue())
    return found


@asynccontextmanager
async def connected(port, authority, issued=None):
    """`issued`: a client's certificate and key."""
    chain, private_key = issued or (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, private_key, chain)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials, options=options) as channel:
        yield channel


async def ping(port, authority, issued=None, limit_s=10.0):
    """The answer, or why there is none."""
    async with connected(port, authority, issued) as channel:
        stub = image_gen_pb2_grpc.ImageGenStub(channel)
        try:
            answer = await stub.Ping(image_gen_pb2.PingRequest(), metadata=KEY, timeout=limit_s)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return answer.message


# --- gRPC ---------------------------------------------------------------------------------------


async def test_calls_are_encrypted_and_the_frontend_still_finds_itself(start_frontend, files, first, second):
    async with start_frontend(**files.settings) as frontend:
        assert await ping(frontend.grpc_port, first) == "Pong"
        assert await ping(frontend.grpc_port, second) is NO_CONNECTION
        with pytest.raises(grpc.aio.AioRpcError):
            await frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=KEY)
        assert (await frontend.get("/metrics"))[1]["grpc_alive"] is True
        async with connected(frontend.grpc_port, first) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert (await check(health_pb2.HealthCheckRequest())).status == 1


async def test_an_encrypted_call_needs_its_key_all_the_same(start_frontend, files, first):
    async with start_frontend(**files.settings) as frontend, connected(frontend.grpc_port, first) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await image_gen_pb2_grpc.ImageGenStub(channel).Ping(image_gen_pb2.PingRequest())
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_clients_need_a_certificate_where_an_authority_is_named(
    start_frontend, files, first, second, of_clients
):
    files.require_clients_of(of_clients)
    async with start_frontend(**files.settings) as frontend:
        port = frontend.grpc_port
        assert await ping(port, first, of_clients.issue("client.example")) == "Pong"
        assert await ping(port, first) is NO_CONNECTION
        assert await ping(port, first, second.issue("client.example")) is NO_CONNECTION
        assert (await frontend.get("/metrics"))[1]["grpc_alive"] is True


async def test_a_new_certificate_is_for_new_connections_and_drops_no_call(
    start_frontend, files, first, second
):
    async with (
        start_frontend(**files.settings) as frontend,
        connected(frontend.grpc_port, first) as channel,
    ):
        frontend.cluster.may_end.clear()
        stub = image_gen_pb2_grpc.ImageGenStub(channel)
        request = image_gen_pb2.GenerateRequest(
            prompt="a", height=64, width=64, num_inference_steps=1, guidance_scale=3.5
        )
        call = stub.Generate(request, metadata=KEY)
        await frontend.cluster.draw_begun.wait()
        files.write(*second.issue())
        assert await ping(frontend.grpc_port, first) == "Pong", "nothing was read again yet"
        await frontend.read_again()
        assert await ping(frontend.grpc_port, second) == "Pong"
        assert await ping(frontend.grpc_port, first) is NO_CONNECTION
        frontend.cluster.may_end.set()
        assert (await call).image_png
        assert (await stub.Ping(image_gen_pb2.PingRequest(), metadata=KEY)).message == "Pong"
        assert (await frontend.get("/metrics"))[1]["grpc_alive"] is True


@pytest.mark.parametrize(("before", "after"), OTHER_TYPE)
async def test_a_new_key_may_be_of_another_type(start_frontend, files, first, second, before, after):
    files.write(*first.issue(key_type=before))
    async with start_frontend(**files.settings) as frontend:
        assert await ping(frontend.grpc_port, first) == "Pong"
        files.write(*second.issue(key_type=after))
        await frontend.read_again()
        assert await ping(frontend.grpc_port, second) == "Pong"
        assert await ping(frontend.grpc_port, first) is NO_CONNECTION


async def test_the_authority_of_clients_changes_too(start_frontend, files, first, second, of_clients):
    files.require_clients_of(second)
    async with start_frontend(**files.settings) as frontend:
        mine = of_clients.issue("client.example")
        assert await ping(frontend.grpc_port, first, mine) is NO_CONNECTION
        files.require_clients_of(of_clients)
        await frontend.read_again()
        assert await ping(frontend.grpc_port, first, mine) == "Pong"


async def test_a_broken_certificate_changes_nothing_and_is_said(start_frontend, files, first, second):
    async with start_frontend(**files.settings) as frontend:
        files.private_key.write_bytes(second.issue()[1])
        with capture_logs() as lines:
            await frontend.read_again()
        assert [(line["event"], line["why"]) for line in lines] == [
            (
                "files not read again, what was there stays",
                f"{files.private_key}: is not the key of the certificate {files.certificate}",
            )
        ]
        assert await ping(frontend.grpc_port, first) == "Pong"


# --- HTTP ---------------------------------------------------------------------------------------


async def https_get(port, path, authority, *, name=HOST, version=ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.maximum_version = version
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://{HOST}:{port}{path}", ssl=context, server_hostname=name) as answer,
    ):
        return answer.status


async def test_http_speaks_tls_only_if_it_is_told_to(start_frontend, files, first):
    async with start_frontend(**files.settings) as frontend:
        assert (await frontend.get("/healthz"))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await https_get(frontend.http_port, "/healthz", first)


async def test_https_has_the_same_certificate_and_needs_none_of_clients(
    start_frontend, files, first, second, of_clients
):
    files.require_clients_of(of_clients)
    async with start_frontend(**files.settings, http_tls=True) as frontend:
        assert await https_get(frontend.http_port, "/metrics", first) == 200
        with pytest.raises(aiohttp.ClientError):
            await frontend.get("/healthz")
        files.write(*second.issue())
        await frontend.read_again()
        assert await https_get(frontend.http_port, "/metrics", second) == 200
        with pytest.raises(aiohttp.ClientError):
            await https_get(frontend.http_port, "/metrics", first)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [HOST, NAME])
@pytest.mark.parametrize(("before", "after"), OTHER_TYPE)
async def test_https_serves_a_new_key_of_another_type_alone(
    start_frontend, files, first, second, before, after, name, version
):
    files.write(*first.issue(key_type=before))
    async with start_frontend(**files.settings, http_tls=True) as frontend:
        assert await https_get(frontend.http_port, "/metrics", first, name=name, version=version) == 200
        files.write(*second.issue(key_type=after))
        await frontend.read_again()
        assert await https_get(frontend.http_port, "/metrics", second, name=name, version=version) == 200
        with pytest.raises(aiohttp.ClientError):
            await https_get(frontend.http_port, "/metrics", first, name=name, version=version)


async def test_https_goes_on_with_what_it_had_beside_a_broken_key(start_frontend, files, first, second):
    async with start_frontend(**files.settings, http_tls=True) as frontend:
        files.private_key.write_bytes(second.issue()[1])
        await frontend.read_again()
        assert await https_get(frontend.http_port, "/metrics", first) == 200


# --- Files that cannot be used ------------------------------------------------------------------


def load(files):
    client_ca = files.client_ca if files.client_ca.exists() else None
    ServerTls(
        TlsFiles(certificate=files.certificate, private_key=files.private_key, client_ca=client_ca)
    ).load()


def with_passphrase(private_key):
    key = serialization.load_pem_private_key(private_key, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hush"),
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("certificate", b"", "server.pem: holds no certificate in PEM"),
        ("certificate", b"\x30\x82\xff", "server.pem: holds no certificate in PEM"),
        ("private_key", b"", "server.key: is no private key in PEM"),
        ("private_key", b"-----BEGIN PRIVATE KEY-----\nhush\n", "server.key: is no private key in PEM"),
        ("client_ca", b"nothing", "clients.pem: holds no certificate in PEM"),
    ],
)
def test_a_file_that_holds_something_else_is_named(files, name, content, complaint):
    path = getattr(files, name)
    path.write_bytes(content)
    with pytest.raises(FileUnusable, match=complaint) as unusable:
        load(files)
    assert "hush" not in str(unusable.value)


def test_a_key_with_a_passphrase_asks_nobody_for_it(files):
    files.private_key.write_bytes(with_passphrase(files.private_key.read_bytes()))
    with pytest.raises(FileUnusable, match=r"server\.key: needs a passphrase; expected is a key without one"):
        load(files)


def test_a_private_key_is_not_for_everybody(files):
    files.private_key.chmod(0o644)
    with pytest.raises(FileUnusable, match=r"holds a private key, and everybody may read it \(mode 0644\)"):
        load(files)


@pytest.mark.parametrize("name", ["certificate", "private_key"])
def test_a_missing_file_is_named(files, name):
    path = getattr(files, name)
    path.unlink()
    with pytest.raises(FileUnusable, match=f"{path}: cannot be read: No such file or directory"):
        load(files)
