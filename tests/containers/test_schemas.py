"""Manifests and compose files, by their schemas."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from containers.engine import LIMIT_S
from containers.manifests import FOLDER, rendered

OVERLAYS = ("base", "autoscaled", "tls")
UNKNOWN_TO_THE_SCHEMA = {"ScaledObject"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_content_with_the_schema(overlay, tmp_path):
    file = tmp_path / "rendered.yaml"
    known = [each for each in rendered(overlay) if each["kind"] not in UNKNOWN_TO_THE_SCHEMA]
    assert len(known) >= 12
    file.write_text(yaml.safe_dump_all(known))
    assert_valid(file)


@pytest.mark.parametrize("name", ["pod.yaml", "prefetch.yaml"])
def test_a_manifest_is_content_with_the_schema(name):
    assert_valid(FOLDER / name)


def assert_valid(file: Path) -> None:
    done = subprocess.run(
        ["kubernetes-validate", "--strict", str(file)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("WARN|ERROR", done.stdout + done.stderr)


def test_the_schema_finds_a_misspelt_field(tmp_path):
    file = tmp_path / "pod.yaml"
    file.write_text((FOLDER / "pod.yaml").read_text().replace("restartPolicy:", "restartPolitics:"))
    with pytest.raises(AssertionError):
        assert_valid(file)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.hosts.yaml"])
def test_a_compose_file_is_content_with_the_schema(name):
    file = FOLDER.parent / "docker" / name
    done = subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
