"""Draws docs/tracing.svg, the trace of one image of the embedded model, by all processes of a service:

    PYTHONPATH=tests:. python -m processes.trace_picture docs/tracing.svg

With OTEL_EXPORTER_OTLP_ENDPOINT the spans go to the collector of that name instead, and nothing is drawn.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from processes.stack import Client, Stack, until
from samples.otlp_receiver import OtlpReceiver, ReceivedSpan

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
COLORS: Final = {"flux-frontend": "#4e79a7", "flux-broker": "#f28e2b", "flux-worker": "#59a14f"}
ROOT: Final = "imagegen.ImageGen/Generate"
NAMES_PX: Final = 220
BARS_PX: Final = 560
ROW_PX: Final = 20
LENGTH_PX: Final = 70
"""Room for how long a span took, behind its bar."""


def drawn(spans: Sequence[ReceivedSpan]) -> str:
    """A picture of one trace, as collectors show it: who called whom, and what took how long."""
    begun_ns = min(span.begun_ns for span in spans)
    px_per_ns = BARS_PX / (max(span.ended_ns for span in spans) - begun_ns)
    width, height = NAMES_PX + BARS_PX + LENGTH_PX, ROW_PX * (len(spans) + 1) + 8
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        '<style>text { font: 12px sans-serif }</style><rect width="100%" height="100%" fill="white"/>',
    ]
    for place, (service, color) in enumerate(COLORS.items()):
        x = NAMES_PX + place * 130
        rows.append(f'<rect x="{x}" y="6" width="10" height="10" fill="{color}"/>')
        rows.append(f'<text x="{x + 15}" y="15">{service}</text>')
    for row, (depth, span) in enumerate(_nested(spans, ""), start=1):
        y, x = row * ROW_PX + 4, NAMES_PX + (span.begun_ns - begun_ns) * px_per_ns
        length_ns = span.ended_ns - span.begun_ns
        step = span.facts.get("step")
        name = span.name.rpartition("/")[2] + ("" if step is None else f" {step}")
        rows.append(f'<text x="{8 + depth * 14}" y="{y + 13}">{escape(name)}</text>')
        bar_px = max(1.0, length_ns * px_per_ns)
        color = COLORS[span.service]
        rows.append(f'<rect x="{x:.1f}" y="{y + 2}" width="{bar_px:.1f}" height="14" fill="{color}"/>')
        rows.append(f'<text x="{x + bar_px + 4:.1f}" y="{y + 13}">{length_ns / 1e6:.1f} ms</text>')
    return "\n".join([*rows, "</svg>\n"])


def _nested(spans: Sequence[ReceivedSpan], parent_id: str, depth: int = 0) -> list[tuple[int, ReceivedSpan]]:
    rows: list[tuple[int, ReceivedSpan]] = []
    for span in spans:
        if span.parent_id == parent_id:
            rows += [(depth, span), *_nested(spans, span.span_id, depth + 1)]
    return rows


def draw_image(client: Client) -> str:
    """The `job_id` of an image that was drawn."""
    call = client.begin("a harbour at dawn", steps=5, width=512, height=512)
    call.image()
    return call.job_id


def main() -> None:
    own = ENDPOINT not in os.environ
    with OtlpReceiver.listening() as receiver, tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault(ENDPOINT, receiver.endpoint)
        with Stack(Path(folder), tracing=True) as stack:
            stack.start(engine="embedded")
            draw_image(stack.client())
            job_id = draw_image(stack.client())  # The first one is slower than the rest.
            print(f"job {job_id}")
    if own:  # All have ended, and have sent what they had.
        trace = until("all spans have come", lambda: receiver.trace_of(job_id))
        Path(sys.argv[1]).write_text(drawn(trace))


if __name__ == "__main__":
    main()
