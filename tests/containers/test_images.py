"""What is in the images, and what is not."""

import os
import subprocess
from pathlib import Path

import pytest
from containers.engine import HARDENED, LIMIT_S
from containers.images import without_model

SOURCE = Path(__file__).resolve().parents[2]
DOCKERFILE = SOURCE / "deploy" / "docker" / "Dockerfile"
PROGRAMS = {"broker": "broker", "frontend": "frontend", "worker": "gpu_worker", "server": "deploy"}
MEGABYTES_MAX = {"broker": 60.0, "frontend": 120.0}
"""On top of the base image, with compiled modules."""
ABSENT = {
    "broker": ("torch", "numpy", "grpc", "aiohttp", "diffusers", "opentelemetry", "pip"),
    "frontend": ("torch", "numpy", "diffusers", "opentelemetry", "pip"),
    "worker": ("grpc", "aiohttp", "hqq", "opentelemetry", "pip"),
    "server": ("hqq", "opentelemetry", "pip"),
}
each = pytest.mark.parametrize("target", PROGRAMS)


def test_hadolint_has_nothing_to_say():
    done = subprocess.run(
        ["hadolint", str(DOCKERFILE)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@each
def test_it_has_its_program_and_nobody_elses_libraries(target, engine, image):
    python = ("/opt/flux-server/bin/python", "-I")
    done = engine.once(image(target), *python, "-m", PROGRAMS[target], "--help")
    assert done.returncode == 0, done.stderr
    assert "--log-level" in done.stdout
    look = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    done = engine.once(image(target), *python, "-c", look, *ABSENT[target])
    assert done.stdout.strip() == "[]", done.stderr


def test_a_worker_has_the_libraries_of_the_model(engine, image):
    worker = image("worker", full=True)
    done = engine.once(worker, "/opt/flux-server/bin/python", "-c", "import torch, diffusers, transformers")
    assert done.returncode == 0, done.stderr
    done = engine.done("podman", "run", "--rm", "--network", "none", worker, "prefetch", "--help")
    assert "HF_TOKEN" in done.stdout, done.stderr


@pytest.mark.parametrize("target", MEGABYTES_MAX)
def test_it_is_small(target, engine, image):
    added_mb = engine.size_mb(image(target)) - engine.size_mb("python:3.11-slim-bookworm")
    assert added_mb < MEGABYTES_MAX[target]


@each
def test_it_is_of_a_user_without_rights_and_says_what_it_is(target, engine, image):
    form = '{{.Config.User}} {{index .Config.Labels "org.opencontainers.image.title"}}'
    told = engine.run("podman", "image", "inspect", "--format", form, image(target))
    assert told.startswith("10001:10001 flux-server")


def test_a_bad_setting_ends_it_with_one_line(engine, image):
    done = engine.done(
        *("podman", "run", "--rm", "--network", "none", "--env", "FLUX_FRONTEND_GRPC_HOST=0.0.0.0"),
        *("--env", "API_KEYS=client1", image("frontend")),
    )
    assert done.returncode == 78
    assert "keys and images would not be encrypted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_can_be_baked_in(engine, wheels, image, tmp_path):
    image("worker")  # whose layers this one shares
    context = without_model(SOURCE, tmp_path / "context")
    (context / "hub" / "FLUX.1-dev").mkdir(parents=True)
    (context / "hub" / "FLUX.1-dev" / "model_index.json").write_text("{}")
    baked = engine.build(context, "worker", wheels=wheels, arguments={"HUB": "hub"}, tag="baked")
    done = engine.once(baked, "cat", "hub/FLUX.1-dev/model_index.json")
    assert done.stdout == "{}", done.stderr


def test_tracing_can_be_built_in(engine, wheels, image, tmp_path):
    """The only broker that starts with `--tracing`."""
    context = without_model(SOURCE, tmp_path / "context")
    traced = engine.build(context, "broker", wheels=wheels, arguments={"TRACING": "1"}, tag="traced")
    name = f"flux-{os.getpid()}-traced"
    settings = ["FLUX_BROKER_TRACING=1"]
    settings += [f"FLUX_BROKER_{peers}_ENDPOINT=ipc:///tmp/{peers}" for peers in ("FRONTENDS", "WORKERS")]
    given = (word for setting in settings for word in ("--env", setting))
    container = engine.start(name, traced, *HARDENED, "--network", "none", *given)
    try:
        container.until_healthy()
    finally:
        container.remove()

    done = engine.done(
        *("podman", "run", "--rm", "--network", "none", "--env", "FLUX_BROKER_TRACING=1", image("broker"))
    )
    assert done.returncode == 78
    assert "requirements/tracing.txt" in done.stderr
