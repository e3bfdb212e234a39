"""Every component starts, and the service answers, where each has only its own requirements installed."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from installed.component_envs import REQUIREMENTS, ComponentEnv, build_wheel

KEY = "key-of-the-test"
LIMIT_S = 60.0
CALLER = f"""
import sys, grpc, image_gen_pb2, image_gen_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
metadata, limit_s = [("api-key", "{KEY}")], {LIMIT_S}
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = image_gen_pb2_grpc.ImageGenStub(channel)
    print(stub.Ping(image_gen_pb2.PingRequest(), metadata=metadata, timeout=limit_s).message)
    service = health_pb2.HealthCheckRequest(service="imagegen.ImageGen")
    for answer in health_pb2_grpc.HealthStub(channel).Watch(service, timeout=limit_s):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            break
    wanted = image_gen_pb2.GenerateRequest(
        prompt="a fox", height=64, width=64, num_inference_steps=2, guidance_scale=3.5
    )
    print(stub.Generate(wanted, metadata=metadata, timeout=limit_s).image_png[1:4].decode())
"""


@pytest.fixture(scope="session")
def envs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ComponentEnv]]:
    folder = tmp_path_factory.mktemp("components")
    wheel = build_wheel(folder / "wheel")
    made = {component: ComponentEnv(component, folder / component) for component in REQUIREMENTS}
    for env in made.values():
        env.make(wheel)
    yield made
    shutil.rmtree(folder)  # pytest would keep a gigabyte for each of the last runs.


@contextmanager
def running(env: ComponentEnv, folder: Path, **settings: object) -> Iterator["subprocess.Popen[str]"]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    process = subprocess.Popen(
        [env.python, "-I", "-m", env.component, "--log-format=json", *options],
        cwd=folder,
        env={"API_KEYS": KEY, "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def until_event(process: "subprocess.Popen[str]", event: str) -> dict[str, Any]:
    """The log line of this event; what comes before it is in the message if there is none."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        entry: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == event:
            return entry
    pytest.fail(f"it ended without {event!r}:\n{''.join(said)}")


@pytest.mark.parametrize("component", REQUIREMENTS)
def test_it_explains_itself(envs: dict[str, ComponentEnv], component: str, tmp_path: Path) -> None:
    command = [envs[component].python, "-I", "-m", component, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("component", "unwanted"),
    [
        ("broker", {"grpcio", "protobuf", "aiohttp", "torch", "numpy", "prometheus-client"}),
        ("frontend", {"torch", "numpy", "diffusers"}),
        ("gpu_worker", {"grpcio", "protobuf", "aiohttp", "hqq", "prometheus-client"}),
    ],
)
def test_it_brings_nothing_of_the_others(
    envs: dict[str, ComponentEnv], component: str, unwanted: set[str]
) -> None:
    assert not unwanted & {name.lower().replace("_", "-") for name in envs[component].sizes_bytes()}


def test_the_service_draws(envs: dict[str, ComponentEnv], tmp_path: Path) -> None:
    frontends, workers = (f"ipc://{tmp_path}/{name}" for name in ("frontends", "workers"))
    with ExitStack() as stack:
        stack.enter_context(
            running(envs["broker"], tmp_path, frontends_endpoint=frontends, workers_endpoint=workers)
        )
        stack.enter_context(
            running(envs["gpu_worker"], tmp_path, broker_endpoints=workers, engine="fake", fake_step_s=0)
        )
        frontend = stack.enter_context(
            running(envs["frontend"], tmp_path, broker_endpoints=frontends, grpc_port=0, http_port=0)
        )
        address = until_event(frontend, "serving")["grpc"]
        command = [envs["frontend"].python, "-I", "-c", CALLER, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert (done.returncode, done.stdout.split()) == (0, ["Pong", "PNG"]), done.stderr
