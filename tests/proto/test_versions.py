"""Versions of what is installed, and of what is not."""

from importlib import metadata

from proto.versions import version_of


def test_the_version_of_what_is_installed() -> None:
    assert version_of("pyzmq") == metadata.version("pyzmq")


def test_what_was_never_installed_runs_from_source() -> None:
    assert version_of("no-such-distribution") == "from source"
