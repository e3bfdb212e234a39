"""All that is fuzzed in one process, by name."""

from typing import Final

from fuzz import core_targets, file_targets, page_targets, text_targets, wire_targets
from fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for module in (wire_targets, core_targets, page_targets, file_targets, text_targets)
    for target in module.TARGETS
}
