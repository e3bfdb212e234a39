"""The memory plans of a 4-bit folder, asked for as operators do, with the CPU as the device."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_worker.engines import flux
from gpu_worker.engines.engine import EngineJob, ModelUnusable
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.flux_loading import load_pipeline
from gpu_worker.engines.footprint import read_footprint
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.text_encoding import TextEncoding
from gpu_worker.memory_plan import MemoryPlan
from proto.messages import ImageParameters


def drawn(folder: Path, plan: MemoryPlan | None) -> tuple[np.ndarray, str]:
    engine = FluxEngine(folder, device="cpu", threads=1, memory_plan=plan, prompt_cache_bytes_max=2**20)
    card = engine.load(lambda _what, _percent: None)
    assert card.quantization.startswith("hqq 4-bit")
    engine.warm_up()
    parameters = ImageParameters(height=64, width=64, steps=2, guidance=3.5, seed=1)
    job = EngineJob(execution_id=b"E" * 16, job_id=b"J" * 16, prompt="a cat", parameters=parameters)
    first, second = (engine.generate(job, lambda _phase, _step: None) for _ in range(2))
    assert (first.text_cached, second.text_cached) == (False, True)
    assert (first.image == second.image).all()
    return first.image, card.memory_plan


def test_one_picture_by_every_plan(quantized_folder: Path) -> None:
    pictures = {
        plan: drawn(quantized_folder, plan) for plan in (None, *MemoryPlan) if plan is not MemoryPlan.BF16
    }
    expected, title = pictures[MemoryPlan.PACKED]
    assert title.startswith("4bit, about")
    for plan, (picture, told) in pictures.items():
        assert told.startswith((plan or MemoryPlan.EXPANDED).value)
        assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 1, plan


def test_t5_may_compute_in_another_type_than_the_rest(
    quantized_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    how = LoadPlan(device=cpu, t5_device=cpu, dtype=torch.bfloat16, t5_dtype=torch.float32, expand=False)
    monkeypatch.setattr(flux, "load_plan", lambda _plan, _device: how)
    picture, _ = drawn(quantized_folder, MemoryPlan.T5_ON_CPU)
    assert picture.std() > 0
    pipeline = load_pipeline(quantized_folder, how, lambda _what, _percent: None)
    assert (pipeline.text_encoder_2.dtype, pipeline.transformer.dtype) == (torch.float32, torch.bfloat16)
    text = TextEncoding(pipeline, device=cpu, offload_to=None, cache_bytes_max=0)
    encoded, _ = text.encode("a cat")
    assert encoded.prompt_embeds.dtype is torch.bfloat16


def test_a_4_bit_folder_has_no_plain_plan(quantized_folder: Path) -> None:
    with pytest.raises(ModelUnusable, match="4bit-expanded makes them plain"):
        drawn(quantized_folder, MemoryPlan.BF16)


def test_its_footprint_is_that_of_the_plain_one(embedded_folder: Path, quantized_folder: Path) -> None:
    plain, packed = read_footprint(embedded_folder), read_footprint(quantized_folder)
    for name in ("transformer", "t5", "clip", "vae"):
        assert getattr(packed, name).parameters == getattr(plain, name).parameters
    assert packed.is_packed
    assert packed.t5.weight_bytes(2, expanded=False) < plain.t5.weight_bytes(2, expanded=False)
