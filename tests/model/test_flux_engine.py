"""The FLUX engine on the embedded model's folder, which is a FLUX model like any other."""

import asyncio
import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.engine_process import EngineProcess
from gpu_worker.engines import flux
from gpu_worker.engines.device_errors import is_out_of_memory, is_poisoned
from gpu_worker.engines.engine import (
    EngineBroken,
    EngineJob,
    JobCancelled,
    ModelUnusable,
    NonFiniteImage,
    OutOfDeviceMemory,
    RgbImage,
)
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.events import EngineEvent, EngineExited, EngineFinished, EngineReady
from gpu_worker.manifest import MANIFEST_NAME
from gpu_worker.model_store import EngineChoice, FluxFolder
from proto.messages import ImageParameters, JobPhase, ModelCard

PROMPT = "a futuristic cityscape"
LIMIT_S = 55.0


def silent(_phase: JobPhase, _step: int) -> None:
    pass


def job(
    height: int = 64,
    width: int = 64,
    *,
    prompt: str = PROMPT,
    steps: int = 2,
    seed: int = 1,
    guidance: float = 3.5,
) -> EngineJob:
    parameters = ImageParameters(height=height, width=width, steps=steps, guidance=guidance, seed=seed)
    return EngineJob(execution_id=b"E" * 16, job_id=b"J" * 16, prompt=prompt, parameters=parameters)


def load(folder: Path) -> tuple[FluxEngine, ModelCard]:
    engine = FluxEngine(folder, device="cpu", threads=1)
    return engine, engine.load(lambda _what, _percent: None)


@pytest.fixture(scope="module")
def engine(embedded_folder: Path) -> FluxEngine:
    loaded, _ = load(embedded_folder)
    loaded.warm_up()
    return loaded


def pipeline_of(engine: FluxEngine) -> Any:
    assert engine._loaded is not None
    return engine._loaded.pipeline


# --- Pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 500), (1023, 1), (16, 16), (15, 33)])
def test_exactly_the_size_asked_for(engine: FluxEngine, height: int, width: int) -> None:
    image = engine.generate(job(height, width), silent).image
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8


def test_the_largest_size(engine: FluxEngine) -> None:
    assert engine.generate(job(1024, 1024, steps=1), silent).image.shape == (1024, 1024, 3)


def test_a_cropped_picture_is_the_middle_of_the_next_multiple(engine: FluxEngine) -> None:
    whole, cropped = (engine.generate(job(*size), silent).image for size in ((64, 48), (60, 33)))
    assert (whole[2:62, 7:40] == cropped).all()


def test_same_seed_same_bytes_and_everything_else_matters(engine: FluxEngine) -> None:
    def drawn(**changes: Any) -> bytes:
        return engine.generate(job(**changes), silent).image.tobytes()

    first = drawn()
    others = [drawn(seed=2), drawn(seed=2**64 - 1), drawn(seed=0), drawn(prompt="a cat"), drawn(prompt="")]
    others += [drawn(steps=3), drawn(guidance=9.0)]
    assert len({first, *others}) == 1 + len(others)
    assert drawn() == first, "also after other jobs"


def test_prompts_of_all_kinds(engine: FluxEngine) -> None:
    for prompt in ("", " ", "\n", "\x00", "x" * 8192, "猫" * 2000, "\U0001f431", "<|endoftext|></s><pad>"):
        assert engine.generate(job(prompt=prompt, steps=1), silent).image.shape == (64, 64, 3)


def test_nothing_is_printed(engine: FluxEngine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.generate(job(prompt="secret " * 500), silent)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_progress_in_order(engine: FluxEngine) -> None:
    told: list[tuple[JobPhase, int]] = []
    engine.generate(job(steps=3), lambda phase, step: told.append((phase, step)))
    steps = [(JobPhase.STEP, step) for step in range(4)]
    assert told == [(JobPhase.TEXT, 0), *steps, (JobPhase.DECODE, 3)]


@pytest.mark.parametrize(
    "moment", [(JobPhase.TEXT, 0), (JobPhase.STEP, 0), (JobPhase.STEP, 2), (JobPhase.DECODE, 20)]
)
def test_cancel_stops_at_once_and_leaves_no_trace(engine: FluxEngine, moment: tuple[JobPhase, int]) -> None:
    before = engine.generate(job(), silent).image
    told: list[tuple[JobPhase, int]] = []

    def cancel(phase: JobPhase, step: int) -> None:
        told.append((phase, step))
        if told[-1] == moment:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        engine.generate(job(steps=20, seed=9), cancel)
    assert told[-1] == moment
    assert (engine.generate(job(), silent).image == before).all()


# --- What goes wrong while drawing -------------------------------------------------------------


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_arguments: Any, **_named: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfDeviceMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfDeviceMemory),
        (MemoryError(), OutOfDeviceMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), EngineBroken),
        (RuntimeError("CUDA error: out of memory"), OutOfDeviceMemory),
        (RuntimeError("shapes do not match"), RuntimeError),
        (ValueError("odd"), ValueError),
    ],
)
def test_errors_are_told_apart(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(pipeline_of(engine).transformer, "forward", failing(raised))
        with pytest.raises(expected) as caught:
            engine.generate(job(), silent)
    assert type(caught.value) is expected
    if expected is not type(raised):
        assert caught.value.__context__ is None, "nothing keeps the failed job's tensors alive"
    assert engine.generate(job(), silent).image.shape == (64, 64, 3)


def test_what_a_job_leaves_behind_is_freed_however_it_ends(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, freed = pipeline_of(engine), list[str]()
    hooks_freed = pipeline.maybe_free_model_hooks
    monkeypatch.setattr(
        pipeline, "maybe_free_model_hooks", lambda: (freed.append("hooks"), hooks_freed()), raising=False
    )
    monkeypatch.setattr(flux, "free_memory", lambda _device: freed.append("memory"))

    def cancel(_phase: JobPhase, _step: int) -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        engine.generate(job(), cancel)
    # Otherwise a cache of diffusers leaks one request's state into the next.
    assert freed == ["hooks"]
    freed.clear()
    with monkeypatch.context() as patched:
        patched.setattr(
            pipeline.transformer, "forward", failing(torch.OutOfMemoryError("CUDA out of memory"))
        )
        with pytest.raises(OutOfDeviceMemory):
            engine.generate(job(), silent)
    assert freed == ["hooks", "memory", "hooks", "memory"], "before the second try, too"


def test_accelerator_errors_are_poison() -> None:
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    error = kind("CUDA error: device-side assert triggered")
    assert is_poisoned(error)
    assert not is_out_of_memory(error)


def spoil(parameter: torch.nn.Parameter, value: float) -> Callable[[], None]:
    """Puts the value into the tensor, and returns what undoes it."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.view(-1)[0] = value

    def restore() -> None:
        with torch.no_grad():
            parameter.copy_(before)

    return restore


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_model_gone_wrong_is_a_failure_and_no_black_picture(
    engine: FluxEngine, part: str, value: float
) -> None:
    pipeline = pipeline_of(engine)
    restore = spoil(
        pipeline.transformer.proj_out.bias if part == "transformer" else pipeline.vae.decoder.conv_out.bias,
        value,
    )
    try:
        with pytest.raises(NonFiniteImage, match="latents" if part == "transformer" else "image"):
            engine.generate(job(), silent)
    finally:
        restore()
    assert engine.generate(job(), silent).image.std() > 0


def test_a_killed_engine_process_would_leave_no_semaphore(engine: FluxEngine) -> None:
    engine.generate(job(), silent)
    assert type(tqdm.get_lock()) is type(threading.RLock())


def test_generate_before_load_is_our_own_mistake(embedded_folder: Path) -> None:
    with pytest.raises(RuntimeError, match="before load"):
        FluxEngine(embedded_folder, device="cpu").generate(job(), silent)


# --- Loading -----------------------------------------------------------------------------------


def test_loading_tells_progress_and_the_card_says_what_was_loaded(embedded_folder: Path) -> None:
    told: list[tuple[str, int]] = []
    card = FluxEngine(embedded_folder, device="auto", threads=1).load(
        lambda what, percent: told.append((what, percent))
    )
    assert [percent for _, percent in told] == sorted(percent for _, percent in told)
    assert "loading transformer" in {what for what, _ in told}
    assert (card.engine, card.name) == ("flux", "embedded-flux")
    if not torch.cuda.is_available():
        assert (card.precision, card.device) == ("fp32", "cpu")
        assert "CPU" in card.warning


@pytest.fixture
def copied(embedded_folder: Path, tmp_path: Path) -> Path:
    """Without its manifest, which would find all of this before the files are read."""
    return Path(
        shutil.copytree(
            embedded_folder, tmp_path / "FLUX.1-dev", ignore=shutil.ignore_patterns(MANIFEST_NAME)
        )
    )


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelUnusable) as refused:
        load(folder)
    assert str(folder) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_tensors_must_be_those_of_the_model(copied: Path, part: str) -> None:
    file = weights(copied, part)
    whole = load_file(file)
    # Not one that exists under two names.
    name = next(name for name in whole if "embed_tokens" not in name and "shared" not in name)

    save_file({other: tensor for other, tensor in whole.items() if other != name}, file, {"format": "pt"})
    missing = refusal(copied)
    save_file(whole | {"stranger.weight": torch.zeros(3)}, file, {"format": "pt"})
    unexpected = refusal(copied)
    save_file(whole | {name: torch.zeros(7, 5, 3)}, file, {"format": "pt"})
    reshaped = refusal(copied)

    assert f"{part}: {name} missing" in missing
    assert f"{part}: stranger.weight unexpected" in unexpected
    assert part in reshaped
    save_file(whole, file, {"format": "pt"})
    load(copied)


def test_pickled_weights_are_refused(copied: Path) -> None:
    file = weights(copied, "text_encoder")
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    assert "text_encoder has no .safetensors file; pytorch_model.bin is not read" in refusal(copied)


def test_missing_and_damaged_parts_are_named(copied: Path, tmp_path: Path) -> None:
    whole = weights(copied, "vae").read_bytes()
    weights(copied, "vae").write_bytes(whole[:5000])
    assert f"{weights(copied, 'vae')}: cannot be read" in refusal(copied)
    weights(copied, "vae").write_bytes(whole)
    shutil.copyfile(copied / "vae" / "config.json", copied / "transformer" / "config.json")
    assert f"{copied / 'transformer'}: cannot be loaded" in refusal(copied)
    (copied / "transformer" / "config.json").write_text("{")
    assert "transformer/config.json: cannot be read" in refusal(copied)
    (copied / "transformer" / "config.json").write_text("{}")
    shutil.rmtree(copied / "scheduler")
    assert "folder scheduler is missing" in refusal(copied)
    assert "no such folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("device", ["cuda:99", "cuda:7"])
def test_a_device_that_is_not_there(embedded_folder: Path, device: str) -> None:
    with pytest.raises(ModelUnusable, match=f"device {device}: torch sees"):
        FluxEngine(embedded_folder, device=device).load(lambda _what, _percent: None)


# --- In its process ----------------------------------------------------------------------------


class Watched:
    def __init__(self, choice: EngineChoice) -> None:
        self.events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self.process = EngineProcess(
            1, choice, EngineOptions(device="cpu", threads=1), self.events.put_nowait
        )

    async def until(self, *kinds: type[EngineEvent]) -> EngineEvent:
        async with asyncio.timeout(LIMIT_S):
            while not isinstance(event := await self.events.get(), kinds):
                pass
        return event


async def test_a_picture_from_the_engine_process(engine: FluxEngine, embedded_folder: Path) -> None:
    watched = Watched(FluxFolder(path=embedded_folder))
    watched.process.start()
    try:
        ready = await watched.until(EngineReady, EngineExited)
        assert isinstance(ready, EngineReady), ready
        assert ready.model.engine == "flux"
        watched.process.run(job(17, 50))
        finished = await watched.until(EngineFinished, EngineExited)
    finally:
        watched.process.kill()
        await watched.process.wait_gone()
    assert isinstance(finished, EngineFinished), finished
    assert (decoded(bytes(finished.png)) == engine.generate(job(17, 50), silent).image).all(), (
        "same seed, same pixels"
    )


def decoded(png: bytes) -> RgbImage:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image)
