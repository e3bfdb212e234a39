"""Where components may listen and connect, and what is said of the rest."""

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from proto.configuration import load_settings
from proto.endpoints import BROKERS_MAX, IPC_PATH_MAX_BYTES, BrokerEndpoints, ListenEndpoint
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.network_settings import NetworkSettings

ALLOW = "--insecure-allow-unencrypted-network"
ON_THIS_HOST = [
    "tcp://127.0.0.1:1",
    "tcp://127.0.0.1:65535",
    "tcp://127.1.2.3:5560",
    "tcp://localhost:5560",
    "tcp://[::1]:5560",
    "ipc:///run/flux/broker.sock",
    "ipc:///run/with space",
    "ipc:///" + "p" * (IPC_PATH_MAX_BYTES - 1),
]
BEYOND = [
    "tcp://10.0.0.1:5560",
    "tcp://[fd00::1]:5560",
    "tcp://[fe80::1%eth0]:5560",
    "tcp://[::ffff:10.0.0.1]:1",
    "tcp://broker-1.example.org:5560",
    "tcp://localhost.evil.com:1",
    "tcp://127.0.0.1.evil.com:1",
    "tcp://eth0:1",
]
ANYWHERE = ["tcp://0.0.0.0:5560", "tcp://*:5560", "tcp://[::]:5560"]
NONE_AT_ALL = [
    "",
    "127.0.0.1:5560",
    "tcp://",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:99999999999999999999",
    "tcp://127.0.0.1:-1",
    "tcp://127.0.0.1:*",
    "tcp://127.0.0.1:\uff15\uff15\uff16\uff10",
    "tcp://127.0.0.1:5560 ",
    " tcp://127.0.0.1:5560",
    "tcp://127.0.0.1:5560\n",
    "tcp://\udc8d.b:1",
    "ipc:///run/\udc8d",
    "ipc:///run/a\nb",
    "tcp://127.0.0.1:5560;tcp://10.0.0.1:1",
    "tcp://10.0.0.1:1;127.0.0.1:5560",
    "tcp://127.0.0.1@evil.com:1",
    "tcp://evil.com:1/127.0.0.1:1",
    "tcp://::1:1",
    "tcp://[10.0.0.1]:1",
    "tcp://10.0.0.256:1",
    "tcp://10.1:1",
    "tcp://-host:1",
    "tcp://ho st:1",
    f"tcp://{'h' * 64}:1",
    "TCP://10.0.0.1:1",
    "udp://127.0.0.1:1",
    "ws://127.0.0.1:1",
    "pgm://127.0.0.1:1",
    "inproc://broker",
    "ipc://",
    "ipc://*",
    "ipc://@abstract",
    "ipc://relative/path",
    "ipc://../up",
    "ipc:///" + "p" * IPC_PATH_MAX_BYTES,
    "ipc:///" + "é" * 54,
]


class ExampleSettings(NetworkSettings):
    """An example."""

    model_config = SettingsConfigDict(env_prefix="FLUX_EXAMPLE_")

    listen: ListenEndpoint = Field("tcp://127.0.0.1:5560", description="where to listen")
    brokers: BrokerEndpoints = Field(("tcp://127.0.0.1:5560",), description="where to connect to")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    variables = {}
    monkeypatch.setattr("os.environ", variables)
    return variables


def load(*argv: str) -> ExampleSettings:
    return load_settings(ExampleSettings, argv, "example")


def complaint(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        load(*argv)
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    line, help_line = capsys.readouterr().err.splitlines()
    assert help_line == "example: for all settings: --help"
    return line


@pytest.mark.parametrize("endpoint", ON_THIS_HOST)
def test_what_stays_on_this_host_is_allowed(endpoint):
    settings = load("--listen", endpoint, "--brokers", endpoint)
    assert (settings.listen, settings.brokers) == (endpoint, (endpoint,))


@pytest.mark.parametrize("endpoint", [*BEYOND, *ANYWHERE])
def test_to_listen_beyond_this_host_must_be_allowed(capsys, endpoint):
    line = complaint(capsys, f"--listen={endpoint}")
    assert line.startswith(f"example: --listen (FLUX_EXAMPLE_LISTEN): {endpoint!r}: leaves this host")
    assert "insecure_allow_unencrypted_network" in line
    assert load(f"--listen={endpoint}", ALLOW).listen == endpoint


@pytest.mark.parametrize("endpoint", BEYOND)
def test_to_connect_beyond_this_host_must_be_allowed(capsys, environment, endpoint):
    both = f"tcp://127.0.0.1:1,{endpoint}"
    assert f"{endpoint!r}: leaves this host" in complaint(capsys, f"--brokers={both}")
    environment["FLUX_EXAMPLE_INSECURE_ALLOW_UNENCRYPTED_NETWORK"] = "true"
    assert load(f"--brokers={both}").brokers == ("tcp://127.0.0.1:1", endpoint)


@pytest.mark.parametrize("endpoint", ANYWHERE)
def test_a_broker_is_found_at_one_host(capsys, endpoint):
    assert "name the broker's host" in complaint(capsys, f"--brokers={endpoint}", ALLOW)


@pytest.mark.parametrize("allowed", [(), (ALLOW,)])
@pytest.mark.parametrize("endpoint", NONE_AT_ALL)
def test_what_is_no_endpoint_is_named(capsys, endpoint, allowed):
    line = complaint(capsys, f"--listen={endpoint}", *allowed)
    assert line.startswith("example: --listen (FLUX_EXAMPLE_LISTEN): ")
    assert "leaves this host" not in line


SEVERAL = ("tcp://127.0.0.1:5560", "tcp://[::1]:5560", "ipc:///run/flux/standby")


def test_brokers_are_separated_by_commas_and_their_order_is_kept(environment):
    environment["FLUX_EXAMPLE_BROKERS"] = ", ".join(SEVERAL)
    assert load().brokers == SEVERAL
    assert load("--brokers", ",".join(reversed(SEVERAL))).brokers == SEVERAL[::-1]
    assert load("--brokers", SEVERAL[0]).brokers == SEVERAL[:1]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("", "'': expected: tcp://"),
        (f"{SEVERAL[0]},", "'': expected: tcp://"),
        (f"{SEVERAL[0]};{SEVERAL[1]}", "expected: tcp://"),
        (f"{SEVERAL[0]},tcp://10.0.0.1:1", "'tcp://10.0.0.1:1': leaves this host"),
        (f"{SEVERAL[0]},{SEVERAL[2]},{SEVERAL[0]}", f"{SEVERAL[0]} is named twice"),
        (",".join(f"tcp://127.0.0.1:{port}" for port in range(1, BROKERS_MAX + 2)), "1 to 8 brokers, not 9"),
    ],
)
def test_a_list_of_brokers_that_cannot_be_used(capsys, environment, value, named):
    environment["FLUX_EXAMPLE_BROKERS"] = value
    line = complaint(capsys)
    assert line.startswith("example: --brokers (FLUX_EXAMPLE_BROKERS): ")
    assert named in line
