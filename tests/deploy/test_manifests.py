"""Dockerfile, compose files and Kubernetes manifests: that they fit the programs which they start."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from samples.metric_queries import names_asked, problems

from broker.router import FAREWELL_S
from broker.settings import BrokerSettings
from deploy.settings import LauncherSettings
from frontend.server import FLUSH_S
from frontend.settings import FrontendSettings
from gpu_worker.dealer import GONE_LIMIT_S
from gpu_worker.prefetch_settings import PrefetchSettings
from gpu_worker.settings import WorkerSettings
from proto.configuration import Settings, environment_name
from proto.timing import Timing

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES, DOCKER = DEPLOY / "kubernetes", DEPLOY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
HEALTH_LIMIT_S = float(
    re.findall(r"^LIMIT_S = ([0-9.]+)$", (DOCKER / "health.py").read_text(), re.MULTILINE)[0]
)
SLACK_S = 5.0

SETTINGS: dict[str, tuple[type[Settings], ...]] = {
    "broker": (BrokerSettings,),
    "frontend": (FrontendSettings,),
    "worker": (WorkerSettings,),
    "prefetch": (PrefetchSettings,),
    "server": (LauncherSettings, BrokerSettings, FrontendSettings, WorkerSettings),
}
OTHERS = {
    "CREDENTIALS_DIRECTORY",
    "CUDA_CACHE_PATH",
    "HF_TOKEN",
    "HOME",
    "NOTIFY_SOCKET",
    "NVIDIA_DRIVER_CAPABILITIES",
    "PATH",
    "WATCHDOG_USEC",
}
"""Variables that are no settings."""
PORTS = {"broker": {5560, 5561}, "frontend": {50051, 8000}, "worker": set(), "prefetch": set()}
STOP_S = {
    "broker": FAREWELL_S,
    "frontend": FrontendSettings.model_fields["drain_s"].default + FLUSH_S,
    "worker": Timing().drain_s + GONE_LIMIT_S,
    "prefetch": 0.0,
}


def known_to(component: str) -> set[str]:
    return {
        environment_name(settings, name) for settings in SETTINGS[component] for name in settings.model_fields
    } | OTHERS


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


MANIFESTS = {
    f"{file.parent.name}/{file.name} {each['kind']} {each['metadata']['name']}": each
    for file in sorted(KUBERNETES.rglob("*.yaml"))
    for each in documents(file)
    if each["kind"] != "Kustomization"
}
PODS = {
    name: each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
    for name, each in MANIFESTS.items()
    if each["kind"] in {"Pod", "Deployment", "StatefulSet", "Job"}
}
WHOLE_PODS = {name: pod for name, pod in PODS.items() if not name.startswith("tls/")}
CONTAINERS = {f"{name} {each['name']}": each for name, pod in PODS.items() for each in pod["containers"]}
WHOLE_CONTAINERS = {name: each for name, each in CONTAINERS.items() if not name.startswith("tls/")}
COMPOSE = {
    name: yaml.safe_load((DOCKER / name).read_text()) for name in ("compose.yaml", "compose.hosts.yaml")
}
SERVICES = {
    f"{file} {name}": service for file, each in COMPOSE.items() for name, service in each["services"].items()
}


def of(name: str) -> str:
    """The component that a service of a compose file is."""
    return name.rsplit(maxsplit=1)[-1].partition("-")[0]


def kinds(kind: str) -> Iterator[dict[str, Any]]:
    return (each for each in MANIFESTS.values() if each["kind"] == kind)


def test_nothing_was_overlooked():
    assert (len(PODS), len(CONTAINERS), len(SERVICES)) == (6, 8, 10)


# --- Settings and ports ------------------------------------------------------------------------


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_every_setting_of_a_container_exists(container):
    named = {each["name"] for each in container.get("env", ())}
    assert named
    assert named <= known_to(container["name"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_of_a_service_exists(name):
    assert set(SERVICES[name]["environment"]) <= known_to(of(name))


@pytest.mark.parametrize("target", ["base", "broker", "frontend", "worker", "server"])
def test_every_setting_of_an_image_exists(target):
    stage = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    (text,) = (each for each in stage if each.splitlines()[0].endswith(f" AS {target}"))
    named = set(re.findall(r"(?:ENV |^    )([A-Z][A-Z_]+)=", text, re.MULTILINE))
    assert named
    assert named <= known_to("server" if target == "base" else target)


@pytest.mark.parametrize("container", WHOLE_CONTAINERS.values(), ids=WHOLE_CONTAINERS)
def test_a_container_opens_the_ports_of_its_program(container):
    ports = {each["containerPort"] for each in container.get("ports", ())}
    assert ports in (PORTS[container["name"]], set())


def test_a_network_lets_through_what_is_connected():
    """Each policy names the ports of its own program, and of brokers the one that is for it."""
    (services, deployments) = (
        {each["metadata"]["name"]: each for each in kinds(kind)} for kind in ("Service", "Deployment")
    )
    for component in ("broker", "frontend"):
        ports = {each["port"] for each in services[f"flux-{component}"]["spec"]["ports"]}
        assert ports == PORTS[component]
    policies = {each["metadata"]["name"]: each["spec"] for each in kinds("NetworkPolicy")}
    let_in = {
        name: {port["port"] for rule in policies[name].get("ingress", ()) for port in rule["ports"]}
        for name in ("flux-broker", "flux-frontend", "flux-worker")
    }
    assert let_in == {"flux-broker": {5560, 5561}, "flux-frontend": {50051, 8000}, "flux-worker": set()}
    assert deployments
    for component in ("frontend", "worker"):
        out = policies[f"flux-{component}"]["egress"]
        (to_brokers,) = (rule["ports"] for rule in out if "podSelector" in rule["to"][0])
        assert {each["port"] for each in to_brokers} == {
            urlsplit(endpoint).port for endpoint in broker_endpoints(component)
        }


def broker_endpoints(component: str) -> list[str]:
    (container,) = (each for name, each in CONTAINERS.items() if name == containers_name(component))
    (value,) = (each["value"] for each in container["env"] if each["name"].endswith("_BROKER_ENDPOINTS"))
    return value.split(",")


def containers_name(component: str) -> str:
    return f"base/{component}.yaml Deployment flux-{component} {component}"


@pytest.mark.parametrize("component", ["frontend", "worker"])
def test_peers_know_every_broker_by_its_name(component):
    (brokers,) = kinds("StatefulSet")
    name, service = brokers["metadata"]["name"], brokers["spec"]["serviceName"]
    expected = [f"{name}-{number}.{service}" for number in range(brokers["spec"]["replicas"])]
    assert [urlsplit(endpoint).hostname for endpoint in broker_endpoints(component)] == expected


def test_no_two_hosts_have_a_broker_or_worker_of_one_name():
    """Of two such workers each would end the other one, for ever."""
    text = (DOCKER / "compose.hosts.yaml").read_text()
    names = re.findall(r"^ +FLUX_(?:BROKER_BROKER|WORKER_WORKER)_ID: (.*)$", text, re.MULTILINE)
    assert len(set(names)) == len(names) == 3
    assert all("${FLUX_HOST}" in name or "${FLUX_HOST:?" in name for name in names)
    assert "${FLUX_HOST:?" in text, "it has no default"


def test_what_is_scaled_by_exists():
    (scaled,) = kinds("ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert "flux_broker_running_jobs" in names_asked(query)
    assert not list(problems(query))
    assert scaled["spec"]["scaleTargetRef"]["name"] in {
        each["metadata"]["name"] for each in kinds("Deployment")
    }


# --- Time to finish, health --------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE_PODS)
def test_a_pod_has_time_to_finish(name):
    pod = WHOLE_PODS[name]
    for container in pod["containers"]:
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed_s = before_s + STOP_S[container["name"]] + SLACK_S
        assert pod.get("terminationGracePeriodSeconds", 30) >= needed_s


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_time_to_finish(name):
    given = SERVICES[name].get("stop_grace_period", "10s")
    assert float(given.removesuffix("s")) >= STOP_S[of(name)] + SLACK_S


def test_a_broker_that_ends_with_all_others_stays_as_long_as_they():
    in_pod = CONTAINERS["kubernetes/pod.yaml Pod flux-server broker"]
    service = SERVICES["compose.yaml broker"]
    wanted_s = Timing().drain_s
    assert {"name": "FLUX_BROKER_DRAIN_S", "value": f"{wanted_s:g}"} in in_pod["env"]
    assert service["environment"]["FLUX_BROKER_DRAIN_S"] == f"{wanted_s:g}"
    assert service["stop_grace_period"] == SERVICES["compose.yaml frontend"]["stop_grace_period"]


@pytest.mark.parametrize("container", WHOLE_CONTAINERS.values(), ids=WHOLE_CONTAINERS)
def test_a_probe_waits_as_long_as_the_check(container):
    probes = [container[name] for name in ("readinessProbe", "livenessProbe") if name in container]
    assert probes or container["name"] == "prefetch"
    for probe in probes:
        if "exec" in probe:
            assert probe["exec"]["command"] in (["flux-health"], ["flux-health", "alive"])
            assert probe["timeoutSeconds"] > HEALTH_LIMIT_S
    if "livenessProbe" in container:
        assert container["livenessProbe"]["exec"]["command"] == ["flux-health", "alive"], (
            "not while it drains"
        )


def test_an_image_waits_as_long_as_its_check():
    timeouts = re.findall(
        r"^HEALTHCHECK .*--timeout=([0-9]+)s .*CMD \[\"flux-health\"\]$", DOCKERFILE, re.MULTILINE
    )
    assert len(timeouts) == 4
    assert all(float(timeout) > HEALTH_LIMIT_S for timeout in timeouts)


# --- What they may do --------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE_PODS)
def test_a_pod_may_do_nothing_beyond_its_task(name):
    pod = WHOLE_PODS[name]
    assert pod["enableServiceLinks"] is False, "FLUX_BROKER_PORT of a Service would look like a setting"
    assert pod["automountServiceAccountToken"] is False
    own = pod["securityContext"]
    assert (own["runAsNonRoot"], own["runAsUser"], own["seccompProfile"]) == (
        True,
        10001,
        {"type": "RuntimeDefault"},
    )
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name", "mountPath"} <= set(container["volumeMounts"][0])
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_nothing_beyond_its_task(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]


def test_only_whoever_encrypts_can_be_reached_from_other_hosts():
    for name, service in SERVICES.items():
        published = service.get("ports", ())
        if "FLUX_FRONTEND_INSECURE_ALLOW_UNENCRYPTED_CLIENTS" in service["environment"]:
            assert all(port.startswith("127.0.0.1:") for port in published), name
        assert not any("INSECURE_ALLOW_UNENCRYPTED_NETWORK" in key for key in service["environment"]), name
