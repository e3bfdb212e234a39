"""The base for Kubernetes without a cluster: its containers and settings, keys laid as a kubelet does."""

from pathlib import Path

import grpc
import pytest
from containers.client import KEY, PICTURE, Call, draw
from containers.engine import HARDENED, Container, until
from containers.manifests import environment_of, lay, pod_of
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.keys import make_key_pair, write_key_pair

BROKERS = ("flux-broker-0", "flux-broker-1")
FAKE = {"FLUX_WORKER_ENGINE": "fake", "FLUX_WORKER_FAKE_STEP_S": "0.3"}


@pytest.fixture
def volumes(tmp_path) -> dict[str, Path]:
    """What the base mounts, by the name of its Secret or ConfigMap; made as docs/containers.md says."""
    made = tmp_path / "made"
    made.mkdir()
    public = {}
    for name in (*BROKERS, "frontend", "worker"):
        pair = make_key_pair()
        write_key_pair(made / f"{name}.key_secret", name, pair)
        public[name] = pair.public
    secret = {name: (made / f"{name}.key_secret").read_bytes() for name in public}
    authorized = f"frontend frontend {public['frontend']}\nworker worker {public['worker']}\n"
    known = "".join(f"{name}.flux-broker {public[name]}\n" for name in BROKERS)
    contents = {
        "flux-broker-keys": {f"{name}.key_secret": secret[name] for name in BROKERS},
        "flux-frontend-keys": {"frontend.key_secret": secret["frontend"]},
        "flux-worker-keys": {"worker.key_secret": secret["worker"]},
        "flux-clients": {"api_keys.toml": f'[clients.one]\nkeys = ["{KEY}"]\n'.encode()},
        "flux-public-keys": {"authorized_keys": authorized.encode(), "known_brokers": known.encode()},
    }
    modes = {"flux-public-keys": 0o444}
    return {name: lay(tmp_path / name, files, modes.get(name, 0o400)) for name, files in contents.items()}


@pytest.fixture
def run(start, volumes):
    """Starts the container of a Pod of the base."""

    def begin(kind: str, owner: str, pod_name: str, hosts: dict[str, str], **more: str) -> Container:
        pod = pod_of(kind, owner)
        (container,) = pod["containers"]
        sources = {
            each["name"]: each.get("secret", {}).get("secretName") or each.get("configMap", {}).get("name")
            for each in pod["volumes"]
        }
        options = [
            word
            for mount in container["volumeMounts"]
            if (source := sources[mount["name"]])
            for word in ("--volume", f"{volumes[source]}:{mount['mountPath']}:ro")
        ]
        for name, value in (environment_of(container, pod_name) | more).items():
            options += ["--env", f"{name}={value}"]
        for name, address in hosts.items():
            options += ["--add-host", f"{name}.flux-broker:{address}"]
        user = pod["securityContext"]
        options += ["--user", f"{user['runAsUser']}:{user['fsGroup']}", "--hostname", pod_name]
        return start(pod_name, container["image"].partition(":")[0].rpartition("/")[2], *HARDENED, *options)

    return begin


def test_it_draws_encrypted_and_does_without_its_first_broker(run):
    brokers = {name: run("StatefulSet", "flux-broker", name, {}) for name in BROKERS}
    for broker in brokers.values():
        broker.until_healthy()
    hosts = {name: broker.address for name, broker in brokers.items()}
    worker = run("Deployment", "flux-worker", "flux-worker-x", hosts, **FAKE)
    frontend = run("Deployment", "flux-frontend", "flux-frontend-x", hosts)
    for container in (worker, frontend):
        container.until_healthy()
        assert container.check_health("alive") == ""
    address = f"{frontend.address}:50051"
    assert is_serving(address)
    until("an image", lambda: draw(address) == PICTURE)

    call = Call(address, steps=20)
    until("the job runs", lambda: worker.logs.count("job started") >= 2)
    assert call.is_open
    brokers["flux-broker-0"].stop(15)
    assert brokers["flux-broker-0"].exit_status == 0
    assert call.end() == PICTURE

    for container in (worker, frontend):
        container.stop(45)
        assert container.exit_status == 0, container.logs[-2000:]


def is_serving(address: str) -> bool:
    """As a kubelet's gRPC probe asks."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
