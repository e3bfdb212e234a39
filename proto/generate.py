"""Compile `image_gen.proto` into the modules that are committed beside it.

`python -m proto.generate` writes them; with `--check` it only ends with status 1 if one is stale.
They are compiled with `-I proto`, so that clients import them as `image_gen_pb2` and `image_gen_pb2_grpc`.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
CONTRACT: Final = FOLDER / "image_gen.proto"
GENERATED: Final = (
    "image_gen_pb2.py",
    "image_gen_pb2.pyi",
    "image_gen_pb2_grpc.py",
    "image_gen_pb2_grpc.pyi",
)
TOOLS: Final = {"grpc_tools": "grpcio-tools", "mypy_protobuf": "mypy-protobuf"}


class CannotGenerate(Exception):
    """The compiler is missing or refuses the contract; the text says why."""


def compile_contract(target: Path) -> None:
    """Write the generated modules into the folder `target`.

    Raises:
        CannotGenerate: a tool is not installed, or the compiler refuses the contract.
    """
    missing = [package for module, package in TOOLS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise CannotGenerate(f"not installed: {', '.join(missing)}; see requirements/")
    outputs = [f"--{kind}_out={target}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(FOLDER), *outputs, str(CONTRACT)]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.defpath])
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotGenerate(f"protoc: {done.stderr.strip()}")


def stale_files(fresh: Path) -> list[str]:
    """Names of the committed modules that differ from those in `fresh`."""
    return [name for name in GENERATED if _text(FOLDER / name) != _text(fresh / name)]


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m proto.generate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only tell whether the committed modules are fresh"
    )
    check_only = bool(parser.parse_args(argv).check)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        try:
            compile_contract(fresh)
        except CannotGenerate as error:
            print(f"proto.generate: {error}", file=sys.stderr)
            return 1
        stale = stale_files(fresh)
        for name in stale:
            if check_only:
                print(
                    f"proto.generate: proto/{name} is stale; run: python -m proto.generate", file=sys.stderr
                )
            else:
                (FOLDER / name).write_text((fresh / name).read_text(encoding="utf-8"), encoding="utf-8")
                print(f"proto/{name} written")
    return 1 if check_only and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
