"""Memory plans in the engine, through the code that a GPU runs, with the CPU as the device."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from gpu_worker.engines import flux
from gpu_worker.engines.devices import choose_device, device_memory, device_title
from gpu_worker.engines.engine import (
    EngineJob,
    JobCancelled,
    ModelUnusable,
    NotEnoughFreeMemory,
    OutOfDeviceMemory,
    RgbImage,
)
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.model_card import quantization_title
from gpu_worker.engines.text_encoding import OffloadedWeights
from gpu_worker.manifest import Manifest, Quantization, file_entry, read_manifest, write_manifest
from gpu_worker.memory_plan import DeviceMemory, MemoryPlan, PlanChoice
from gpu_worker.model_footprint import ModelFootprint
from proto.messages import ImageParameters, JobPhase, ModelCard

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def silent(_phase: JobPhase, _step: int) -> None:
    pass


def job(height: int = 64, width: int = 64, *, prompt: str = "a cat") -> EngineJob:
    parameters = ImageParameters(height=height, width=width, steps=2, guidance=3.5, seed=1)
    return EngineJob(execution_id=b"E" * 16, job_id=b"J" * 16, prompt=prompt, parameters=parameters)


def load(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan: MemoryPlan = MemoryPlan.BF16,
    *,
    tiled: bool = False,
) -> tuple[FluxEngine, ModelCard]:
    """With this plan, whether or not it is one for such a folder."""

    def choose(_wanted: MemoryPlan | None, _model: ModelFootprint, _memory: DeviceMemory) -> PlanChoice:
        return PlanChoice(plan=plan, tiled=tiled, expected_peak_bytes=1_000_000_000)

    engine = FluxEngine(folder, device="cpu", threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(flux, "choose_plan", choose)
        card = engine.load(lambda _what, _percent: None)
    return engine, card


def pipeline_of(engine: FluxEngine) -> Any:
    assert engine._loaded is not None
    return engine._loaded.pipeline


@pytest.fixture(scope="module")
def plain_picture(embedded_folder: Path) -> RgbImage:
    engine = FluxEngine(embedded_folder, device="cpu", threads=1)
    engine.load(lambda _what, _percent: None)
    return engine.generate(job(), silent).image


@pytest.mark.parametrize("plan", list(MemoryPlan))
def test_the_same_picture_wherever_t5_is(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch, plain_picture: RgbImage, plan: MemoryPlan
) -> None:
    engine, card = load(embedded_folder, monkeypatch, plan)
    assert card.memory_plan.endswith(", about 1.0 GB expected")
    engine.warm_up()
    for _ in range(2):
        assert (engine.generate(job(), silent).image == plain_picture).all()


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (MemoryPlan.BF16, ("cuda", "cuda", False)),
        (MemoryPlan.EXPANDED, ("cuda", "cuda", True)),
        (MemoryPlan.PACKED, ("cuda", "cuda", False)),
        (MemoryPlan.T5_OFFLOADED, ("cuda", "cpu", False)),
        (MemoryPlan.T5_ON_CPU, ("cuda", "cpu", False)),
    ],
)
def test_what_a_plan_has_loaded_where(plan: MemoryPlan, expected: tuple[str, str, bool]) -> None:
    how = flux.load_plan(plan, torch.device("cuda", 0))
    assert (how.device.type, how.t5_device.type, how.expand) == expected
    assert how.dtype is torch.bfloat16
    assert how.t5_dtype is (torch.float32 if plan is MemoryPlan.T5_ON_CPU else torch.bfloat16)
    cpu = torch.device("cpu")
    assert flux.load_plan(MemoryPlan.BF16, cpu) == LoadPlan(
        device=cpu, t5_device=cpu, dtype=torch.float32, t5_dtype=torch.float32, expand=False
    )


def test_offloaded_weights_come_for_the_computation_and_are_dropped(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the device is main memory: then they are copies of themselves."""
    engine, _ = load(embedded_folder, monkeypatch)
    t5 = pipeline_of(engine).text_encoder_2
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in t5.state_dict().items()}
    tokens = torch.arange(8).reshape(1, 8)
    with torch.inference_mode():
        expected = t5(tokens)[0]
    offloaded = OffloadedWeights(t5, torch.device("cpu"))
    for end in (None, RuntimeError):
        try:
            with torch.inference_mode(), offloaded.on_device():
                brought = t5.state_dict()
                assert all(brought[name].data_ptr() != before[name][0] for name in brought)
                assert torch.equal(t5(tokens)[0], expected)
                if end is not None:
                    raise end
        except RuntimeError:
            assert end is not None
        for name, tensor in t5.state_dict().items():
            address, values = before[name]
            assert tensor.data_ptr() == address, "the original, not a copy of what was on the device"
            assert torch.equal(tensor, values)


def test_a_pipeline_with_t5_elsewhere_computes_on_its_own_device(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = load(embedded_folder, monkeypatch)
    pipeline = pipeline_of(engine)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(type(pipeline.transformer), "device", property(lambda _module: gpu))
    assert pipeline.text_encoder.device.type == "cpu"
    assert pipeline._execution_device == gpu


# --- Tiles -------------------------------------------------------------------------------------


def test_tiles_are_smaller_than_the_picture(embedded_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own are as large as FLUX's largest picture, and so would save nothing."""
    engine, _ = load(embedded_folder, monkeypatch, tiled=True)
    whole, _ = load(embedded_folder, monkeypatch)
    sizes: list[tuple[int, ...]] = []
    pipeline_of(engine).vae.decoder.register_forward_pre_hook(
        lambda _decoder, inputs: sizes.append(tuple(inputs[0].shape[-2:]))
    )
    tiled_picture = engine.generate(job(600, 520), silent).image
    assert len(sizes) > 1
    assert max(max(size) for size in sizes) == 32, "of latents: 512 pixels"
    assert tiled_picture.shape == (600, 520, 3)
    picture = whole.generate(job(600, 520), silent).image
    likeness = np.corrcoef(tiled_picture.ravel(), picture.ravel())[0, 1]
    assert 0.8 < likeness < 1, "nearly the same picture: each tile is normalized by itself"


def test_a_picture_within_one_tile_is_the_same(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch, plain_picture: RgbImage
) -> None:
    engine, _ = load(embedded_folder, monkeypatch, tiled=True)
    assert (engine.generate(job(), silent).image == plain_picture).all()


# --- Out of memory -----------------------------------------------------------------------------


class Failing:
    """Raises so many times, then does what was there before."""

    def __init__(self, function: Callable[..., Any], times: int, error: Exception = NO_MEMORY) -> None:
        self.function, self.left, self.error = function, times, error

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise self.error
        return self.function(*arguments, **named)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_job_is_drawn_again_once(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch, plain_picture: RgbImage, part: str
) -> None:
    engine, _ = load(embedded_folder, monkeypatch)
    pipeline = pipeline_of(engine)
    name = "forward" if part == "transformer" else "decode"
    told: list[tuple[JobPhase, int]] = []
    failing = Failing(getattr(getattr(pipeline, part), name), 1)
    monkeypatch.setattr(getattr(pipeline, part), name, failing)
    with capture_logs() as logs:
        drawing = engine.generate(job(), lambda phase, step: told.append((phase, step)))
    assert (drawing.image == plain_picture).all()
    assert told.count((JobPhase.TEXT, 0)) == 2
    assert any("drawn once more" in entry["event"] for entry in logs)

    failing.left = 2
    with pytest.raises(OutOfDeviceMemory) as caught:
        engine.generate(job(), silent)
    assert caught.value.__context__ is None, "nothing keeps the failed job's tensors alive"
    assert failing.left == 0
    assert (engine.generate(job(), silent).image == plain_picture).all()


def test_a_cancelled_job_is_not_drawn_again(embedded_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = load(embedded_folder, monkeypatch)
    transformer = pipeline_of(engine).transformer
    monkeypatch.setattr(transformer, "forward", Failing(transformer.forward, 1))
    told: list[JobPhase] = []

    def cancel_second(phase: JobPhase, _step: int) -> None:
        told.append(phase)
        if told.count(JobPhase.TEXT) == 2:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        engine.generate(job(), cancel_second)


def test_a_plan_that_does_not_fit_shows_in_the_first_image(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = load(embedded_folder, monkeypatch, MemoryPlan.PACKED)
    transformer = pipeline_of(engine).transformer
    monkeypatch.setattr(transformer, "forward", Failing(transformer.forward, 9))
    with (
        capture_logs() as logs,
        pytest.raises(
            OutOfDeviceMemory,
            match=r"^memory plan 4bit, about 1\.0 GB expected: out of memory in a first image of 64 x 64$",
        ),
    ):
        engine.warm_up()
    assert any(str(NO_MEMORY) in entry.get("error", "") for entry in logs), (
        "what torch says is in the log alone"
    )


def test_memory_that_runs_out_while_loading_is_told_with_the_plan(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> Any:
        raise NO_MEMORY

    monkeypatch.setattr(flux, "load_pipeline", full)
    with (
        capture_logs() as logs,
        pytest.raises(
            NotEnoughFreeMemory,
            match=r"^memory plan 4bit, about 1\.0 GB expected: out of memory while loading$",
        ),
    ):
        load(embedded_folder, monkeypatch, MemoryPlan.PACKED)
    assert any(str(NO_MEMORY) in entry.get("error", "") for entry in logs), (
        "what torch says is in the log alone"
    )


def test_a_gpu_without_room_for_a_process_is_tried_again(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flux, "device_memory", Failing(lambda: None, 1))
    with pytest.raises(NotEnoughFreeMemory, match=r"^device cpu: out of memory while loading$"):
        FluxEngine(embedded_folder, device="cpu").load(lambda _what, _percent: None)


# --- Chosen by the engine itself ---------------------------------------------------------------


def test_the_embedded_model_has_the_plain_plan(embedded_folder: Path) -> None:
    card = FluxEngine(embedded_folder, device="cpu", threads=1).load(lambda _what, _percent: None)
    assert card.memory_plan == "fp32, about 0.6 GB expected"
    assert "torch 2." in card.versions
    assert (card.name, card.quantization) == ("embedded-flux", "")
    manifest = read_manifest(embedded_folder)
    assert manifest is not None
    assert card.revision == manifest.revision


def test_a_plan_for_another_kind_of_folder_is_refused(embedded_folder: Path) -> None:
    engine = FluxEngine(embedded_folder, device="cpu", threads=1, memory_plan=MemoryPlan.T5_ON_CPU)
    with pytest.raises(
        ModelUnusable, match=r"4bit-t5-cpu is for 4-bit weights.*python -m gpu_worker quantize"
    ):
        engine.load(lambda _what, _percent: None)


def test_what_a_gpu_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (5, 9))
    assert device_memory(torch.device("cuda", 0), "cuda:1 (a card)") == DeviceMemory(
        device="cuda:1 (a card)", total_bytes=9, free_bytes=5, number_bytes=2, is_gpu=True
    )


def test_a_gpu_is_named_as_the_operator_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a card")
    gpu = torch.device("cuda", 0)
    assert device_title(gpu, "cuda:3") == "cuda:3 (a card)"
    assert device_title(gpu, "auto") == device_title(gpu) == "cuda:0 (a card)"
    if not torch.cuda.is_available():
        with pytest.raises(ModelUnusable, match="device cuda:3: torch sees no such GPU"):
            choose_device("cuda", "cuda:3")


@pytest.mark.parametrize(
    ("total_bytes", "free_bytes", "error", "text"),
    [
        (10_000_000, 10_000_000, ModelUnusable, "bf16 needs about 0.4 GB, but cpu has 0.0 GB"),
        (10**12, 10_000_000, NotEnoughFreeMemory, "others use 1000.0 GB now"),
    ],
)
def test_a_full_device_and_a_small_one_are_told_apart(
    embedded_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    total_bytes: int,
    free_bytes: int,
    error: type[Exception],
    text: str,
) -> None:
    def small(_device: torch.device, title: str) -> DeviceMemory:
        return DeviceMemory(
            device=title, total_bytes=total_bytes, free_bytes=free_bytes, number_bytes=4, is_gpu=False
        )

    monkeypatch.setattr(flux, "device_memory", small)
    with pytest.raises(error, match=text):
        FluxEngine(embedded_folder, device="cpu").load(lambda _what, _percent: None)


def test_the_card_says_what_the_manifest_says(embedded_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_folder, tmp_path / "FLUX.1-dev"))
    (folder / "flux-server.json").unlink()
    engine = FluxEngine(folder, device="cpu", threads=1)
    without = engine.load(lambda _what, _percent: None)
    assert without.name == "FLUX.1-dev"
    assert "no flux-server.json" in without.warning

    files = {str(file.relative_to(folder)): file_entry(file) for file in folder.rglob("*") if file.is_file()}
    write_manifest(folder, Manifest(source="somebody/FLUX", revision="a" * 40, files=files))
    card = engine.load(lambda _what, _percent: None)
    assert (card.name, card.revision, card.quantization) == ("somebody/FLUX", "a" * 40, "")
    assert "flux-server.json" not in card.warning


def test_a_broken_manifest_is_named(embedded_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_folder, tmp_path / "FLUX.1-dev"))
    (folder / "flux-server.json").write_text("{}")
    with pytest.raises(ModelUnusable, match=r"flux-server.json: not a manifest"):
        FluxEngine(folder, device="cpu").load(lambda _what, _percent: None)


def test_how_4_bit_weights_are_told() -> None:
    stored = Quantization(components=["transformer", "text_encoder_2"], tool="hqq 0.2.8")
    assert quantization_title(stored) == "hqq 4-bit, groups of 64 (transformer, text_encoder_2)"
    assert quantization_title(None) == ""


def test_a_process_that_no_gpu_would_answer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    for wanted in ("auto", "cuda"):
        with pytest.raises(ModelUnusable, match="the forkserver has asked the driver"):
            choose_device(wanted)
