"""The whole service with its worker on a GPU: what is drawn, what a killed part costs, and what it leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.measure import used_by_all
from processes.stack import Stack, until
from samples.pictures import names_of, pixels_of

LIMIT_S = 300.0
"""For reading and loading the full size."""
MIB = 1024 * 1024

pytestmark = pytest.mark.timeout(3 * LIMIT_S)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path) as running:
        yield running


def test_the_embedded_model_draws_what_is_asked_for(stack: Stack, cuda: str) -> None:
    stack.start(limit_s=LIMIT_S, engine="embedded", device=cuda)
    image = stack.client().draw("a red heart on white", steps=15, width=256, height=256, seed=1)
    assert names_of(image.image_png) == ("white", "red", "heart")
    gpus = [gpu for row in stack.rows() for gpu in row.gpus]
    assert [gpu.name for gpu in gpus] == [torch.cuda.get_device_name(cuda)]
    assert [row.precision for row in stack.rows()] == ["bf16"]


def test_what_is_killed_costs_no_image_and_leaves_no_memory_taken(
    stack: Stack, folders: tuple[Path, Path], device: str
) -> None:
    used_before = used_by_all(torch.device(device))
    stack.start(limit_s=LIMIT_S, engine="flux", model_dir=folders[1], device=device)
    engine = stack.workers["worker-1"].engine().pid
    # Seconds on a fast card: the metrics show a step of it a heartbeat late.
    wish: dict[str, Any] = {"prompt": "a pier", "height": 1024, "width": 1024, "steps": 20, "seed": 5}
    undisturbed = pixels_of(stack.client().draw(**wish).image_png)

    call = stack.client().begin(**wish)
    running = stack.until_running()
    stack.broker.kill()
    stack.broker.start()
    assert (pixels_of(call.image(LIMIT_S).image_png) == undisturbed).all()
    started = stack.workers["worker-1"].events("job started")
    assert [line["job_id"] for line in started].count(running.job_id) == 1, "drawn once"
    assert stack.workers["worker-1"].engine().pid == engine

    call = stack.client().begin(**wish)
    running = stack.until_running()
    stack.workers["worker-1"].engine().kill()
    assert (pixels_of(call.image(LIMIT_S).image_png) == undisturbed).all()
    started = stack.workers["worker-1"].events("job started")
    assert [line["job_id"] for line in started].count(running.job_id) == 2, "drawn by the next engine process"
    assert stack.workers["worker-1"].engine().pid != engine

    stack.workers["worker-1"].kill()
    stack.until_state("worker-1", "lost")
    until(
        "the GPU's memory is free again",
        lambda: used_by_all(torch.device(device)) <= used_before + 64 * MIB,
        LIMIT_S,
    )
    stack.start_worker("worker-1")
    stack.until_state("worker-1", "ready", LIMIT_S)
    assert (pixels_of(stack.client().draw(**wish).image_png) == undisturbed).all()
