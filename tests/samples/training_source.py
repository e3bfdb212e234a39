"""`training` is no part of the wheel: it is imported from the source tree, and nothing else is."""

import importlib.util
import sys
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[2] / "training"


def import_training() -> None:
    """Once for all tests of a process."""
    if "training" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "training", _SOURCE / "__init__.py", submodule_search_locations=[str(_SOURCE)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["training"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
