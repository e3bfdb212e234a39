"""Whether a component traces its jobs. OpenTelemetry is imported only if it does (`spans.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proto.spans import Tracing


class CannotTrace(Exception):
    """Tracing is switched on and cannot be had. The text says why, and what would help."""


@contextmanager
def tracing_if(component: str, instance: str, *, enabled: bool) -> "Iterator[Tracing | None]":
    """The component's tracing for as long as it runs, or None; at the end its last spans are sent.

    Args:
        component: `broker`, `worker` or `frontend`.
        instance: which of them, for people.

    Raises:
        CannotTrace: the libraries are missing, or one of their variables has no meaning.
    """
    if not enabled:
        yield None
        return
    try:
        from proto.spans import Tracing  # noqa: PLC0415 - whoever does not trace need not have it
    except ImportError as error:
        raise CannotTrace(f"tracing: {error}: pip install -r requirements/tracing.txt") from error
    tracing = Tracing.exporting(component, instance)
    try:
        yield tracing
    finally:
        tracing.close()
