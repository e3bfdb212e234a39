"""All that is fuzzed in one process, by name."""

from importlib import import_module
from types import ModuleType
from typing import Final

from fuzz.target import Target

MODULES: Final = ("wire_targets", "core_targets", "page_targets", "file_targets", "text_targets")


def of_module(name: str) -> dict[str, Target]:
    """Only these are imported, which matters where what is imported is instrumented."""
    module: ModuleType = import_module(f"fuzz.{name}")
    return {target.name: target for target in module.TARGETS}


def all_targets() -> dict[str, Target]:
    return {name: target for module in MODULES for name, target in of_module(module).items()}


def module_of(target: Target) -> str:
    return next(module for module in MODULES if target.name in of_module(module))
