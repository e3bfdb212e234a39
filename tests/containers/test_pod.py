"""The single-host Pod, really run by podman: with the fake engine, at other ports of this host."""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from containers.client import KEY, PICTURE, Call, draw
from containers.engine import Container, field, until
from containers.manifests import FOLDER

PARTS = ("broker", "frontend", "worker")
SECRET = json.dumps({"API_KEYS": base64.b64encode(KEY.encode()).decode()})
"""As docs/containers.md has it made."""
FAKE = [
    {"name": "FLUX_WORKER_ENGINE", "value": "fake"},
    {"name": "FLUX_WORKER_FAKE_STEP_S", "value": "0.3"},
]
ADDRESS = "127.0.0.1:60051"
NAME = f"flux-pod-{os.getpid()}"


def adapted() -> dict[str, Any]:
    manifest = yaml.safe_load((FOLDER / "pod.yaml").read_text())
    manifest["metadata"]["name"] = NAME
    for container in manifest["spec"]["containers"]:
        if container["name"] == "worker":
            container["env"] += FAKE
        for port in container.get("ports", ()):
            port["hostPort"] += 10_000
    return manifest


@pytest.fixture
def pod(engine, image, tmp_path) -> Iterator[dict[str, Container]]:
    for target in PARTS:
        image(target)
    manifest, secret = tmp_path / "pod.yaml", tmp_path / "secret.json"
    manifest.write_text(yaml.safe_dump(adapted()))
    secret.write_text(SECRET)
    engine.done("podman", "secret", "rm", "flux-api-keys")
    engine.run("podman", "secret", "create", "flux-api-keys", str(secret))
    try:
        engine.run("podman", "play", "kube", str(manifest))
        yield {part: Container(engine, f"{NAME}-{part}") for part in PARTS}
    finally:
        for part in PARTS:
            print(engine.done("podman", "logs", f"{NAME}-{part}").stderr[-3000:])
        engine.done("podman", "pod", "rm", "--force", "--time", "0", NAME)
        engine.done("podman", "secret", "rm", "flux-api-keys")


def test_it_draws_and_may_do_nothing_else_and_drains(pod, engine):
    for container in pod.values():
        container.until_healthy()
        for status in container.processes().values():
            assert field(status, "Uid").split() == ["10001"] * 4
            assert field(status, "CapEff") == "0" * 16
        refused = container.run_inside("touch", "/opt/flux-server/x").stderr
        assert "Read-only file system" in refused
    assert draw(ADDRESS) == PICTURE

    call = Call(ADDRESS, steps=20)
    until("the job runs", lambda: pod["worker"].logs.count("job started") >= 2)
    assert call.is_open
    # All at once, as a kubelet does. `podman pod stop` (4.3) ends the network first.
    engine.run("podman", "stop", "--time", "60", *(container.name for container in pod.values()))
    assert call.end() == PICTURE
    assert [container.exit_status for container in pod.values()] == [0, 0, 0]
