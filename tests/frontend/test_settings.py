"""What the frontend can be told, and what it says to nonsense."""

import pytest

from frontend.settings import FrontendSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch):
    monkeypatch.setattr("os.environ", {})


def load(monkeypatch, *argv, **environment):
    for name, value in environment.items():
        monkeypatch.setitem(__import__("os").environ, name, value)
    return load_settings(FrontendSettings, argv, "frontend")


def test_keys_alone_are_enough(monkeypatch):
    settings = load(monkeypatch, API_KEYS="a, b")
    assert settings.keys == ("a", "b")
    assert (settings.grpc_host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 50051, 8000)
    assert (settings.max_job_s, settings.guidance_min, settings.max_prompt_bytes) == (600.0, 1.0, 8192)
    assert settings.broker_endpoints == ("tcp://127.0.0.1:5560",)
    assert settings.frontend_id


def test_the_command_line_wins_over_the_environment(monkeypatch):
    settings = load(
        monkeypatch,
        "--grpc-port",
        "6000",
        "--api-keys",
        "c",
        API_KEYS="a",
        FLUX_FRONTEND_GRPC_PORT="7000",
        FLUX_FRONTEND_HTTP_PORT="7001",
    )
    assert (settings.keys, settings.grpc_port, settings.http_port) == (("c",), 6000, 7001)


def test_keys_are_not_in_the_settings_text(monkeypatch):
    assert "hush" not in repr(load(monkeypatch, API_KEYS="hush"))


@pytest.mark.parametrize(
    ("argv", "environment", "complaint"),
    [
        ([], {}, "--api-keys (API_KEYS): missing"),
        ([], {"API_KEYS": ""}, "--api-keys (API_KEYS): (hidden): at least one key is needed"),
        ([], {"API_KEYS": "hush,"}, "--api-keys (API_KEYS): (hidden): entry 2 is empty"),
        ([], {"API_KEYS": "hush,hush"}, "entry 2 repeats entry 1"),
        (["--grpc-port", "70000"], {"API_KEYS": "a"}, "--grpc-port (FLUX_FRONTEND_GRPC_PORT): '70000'"),
        ([], {"API_KEYS": "a", "FLUX_FRONTEND_HTTP_PORT": "x"}, "--http-port (FLUX_FRONTEND_HTTP_PORT): 'x'"),
        (["--grpc-host", "a..b"], {"API_KEYS": "a"}, "'a..b': is neither an address nor a host's name"),
        (["--http-host", "h" * 64], {"API_KEYS": "a"}, "is neither an address nor a host's name"),
        (["--max-job-s", "0"], {"API_KEYS": "a"}, "--max-job-s (FLUX_FRONTEND_MAX_JOB_S): '0'"),
        (["--guidance-min", "nan"], {"API_KEYS": "a"}, "--guidance-min (FLUX_FRONTEND_GUIDANCE_MIN): 'nan'"),
        (
            ["--api-keys-file", ""],
            {},
            "--api-keys (API_KEYS): missing; expected: the keys that clients may use",
        ),
        (
            ["--grpc-host", "0.0.0.0"],
            {"API_KEYS": "a"},
            "--grpc-host (FLUX_FRONTEND_GRPC_HOST): '0.0.0.0': leaves",
        ),
        (
            ["--http-host", "::", "--http-needs-key"],
            {"API_KEYS": "a"},
            "--http-host (FLUX_FRONTEND_HTTP_HOST): '::'",
        ),
        (["--tls-certificate-file", "x"], {"API_KEYS": "a"}, "of no use without tls_private_key_file"),
        (["--tls-private-key-file", "x"], {"API_KEYS": "a"}, "of no use without tls_certificate_file"),
        (["--tls-client-ca-file", "x"], {"API_KEYS": "a"}, "tls_client_ca_file is of no use without tls_"),
        (["--http-tls"], {"API_KEYS": "a"}, "http_tls is of no use without tls_certificate_file"),
        (["--broker-endpoints", "tcp://10.0.0.1:1"], {"API_KEYS": "a"}, "leaves this host"),
        (["--max-prompt-bytes", "8193"], {"API_KEYS": "a"}, "8192"),
    ],
)
def test_nonsense_ends_the_process_with_one_clear_line(monkeypatch, capsys, argv, environment, complaint):
    with pytest.raises(SystemExit) as ended:
        load(monkeypatch, *argv, **environment)
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    said = capsys.readouterr().err
    assert complaint in said
    assert "hush" not in said


def test_help_names_every_setting_with_its_variable(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        load(monkeypatch, "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in FrontendSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "[API_KEYS]" in text
    assert "[FLUX_FRONTEND_GRPC_PORT]" in text


TLS = ("--tls-certificate-file", "server.pem", "--tls-private-key-file", "server.key")
INSECURE = "--insecure-allow-unencrypted-clients"


@pytest.mark.parametrize(
    "argv",
    [
        ("--grpc-host", "127.0.0.2"),
        ("--grpc-host", "::1"),
        ("--grpc-host", "localhost"),
        ("--grpc-host", "0.0.0.0", *TLS),
        ("--grpc-host", "0.0.0.0", INSECURE),
        ("--http-host", "0.0.0.0"),
        ("--http-host", "0.0.0.0", "--http-needs-key", "--http-tls", *TLS),
        ("--http-host", "0.0.0.0", "--http-needs-key", INSECURE),
        ("--http-host", "localhost", "--http-needs-key"),
    ],
)
def test_keys_cross_the_network_encrypted_or_by_an_explicit_setting(monkeypatch, argv):
    assert load(monkeypatch, *argv, API_KEYS="a")


def test_a_file_of_keys_is_enough(monkeypatch, tmp_path):
    settings = load(monkeypatch, FLUX_FRONTEND_API_KEYS_FILE=str(tmp_path / "keys.toml"))
    assert settings.api_keys_file == tmp_path / "keys.toml"
    assert settings.keys == ()
    assert settings.tls_files is None
