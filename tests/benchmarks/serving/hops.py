"""Where the time of a call goes, by the times in the logs: the product measures nothing for it."""

import statistics
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from processes.stack import Component, Stack

HOPS: Final = (
    "gRPC in, checks, the way to the broker, its decision",
    "START, to the worker",
    "the engine process, and the image out of it",
    "the image to the broker",
    "the image to the frontend, the answer built",
)
"""Between the instants of `_instants`."""


def median_hops_ms(stack: Stack) -> Mapping[str, float]:
    """By the name of the hop, of all calls that the logs of a stack with one worker tell of as a whole."""
    (worker,) = stack.workers.values()
    instants = [
        _call_starts(stack.frontend),
        _times(stack.broker, "job dispatched"),
        _times(worker, "job started"),
        _times(worker, "job ended"),
        _times(stack.broker, "job completed"),
        _times(stack.frontend, "call ended"),
    ]
    whole = set.intersection(*(set(each) for each in instants))
    return {
        hop: statistics.median(after[job] - before[job] for job in whole) * 1000
        for hop, before, after in zip(HOPS, instants, instants[1:], strict=False)
    }


def _times(component: Component, event: str) -> dict[str, float]:
    """By job, in seconds."""
    lines = component.events(event)
    return {line["job_id"]: _instant(line["timestamp"]) for line in lines if "job_id" in line}


def _call_starts(frontend: Component) -> dict[str, float]:
    lines = frontend.events("call ended")
    return {
        line["job_id"]: _instant(line["timestamp"]) - line["duration_s"] for line in lines if "job_id" in line
    }


def _instant(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
