"""A real Prometheus reads the pages of a real stack: in clear, and with TLS and a key as the example says."""

import json
import urllib.request

import pytest
import trustme
from monitoring.watchers import HOST, ROOT, example, prometheus, promtool
from processes.stack import KEYS, Component, Stack, until
from samples.metric_queries import SERIES, names_asked

from frontend.metric_catalog import CATALOG

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "flux-server.json").read_text())
VARIABLES = {"$job": "flux", "$__rate_interval": "1m"}
TEXT = {"Accept": "text/plain"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        running.start()
        running.client().draw()
        yield running


def test_promtool_finds_nothing_to_criticize_in_the_page(stack):
    request = urllib.request.Request(f"{stack.http}/metrics", headers=TEXT)
    with urllib.request.urlopen(request) as answer:
        page = answer.read().decode()
    ours = "\n".join(line for line in page.splitlines() if "flux_" in line) + "\n"
    assert len(ours.splitlines()) > len(CATALOG)
    checked = promtool("check", "metrics", text=ours)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def queries():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            yield query


def test_every_query_of_the_dashboard_is_answered(stack, tmp_path):
    address = stack.http.removeprefix("http://")
    with prometheus(tmp_path, [address], example()) as watching:
        watching.until_scraped(1)
        for query in queries():
            assert watching.ask(query) is not None
        asked = set().union(*map(names_asked, queries()))
        # There is no GPU here.
        expected = {name for name in asked & {*SERIES} if not name.startswith("flux_gpu_")}
        assert len(expected) > 20
        until("all metrics are there", lambda: all(watching.ask(name) for name in expected))


def test_it_scrapes_by_https_and_with_a_key_as_the_example_says(stack, tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    certificate, private_key = tmp_path / "frontend.pem", tmp_path / "frontend.key"
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(private_key)
    private_key.chmod(0o600)
    settings = {
        "log_format": "json",
        "broker_endpoints": stack.frontend.settings["broker_endpoints"],
        "grpc_port": 0,
        "http_port": 0,
        "http_tls": True,
        "http_needs_key": True,
        "tls_certificate_file": certificate,
        "tls_private_key_file": private_key,
    }
    frontend = Component("frontend-tls", "frontend", settings, tmp_path, KEYS)
    frontend.start()
    try:
        address = frontend.until_event("serving")["http"].removeprefix("https://")
        configuration = example(with_edge=True)
        (scrape,) = configuration["scrape_configs"]
        scrape["tls_config"]["ca_file"] = str(tmp_path / "ca.pem")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        scrape["authorization"]["credentials_file"] = str(tmp_path / "key")
        (tmp_path / "key").write_text(KEYS[0])
        with prometheus(tmp_path, [address], configuration) as watching:
            watching.until_scraped(1)
            assert watching.ask("flux_frontend_grpc_up") == [1.0]
    finally:
        frontend.kill()
