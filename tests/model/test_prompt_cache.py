"""Encoded prompts: kept by bytes, found by digest, and never another prompt's."""

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_worker.engines.engine import Drawing, EngineJob, JobCancelled
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.prompt_cache import EncodedPrompt, PromptCache
from proto.messages import ImageParameters, JobPhase

ENTRY_BYTES = 4 * (8 + 2)
MIB = 1024 * 1024


def encoded(value: float) -> EncodedPrompt:
    return EncodedPrompt(torch.full((1, 2, 4), value), torch.full((1, 2), value))


def silent(_phase: JobPhase, _step: int) -> None:
    pass


def job(prompt: str, *, seed: int = 1, steps: int = 1) -> EngineJob:
    parameters = ImageParameters(height=32, width=32, steps=steps, guidance=3.5, seed=seed)
    return EngineJob(execution_id=b"E" * 16, job_id=b"J" * 16, prompt=prompt, parameters=parameters)


def engine_with(folder: Path, cache_bytes_max: int) -> FluxEngine:
    engine = FluxEngine(folder, device="cpu", threads=1, prompt_cache_bytes_max=cache_bytes_max)
    engine.load(lambda _what, _percent: None)
    return engine


def cache_of(engine: FluxEngine) -> PromptCache:
    assert engine._loaded is not None
    return engine._loaded.text.cache


# --- The cache ---------------------------------------------------------------------------------


def test_what_was_kept_is_found_and_nothing_else() -> None:
    cache = PromptCache(10 * ENTRY_BYTES)
    cache.keep("a cat", encoded(1.0))
    found = cache.find("a cat")
    assert found is not None
    assert torch.equal(found.prompt_embeds, encoded(1.0).prompt_embeds)
    assert torch.equal(found.pooled_prompt_embeds, encoded(1.0).pooled_prompt_embeds)
    for other in ("a cat ", "A cat", "", "a", "a\x00cat"):
        assert cache.find(other) is None


def test_the_last_used_stay_within_the_bytes() -> None:
    cache = PromptCache(3 * ENTRY_BYTES + 1)
    for number in range(3):
        cache.keep(str(number), encoded(float(number)))
    assert cache.find("0") is not None, "used again, so 1 is the oldest now"
    cache.keep("3", encoded(3.0))
    assert [cache.find(str(number)) is not None for number in range(4)] == [True, False, True, True]
    assert (len(cache), cache.size_bytes) == (3, 3 * ENTRY_BYTES)


def test_an_entry_that_is_kept_again_counts_once() -> None:
    cache = PromptCache(3 * ENTRY_BYTES)
    for _ in range(5):
        cache.keep("a cat", encoded(1.0))
    assert (len(cache), cache.size_bytes) == (1, ENTRY_BYTES)


@pytest.mark.parametrize("bytes_max", [0, 1, ENTRY_BYTES - 1])
def test_what_is_larger_than_the_whole_cache_is_not_kept(bytes_max: int) -> None:
    cache = PromptCache(bytes_max)
    cache.keep("a cat", encoded(1.0))
    assert cache.find("a cat") is None
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_what_is_kept_is_a_copy() -> None:
    cache = PromptCache(MIB)
    given = encoded(1.0)
    cache.keep("a cat", given)
    given.prompt_embeds.fill_(9.0)
    found = cache.find("a cat")
    assert found is not None
    assert found.prompt_embeds.max() == 1.0


def test_neither_prompts_nor_their_beginnings_are_kept() -> None:
    cache = PromptCache(MIB)
    cache.keep("secret", encoded(1.0))
    assert "secret" not in repr(vars(cache))


# --- In the engine -----------------------------------------------------------------------------


def test_the_same_picture_with_and_without_it(embedded_folder: Path) -> None:
    without, cached = engine_with(embedded_folder, 0), engine_with(embedded_folder, MIB)
    drawings = [
        engine.generate(job("a cat"), silent) for engine in (without, without, cached, cached, cached)
    ]
    assert [drawing.text_cached for drawing in drawings] == [False, False, False, True, True]
    assert len({drawing.image.tobytes() for drawing in drawings}) == 1
    assert len(cache_of(without)) == 0


def test_a_cancelled_job_leaves_a_whole_entry_or_none(embedded_folder: Path) -> None:
    engine = engine_with(embedded_folder, MIB)

    def cancel_at(moment: tuple[JobPhase, int]) -> Callable[[JobPhase, int], None]:
        def on_progress(phase: JobPhase, step: int) -> None:
            if (phase, step) == moment:
                raise JobCancelled

        return on_progress

    for moment, kept in (((JobPhase.TEXT, 0), 0), ((JobPhase.STEP, 0), 1), ((JobPhase.STEP, 1), 1)):
        with pytest.raises(JobCancelled):
            engine.generate(job("a cat"), cancel_at(moment))
        assert len(cache_of(engine)) == kept
    drawing = engine.generate(job("a cat"), silent)
    assert drawing.text_cached
    assert (drawing.image == engine_with(embedded_folder, 0).generate(job("a cat"), silent).image).all()


def test_prompts_do_not_mix_over_many_jobs(embedded_folder: Path) -> None:
    """Eight prompts in a cache with room for three, so that all of hits, misses and evictions occur."""
    prompts = [f"prompt number {number}" for number in range(8)]
    plain = engine_with(embedded_folder, 0)
    expected = {
        (it, seed): plain.generate(job(it, seed=seed), silent).image for it in prompts for seed in (1, 2)
    }
    probe = engine_with(embedded_folder, MIB)
    probe.generate(job(prompts[0]), silent)
    engine = engine_with(embedded_folder, 3 * cache_of(probe).size_bytes)
    chance, hits = random.Random(5), 0
    for _ in range(200):
        key = chance.choice(prompts), chance.choice((1, 2))
        drawing = engine.generate(job(key[0], seed=key[1]), silent)
        hits += drawing.text_cached
        assert (drawing.image == expected[key]).all()
        assert len(cache_of(engine)) <= 3
    assert 40 < hits < 160


def test_no_growth_over_many_jobs(embedded_folder: Path) -> None:
    engine = engine_with(embedded_folder, 64 * 1024)
    counts: list[tuple[int, int]] = []
    for number in range(1, 501):
        draw_or_cancel(engine, number)
        if number in {100, 500}:
            counts.append(alive())
    (tensors_before, objects_before), (tensors_after, objects_after) = counts
    assert tensors_after == tensors_before
    assert objects_after - objects_before < 100, "not one object for four jobs"


def draw_or_cancel(engine: FluxEngine, number: int) -> Drawing | None:
    def on_progress(phase: JobPhase, _step: int) -> None:
        if number % 10 == 3 and phase is JobPhase.STEP:
            raise JobCancelled

    try:
        return engine.generate(job(f"prompt {number % 40}", seed=number), on_progress)
    except JobCancelled:
        return None


def alive() -> tuple[int, int]:
    """Tensors, and all objects that Python's collector tracks."""
    gc.collect()
    objects: list[Any] = gc.get_objects()
    # By type: some modules' objects do strange things when they are asked for their class.
    return sum(issubclass(type(it), torch.Tensor) for it in objects), len(objects)
