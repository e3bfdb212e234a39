"""What the manifests say, and how a kubelet would carry it out."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from containers.engine import LIMIT_S

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
GROUP: Final = 10001
"""As `fsGroup` says."""


def rendered(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / overlay)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def pod_of(kind: str, name: str) -> dict[str, Any]:
    """The Pod that the base makes for this object."""
    (found,) = (each for each in rendered("base") if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found["spec"]["template"]["spec"]


def environment_of(container: Mapping[str, Any], pod_name: str) -> dict[str, str]:
    """Its variables, with others in them filled in as they come."""
    values: dict[str, str] = {}
    for variable in container["env"]:
        if "value" in variable:
            value = variable["value"]
            for name, earlier in values.items():
                value = value.replace(f"$({name})", earlier)
        else:
            assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}, variable
            value = pod_name
        values[variable["name"]] = value
    return values


def lay(folder: Path, files: Mapping[str, bytes], mode: int) -> Path:
    """As a kubelet does: each name leads through ..data to a folder that is exchanged as a whole.

    The files are root's; with a `fsGroup` its group may read them.
    """
    hidden = folder / "..2026_11_26_10_00_00.1"
    hidden.mkdir(parents=True)
    for name, content in files.items():
        (hidden / name).write_bytes(content)
        os.chown(hidden / name, 0, GROUP)
        (hidden / name).chmod(mode | 0o040)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(hidden.name)
    folder.chmod(0o755)
    return folder
