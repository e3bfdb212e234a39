"""What images are built from where no registry of images is reached: a stand-in for the base, and wheels."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from containers.engine import BUILD_LIMIT_S, Engine

BASE: Final = "docker.io/library/python:3.11-slim-bookworm"
"""The name of the one that stands in for it: as the Dockerfile asks for it."""
LEAN: Final = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")]
MODEL_STACK: Final = frozenset(
    [
        "accelerate",
        "diffusers",
        "hf-xet",
        "huggingface-hub",
        "networkx",
        "regex",
        "safetensors",
        "sympy",
        "tokenizers",
        "transformers",
    ]
)
NOT_SOURCE: Final = shutil.ignore_patterns(
    ".git", ".tox", ".venv", "build", "dist", "hub", "tests", "docs", "training", "__pycache__", ".*_cache"
)
REQUIREMENTS: Final = ("torch", "deploy", "broker", "frontend", "gpu_worker", "tracing")


def make_base(engine: Engine, cache: Path) -> None:
    """A small Debian with Python, made the first time (a minute; needs a Debian mirror)."""
    if engine.done("podman", "image", "exists", BASE).returncode == 0:
        return
    archive = cache / "base.tar"
    if not archive.exists():
        unfinished = cache / "unfinished.tar"
        include = "--include=ca-certificates,python3-venv"
        _run("mmdebstrap", "--variant=minbase", include, *LEAN, "bookworm", str(unfinished))
        unfinished.rename(archive)
    engine.run("podman", "import", str(archive), BASE, limit_s=BUILD_LIMIT_S)


def collect_wheels(source: Path, cache: Path) -> Path:
    """Of all requirements, and what builds our own (a minute; needs the package index). The folder."""
    files = [source / "requirements" / f"{name}.txt" for name in REQUIREMENTS]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    folder = cache / f"wheels-{digest}"
    if not folder.exists():
        unfinished = cache / "unfinished-wheels"
        pip = (sys.executable, "-m", "pip", "wheel", "--no-input", "-q", "--wheel-dir", str(unfinished))
        _run(*pip, *(word for file in files for word in ("-r", str(file))))
        _run(*pip, "hatchling", "hatch-requirements-txt")
        unfinished.rename(folder)
    return folder


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def without_model(source: Path, folder: Path) -> Path:
    """A copy of what images are made of, whose workers have the fake engine alone, without torch."""
    shutil.copytree(source, folder, ignore=NOT_SOURCE)
    requirements = folder / "requirements"
    (requirements / "torch.txt").write_text("# left out\n")
    for name in ("gpu_worker.txt", "deploy.txt"):
        lines = (requirements / name).read_text().splitlines()
        kept = [line for line in lines if line.partition("==")[0] not in MODEL_STACK]
        assert len(kept) < len(lines) - len(MODEL_STACK) / 2
        (requirements / name).write_text("\n".join(kept) + "\n")
    return folder
