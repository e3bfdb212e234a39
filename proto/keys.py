"""`flux-keys`, or `python -m proto.keys`: makes the CURVE keys of components, and shows the public ones."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zmq

from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START
from proto.key_file import KeyPair, read_key_pair
from proto.operator_files import FileUnusable

SUFFIX: Final = ".key_secret"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

_FORMAT: Final = """\
# A CURVE key pair of flux-server: secret, for one component.
metadata
    name = "{name}"
curve
    public-key = "{public}"
    secret-key = "{secret}"
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "make":
            print(_made(arguments.name, arguments.folder))
        else:
            for file in arguments.files:
                print(f"{read_key_pair(file).public}  {file}")
    except FileUnusable as error:
        print(f"flux-keys: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except OSError as error:
        print(f"flux-keys: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


def make_key_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def write_key_pair(path: Path, name: str, keys: KeyPair) -> None:
    """To a new file that nobody else may read, at no moment. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_FORMAT.format(name=name, public=keys.public, secret=keys.secret))
            file.flush()
            os.fsync(descriptor)
    except OSError:
        path.unlink()
        raise


def _made(name: str, folder: Path) -> str:
    path = folder / f"{name}{SUFFIX}"
    keys = make_key_pair()
    write_key_pair(path, name, keys)
    return (
        f"{path}: secret; its component's curve_key_file\n"
        "for the brokers' authorized_keys_file, if it is a worker's, or a frontend's:\n"
        f"worker {name} {keys.public}\n"
        f"frontend {name} {keys.public}\n"
        "for the known_brokers_file of workers and frontends, if it is a broker's:\n"
        f"HOST {keys.public}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flux-keys",
        description="Keys for encryption between frontends, brokers and workers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make a key pair for one component")
    make.add_argument("name", type=_name, help="the component's name; the file is NAME.key_secret")
    make.add_argument("--folder", type=Path, default=Path(), help="where to write it; default: here")
    show = commands.add_parser("show", help="print the public keys of key files")
    show.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return parser


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise argparse.ArgumentTypeError("1 to 128 of the characters A-Z a-z 0-9 . _ -, no . _ - in front")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
