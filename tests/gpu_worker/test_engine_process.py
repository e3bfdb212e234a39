"""The engine process as its worker sees it: real processes with the fake engine in them."""

import asyncio
import multiprocessing.context
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from samples.watched_engine import CHILD, LIMIT_S, Watched, fake, started
from structlog.testing import capture_logs

from gpu_worker.engine_forkserver import ensure_forkserver
from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.engines.engine import EngineJob
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.fake import read_fake_image
from gpu_worker.events import (
    EngineDrawn,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
)
from gpu_worker.model_store import FluxFolder
from proto.failures import FailureCode
from proto.messages import ImageParameters, JobPhase


@asynccontextmanager
async def ready(step_s: float = 0.0) -> AsyncIterator[Watched]:
    async with started(fake(step_s)) as watched:
        await watched.until(EngineReady)
        yield watched


_numbers = iter(range(1, 1000))


def job(prompt: str = "a cat", steps: int = 3) -> EngineJob:
    parameters = ImageParameters(height=64, width=64, steps=steps, guidance=3.5, seed=1)
    identifier = next(_numbers).to_bytes(16, "big")
    return EngineJob(execution_id=identifier, job_id=identifier, prompt=prompt, parameters=parameters)


async def test_from_loading_to_a_finished_image() -> None:
    wanted = job()
    async with ready() as watched:
        watched.process.run(wanted)
        finished = await watched.until_finished(wanted)
    loading = [event for event in watched.events if isinstance(event, EngineLoading)]
    percents = [event.percent for event in loading]
    assert percents == sorted(percents)
    assert watched.events[: len(loading)] == loading, "nothing but loading comes before ready"
    assert isinstance(watched.events[len(loading)], EngineReady)
    told = [(event.phase, event.step) for event in watched.of(wanted) if isinstance(event, EngineProgress)]
    steps = [(JobPhase.STEP, step) for step in range(4)]
    expected = [(JobPhase.TEXT, 0), *steps, (JobPhase.DECODE, 3)]
    assert told == [each for each in expected if each in told], "in order, where it is not outdated already"
    assert told[-1] == expected[-1]
    assert watched.of(wanted)[-1] == finished
    content = read_fake_image(bytes(finished.png))
    assert content is not None
    assert (content.execution_id, content.job_id) == (wanted.execution_id, wanted.job_id)
    drawn = watched.of(wanted)[-2]
    assert isinstance(drawn, EngineDrawn)
    assert drawn.steps_time_s is not None
    assert 0 <= drawn.steps_time_s <= drawn.inference_time_s < LIMIT_S
    assert all(event.child == CHILD for event in watched.events)


async def test_two_jobs_one_after_the_other() -> None:
    first, second = job("first"), job("second")
    async with ready() as watched:
        watched.process.run(first)
        await watched.until_finished(first)
        watched.process.run(second)
        finished = await watched.until_finished(second)
    content = read_fake_image(bytes(finished.png))
    assert content is not None
    assert content.execution_id == second.execution_id


async def test_cancel_stops_between_steps_and_the_next_job_runs() -> None:
    cancelled, following = job(steps=1000), job(steps=1)
    async with ready(step_s=0.02) as watched:
        watched.process.run(cancelled)
        await watched.until_step(cancelled, 2)
        watched.process.cancel(cancelled.execution_id)
        failed = await watched.until_failed(cancelled)
        assert failed.code is FailureCode.CANCELLED
        watched.process.run(following)
        await watched.until_finished(following)
    assert not any(isinstance(event, EngineFinished) for event in watched.of(cancelled))


async def test_cancel_of_a_job_that_has_not_begun() -> None:
    running, waiting = job(steps=1000), job()
    async with ready(step_s=0.02) as watched:
        watched.process.run(running)
        watched.process.run(waiting)
        watched.process.cancel(waiting.execution_id)
        await watched.until_step(running, 2)
        watched.process.cancel(running.execution_id)
        failed = await watched.until_failed(waiting)
        assert failed.code is FailureCode.CANCELLED
    assert watched.of(waiting) == [failed], "it never began"


async def test_cancel_at_once_and_of_what_is_unknown_or_over() -> None:
    at_once, over, last = job(steps=1000), job(), job()
    async with ready(step_s=0.01) as watched:
        watched.process.run(at_once)
        watched.process.cancel(at_once.execution_id)
        await watched.until_failed(at_once)
        watched.process.cancel(b"?" * 16)
        watched.process.run(over)
        await watched.until_finished(over)
        watched.process.cancel(over.execution_id)
        watched.process.run(last)
        await watched.until_finished(last)
    assert isinstance(watched.of(over)[-1], EngineFinished)


@pytest.mark.parametrize(
    ("prompt", "code", "detail"),
    [
        ("!oom@1", FailureCode.OUT_OF_MEMORY, "OutOfDeviceMemory: fake: out of memory at step 1"),
        ("!error@2", FailureCode.ENGINE_ERROR, "RuntimeError: fake: error at step 2"),
        ("!nonfinite@1", FailureCode.NON_FINITE_IMAGE, "NonFiniteImage: fake: NaN at step 1"),
    ],
)
async def test_a_failed_job_leaves_the_process_alive(prompt: str, code: FailureCode, detail: str) -> None:
    failing, following = job(prompt), job()
    async with ready() as watched:
        watched.process.run(failing)
        failed = await watched.until_failed(failing)
        assert (failed.code, failed.detail) == (code, detail)
        watched.process.run(following)
        await watched.until_finished(following)


async def test_a_crash_is_an_exit_with_its_reason() -> None:
    crashing = job("!crash@2")
    async with ready() as watched:
        watched.process.run(crashing)
        exited = await watched.until(EngineExited)
        assert exited.reason.startswith("killed by SIGKILL, not by this worker")
        assert (exited.hopeless, exited.code) == (False, None)
        # All of this is too late, and harmless.
        watched.process.run(job())
        watched.process.cancel(crashing.execution_id)
        watched.process.kill()
    assert [event.step for event in watched.of(crashing) if isinstance(event, EngineProgress)][-1] == 1


async def test_an_unusable_device_ends_the_process_and_says_so() -> None:
    poisoned = job("!poisoned@2")
    async with ready() as watched:
        watched.process.run(poisoned)
        exited = await watched.until(EngineExited)
        assert exited.code is FailureCode.DEVICE_POISONED
        assert exited.reason == "its device failed"
        assert not exited.hopeless
    assert all(isinstance(event, EngineProgress) for event in watched.of(poisoned)), "its end is the job's"


async def test_what_is_drawn_becomes_a_png_before_the_process_is_done_for() -> None:
    wanted, too_large, poisoned = job(), job("!oom@1"), job("!poisoned@1")
    async with ready() as watched:
        for each in (wanted, too_large):
            watched.process.run(each)
        await watched.until_failed(too_large)
        assert isinstance(watched.of(wanted)[-1], EngineFinished)
        assert watched.events.index(watched.of(wanted)[-1]) < watched.events.index(
            watched.of(too_large)[-1]
        ), "its worker will replace the process"
        last = job()
        for each in (last, poisoned):
            watched.process.run(each)
        await watched.until(EngineExited)
        assert isinstance(watched.of(last)[-1], EngineFinished)


async def test_a_hung_engine_ignores_cancel_and_can_be_killed() -> None:
    hanging = job("!hang@2")
    async with ready() as watched:
        watched.process.run(hanging)
        await watched.until_step(hanging, 1)
        watched.process.cancel(hanging.execution_id)
        watched.process.kill()
        exited = await watched.until(EngineExited)
        assert exited.reason == "killed by SIGKILL"
    assert not any(isinstance(event, EngineFailed) for event in watched.events)


async def test_a_frozen_process_blocks_nobody_and_can_be_killed() -> None:
    async with ready() as watched:
        os.kill(await watched.until_made(), signal.SIGSTOP)
        frozen_job = job("x" * 8192)
        watched.process.run(frozen_job)
        watched.process.cancel(frozen_job.execution_id)
        watched.process.kill()
        await watched.until(EngineExited)
    assert watched.of(frozen_job) == []


async def test_killed_while_it_loads() -> None:
    async with started(fake(load_s=600)) as watched:
        await watched.until(EngineLoading)
        watched.process.kill()
        exited = await watched.until(EngineExited)
        assert exited.reason == "killed by SIGKILL"
    assert not any(isinstance(event, EngineReady) for event in watched.events)


async def test_interrupts_belong_to_the_worker_and_termination_is_obeyed() -> None:
    async with started(fake()) as watched:
        pid = await watched.until_made()
        os.kill(pid, signal.SIGINT)
        await watched.until(EngineReady)
        os.kill(pid, signal.SIGINT)
        wanted = job()
        watched.process.run(wanted)
        await watched.until_finished(wanted)
        os.kill(pid, signal.SIGTERM)
        exited = await watched.until(EngineExited)
        assert exited.reason == "killed by SIGTERM"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
        (PermissionError(13, "Permission denied", "/home/alice/tmp"), "Permission denied"),
        (OSError("in /home/alice/tmp"), "OSError, see the log"),
        (ValueError("in /home/alice/tmp"), "ValueError, see the log"),
    ],
)
async def test_a_process_that_cannot_be_made_is_an_exit(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def refuse(_process: object) -> None:
        raise error

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", refuse)
    with capture_logs() as logs:
        async with started(fake()) as watched:
            exited = await watched.until(EngineExited)
    assert exited.reason == f"cannot start an engine process: {why}"
    assert first_line(error) in [entry.get("error") for entry in logs]


async def test_what_is_nonsense_is_told_to_the_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(_pipe: object) -> None:
        raise ValueError("invalid load key, 'a secret prompt'")

    monkeypatch.setattr("gpu_worker.engine_process.receive_message", misread)
    with capture_logs() as logs:
        async with started(fake()) as watched:
            exited = await watched.until(EngineExited)
    assert exited.reason == "wrote nonsense to its pipe (ValueError, see the log)"
    assert any("a secret prompt" in entry.get("error", "") for entry in logs)


async def test_an_unusable_model_is_hopeless(tmp_path: Path) -> None:
    # One that is made for FLUX would import torch first.
    ensure_forkserver(fake(), EngineOptions())
    async with started(FluxFolder(path=tmp_path / "nowhere")) as watched:
        exited = await watched.until(EngineExited)
        assert (exited.hopeless, exited.code) == (True, None)
        assert f"{tmp_path / 'nowhere'}: no such folder" in exited.reason


async def test_it_insists_on_the_main_thread() -> None:
    watched = Watched(fake())
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(watched.process.start)
