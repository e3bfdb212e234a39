"""No callback of the broker, the frontend or the worker holds its event loop for long, whatever goes on."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.serving.load import Callers, key_names
from processes.stack import Stack

LIMIT_S = 0.05
"""Of CPU time. None of more than 0.01 s was seen."""
IMAGE_BYTES = 1024 * 1024
CALLERS = 8
EACH = 12


@pytest.fixture
def watch_folder(tmp_path, monkeypatch):
    """Where every Python process that is started from now on leaves what has held its loop."""
    folder = tmp_path / "watched"
    folder.mkdir()
    path = [str(Path(__file__).parent / "loop_watch"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("LOOP_WATCH_FOLDER", str(folder))
    return folder


def watched(folder):
    """By the process's module: the callbacks that were noted."""
    return {file.name.rpartition("-")[0]: json.loads(file.read_text()) for file in folder.iterdir()}


def too_long(callbacks, since=0.0):
    return [each for each in callbacks if each["held_s"] > LIMIT_S and each["at"] >= since]


async def load(address):
    """Images, refusals, pings and pictures of the whole, all at once."""
    async with Callers(address, CALLERS) as drawing, Callers(address, 2) as asking:
        await drawing.first_answer()
        async with asyncio.TaskGroup() as group:
            images = group.create_task(drawing.draw(EACH))
            group.create_task(asking.ping(50))
            group.create_task(asking.metrics(50))
    assert len(images.result().latencies_s) == CALLERS * EACH


def test_no_callback_holds_a_loop_for_long_under_load(tmp_path, watch_folder):
    with Stack(tmp_path, keys=key_names(CALLERS)) as stack:
        stack.broker.settings["queue_limit"] = CALLERS
        stack.start(fake_step_s=0, fake_png_bytes=IMAGE_BYTES)
        since = time.monotonic()
        asyncio.run(load(stack.address))
    found = watched(watch_folder)
    assert {"broker", "frontend", "gpu_worker"} <= set(found)
    assert {name: too_long(callbacks, since) for name, callbacks in found.items() if name != "other"} == {
        name: [] for name in found if name != "other"
    }


def test_a_callback_that_does_is_noticed(watch_folder):
    program = """
import asyncio, time
def block():
    began = time.thread_time()
    while time.thread_time() < began + 0.15: pass
async def main():
    asyncio.get_running_loop().call_soon(block)
    await asyncio.sleep(0)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    (callback,) = too_long(watched(watch_folder)["other"])
    assert "block" in callback["callback"]
