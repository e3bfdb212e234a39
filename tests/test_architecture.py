"""Which of our modules may import what. The rules are in pyproject.toml; here they are run, and the
processes are looked at while they live."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from importlinter import cli

import proto

ROOT = Path(__file__).resolve().parent.parent
IMPORT_LIMIT_S = 60.0
TRACED = ("broker.__main__", "gpu_worker.process", "frontend.__main__")


def modules_after(statement: str) -> set[str]:
    """All that a fresh interpreter has imported after this."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_import_rules_hold(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("proto.messages", {"google.protobuf", "grpc", "msgpack", "zmq", "image_gen_pb2"}),
        ("broker.core", {"asyncio", "zmq", "structlog"}),
        ("gpu_worker.session", {"asyncio", "zmq", "structlog", "numpy"}),
        ("frontend.job_desk", {"asyncio", "zmq", "structlog", "grpc", "google.protobuf"}),
        ("broker.__main__", {"google.protobuf", "grpc", "torch", "numpy", "aiohttp", "prometheus_client"}),
        *((module, {"opentelemetry", "proto.spans", "requests"}) for module in TRACED),
        ("gpu_worker.commands", {"torch", "huggingface_hub", "zmq"}),
        (
            "gpu_worker.process",
            {"torch", "huggingface_hub", "diffusers", "transformers", "grpc", "aiohttp", "prometheus_client"},
        ),
        ("frontend.__main__", {"torch", "diffusers", "transformers", "numpy"}),
        ("deploy.__main__", {"torch", "numpy", "zmq", "grpc"}),
    ],
)
def test_a_process_imports_no_more_than_it_needs(module: str, unwanted: set[str]) -> None:
    imported = modules_after(f"import {module}") & unwanted
    assert not imported


def test_proto_is_ours() -> None:
    """`proto` is also the import name of proto-plus, which must not be installed beside us."""
    assert proto.__file__ is not None
    assert (Path(proto.__file__).parent / "PROTOCOL.md").is_file()
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    assert "proto-plus" not in installed


def test_the_generated_modules_exist_once() -> None:
    loaded = modules_after("import image_gen_pb2, image_gen_pb2_grpc")
    assert "proto" not in loaded
    files = {str(path) for path in metadata.files("flux-server") or []}
    assert {"image_gen_pb2.py", "image_gen_pb2_grpc.py"} <= files
    assert not {path for path in files if path.startswith("proto/image_gen_pb2")}
