"""Settings that name a folder."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator


def _named(value: object) -> object:
    if value == "":
        raise ValueError("must name a folder; the present one is .")
    return value


NamedFolder = Annotated[Path, BeforeValidator(_named)]
"""A path that is not empty: an empty one would mean the present folder, and is most often a mistake."""
