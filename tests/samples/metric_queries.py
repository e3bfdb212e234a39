"""Which metrics and labels a PromQL query asks for, and which of them no frontend tells."""

import re
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Final

from frontend.metric_catalog import CATALOG, Kind
from frontend.metric_families import BROKER_REFUSALS, OTHER, OWN_REFUSALS, STANDINGS, WORKER_STATES

SAMPLE_SUFFIXES: Final = {
    Kind.COUNTER: ("",),
    Kind.GAUGE: ("",),
    Kind.INFO: ("",),
    Kind.HISTOGRAM: ("_bucket", "_sum", "_count"),
}
SERIES: Final = {
    f"{metric.name}{suffix}": metric for metric in CATALOG for suffix in SAMPLE_SUFFIXES[metric.kind]
}
OF_LIBRARIES: Final = frozenset(
    {"up", "process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"}
)
"""Those that are used of what Prometheus itself and its client library add."""
OF_PROMETHEUS: Final = frozenset({"instance", "job"})
LABELS: Final = OF_PROMETHEUS | {"le"} | {label for metric in CATALOG for label in metric.labels}
REFUSALS: Final = (*BROKER_REFUSALS, *OWN_REFUSALS)
VALUES: Final = {
    ("flux_worker_state", "state"): {*WORKER_STATES},
    ("flux_frontend_broker_state", "state"): {*STANDINGS},
    ("flux_broker_jobs_total", "outcome"): {"completed", "failed", "cancelled", OTHER},
    ("flux_broker_refused_jobs_total", "reason"): {*BROKER_REFUSALS, OTHER},
    ("flux_frontend_refused_jobs_total", "reason"): {*OWN_REFUSALS, OTHER},
}
KEYWORDS: Final = frozenset({"and", "or", "unless", "bool", "offset", "inf"})

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_MATCHER: Final = re.compile(rf"(\w+)\s*(?:=~|!~|!=|=)\s*({_STRING})")
_SELECTOR: Final = re.compile(rf"([a-zA-Z_:][\w:]*)\s*\{{((?:[^}}\"]|{_STRING})*)\}}")
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME: Final = re.compile(r"(?<![\w:$])([a-zA-Z_:][\w:]*)\b(?!\s*\()")


def names_asked(query: str) -> set[str]:
    """Every metric that the query names."""
    bare = _GROUPING.sub(" ", _SELECTOR.sub(r" \1 ", query))
    bare = re.sub(rf"\[[^]]*\]|{_STRING}", " ", bare)
    return set(_NAME.findall(bare)) - KEYWORDS


def problems(query: str, recorded: Collection[str] = ()) -> Iterator[str]:
    """What the query asks for in vain. `recorded`: names that rules give to results."""
    for name in names_asked(query) - {*SERIES, *OF_LIBRARIES, *recorded}:
        yield f"there is no metric {name}"
    for grouping in _GROUPING.findall(query):
        for label in filter(None, map(str.strip, grouping.split(","))):
            if label not in LABELS:
                yield f"no metric has the label {label}"
    for name, selector in _SELECTOR.findall(query):
        for label, value in _MATCHER.findall(selector):
            yield from _problems_of_matcher(name, label, value.strip('"'))


def _problems_of_matcher(name: str, label: str, value: str) -> Iterator[str]:
    metric = SERIES.get(name)
    known = LABELS if metric is None else OF_PROMETHEUS | {"le", *metric.labels}
    if label not in known:
        yield f"{name} has no label {label}"
    values = VALUES.get((name, label)) or set(
        chain.from_iterable(found for (_, of), found in VALUES.items() if of == label)
    )
    if values and not value.startswith("$"):
        for each in set(value.split("|")) - values:
            yield f"{label} of {name} is never {each}"
