"""Which versions of what is installed make a picture or a page."""

from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "flux-server"
"""Our own name among them."""


def version_of(distribution: str) -> str:
    """`from source` where it was never installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "from source"
