"""requirements/*.txt are what *.in were compiled to. Checked without a package index."""

import re
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).resolve().parent.parent / "requirements"
COMPILED_FROM = {
    "broker": ["proto", "broker"],
    "gpu_worker": ["proto", "gpu_worker"],
    "quantize": ["proto", "gpu_worker", "quantize"],
    "training": ["proto", "gpu_worker", "training"],
    "frontend": ["proto", "frontend"],
    "tracing": ["tracing"],
    "deploy": ["proto", "broker", "gpu_worker", "frontend", "deploy"],
    "test": ["test"],
    "lint": ["lint"],
    "types": ["types"],
    "fuzz": ["fuzz"],
    "tox": ["tox"],
    "containers": ["containers"],
}
COMMENT = re.compile(r"(^|\s)#.*$")
PIN = re.compile(r"(?P<package>[^=\s]+)==\S+\s+# via (?P<sources>.+)")
FILE = re.compile(r"-r requirements/(?P<name>\w+)\.in")


def lines(file: Path) -> list[str]:
    stripped = (COMMENT.sub("", line).strip() for line in file.read_text().splitlines())
    return [line for line in stripped if line]


@cache
def pins(name: str) -> dict[str, Version]:
    """The versions in one compiled file. A line that is no `name==version` is an error."""
    found = {}
    for line in lines(FOLDER / f"{name}.txt"):
        package, version = line.split("==")
        found[canonicalize_name(package)] = Version(version)
    return found


def wishes(name: str) -> list[Requirement]:
    return [Requirement(line) for line in lines(FOLDER / f"{name}.in")]


@cache
def sources(name: str) -> dict[str, list[str]]:
    """For each pin of one compiled file, who wants it."""
    matches = [
        PIN.fullmatch(line) for line in (FOLDER / f"{name}.txt").read_text().splitlines() if "==" in line
    ]
    return {canonicalize_name(match["package"]): match["sources"].split(", ") for match in matches if match}


def test_every_file_is_known() -> None:
    assert {file.stem for file in FOLDER.glob("*.in")} == set(COMPILED_FROM) | {"proto"}
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(COMPILED_FROM) | {"torch"}


@pytest.mark.parametrize("name", COMPILED_FROM)
def test_every_wish_is_pinned_and_met(name: str) -> None:
    for wish in (wish for source in COMPILED_FROM[name] for wish in wishes(source)):
        pinned = pins(name).get(canonicalize_name(wish.name))
        assert pinned is not None, f"{wish} is missing in {name}.txt: tox -e pins"
        assert wish.specifier.contains(pinned), f"{name}.txt has {pinned}, not {wish}: tox -e pins"


@pytest.mark.parametrize("name", COMPILED_FROM)
def test_every_pin_is_still_wanted(name: str) -> None:
    """What was taken out of an `.in` is gone from its `.txt` too, with all that only it needed."""
    assert sources(name).keys() == pins(name).keys(), "each pin says who wants it: tox -e pins"
    for package, wanted_by in sources(name).items():
        for source in wanted_by:
            if file := FILE.fullmatch(source):
                wished = {canonicalize_name(wish.name) for wish in wishes(file["name"])}
                assert package in wished, f"{file['name']}.in does not name {package} any more: tox -e pins"
            else:
                assert canonicalize_name(source) in {*pins(name), "torch"}, (
                    f"{package}: nobody needs it: tox -e pins"
                )


@pytest.mark.parametrize("name", COMPILED_FROM)
def test_every_wish_is_named_as_such(name: str) -> None:
    """What was only needed by others, and is named in an `.in` now, or the other way round, was compiled."""
    for source in COMPILED_FROM[name]:
        for wish in wishes(source):
            wanted_by = sources(name)[canonicalize_name(wish.name)]
            assert f"-r requirements/{source}.in" in wanted_by, f"{wish} of {source}.in: tox -e pins"


@pytest.mark.parametrize("name", [*COMPILED_FROM, "torch"])
def test_no_pin_names_one_build(name: str) -> None:
    assert not {package: version for package, version in pins(name).items() if version.local}


def test_all_files_agree() -> None:
    versions: dict[str, set[Version]] = {}
    for name in [*COMPILED_FROM, "torch"]:
        for package, version in pins(name).items():
            versions.setdefault(package, set()).add(version)
    assert not {package: found for package, found in versions.items() if len(found) > 1}


def test_torch_stands_alone() -> None:
    assert pins("torch") == {"torch": Version("2.13.0")}
    assert not [name for name in COMPILED_FROM if "torch" in pins(name)]


@pytest.mark.parametrize(
    ("name", "unwanted"), [("broker", "grpcio"), ("broker", "protobuf"), ("frontend", "numpy")]
)
def test_a_host_installs_only_its_own(name: str, unwanted: str) -> None:
    assert unwanted not in pins(name)


@pytest.mark.parametrize("name", [*COMPILED_FROM, "proto"])
def test_every_wish_has_its_reason(name: str) -> None:
    text = (FOLDER / f"{name}.in").read_text()
    assert text.startswith("# "), "says first what the file is for"


def test_nobody_brings_the_other_proto() -> None:
    assert not [name for name in COMPILED_FROM if "proto-plus" in pins(name)]
