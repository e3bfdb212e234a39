"""The fake engine: whose image it is can be read from its pixels, and it fails when told to."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpu_worker.engines.engine import (
    EngineBroken,
    EngineJob,
    JobCancelled,
    NonFiniteImage,
    OutOfDeviceMemory,
)
from gpu_worker.engines.fake import (
    DamagedImageError,
    FakeEngine,
    FakeImageContent,
    Fault,
    faults_of,
    prompt_digest,
    read_fake_image,
)
from gpu_worker.png import encode_png
from proto.messages import ImageParameters, JobPhase


def job(prompt: str = "a cat", height: int = 64, width: int = 64, steps: int = 3, seed: int = 7) -> EngineJob:
    parameters = ImageParameters(height=height, width=width, steps=steps, guidance=3.5, seed=seed)
    return EngineJob(execution_id=b"E" * 16, job_id=b"J" * 16, prompt=prompt, parameters=parameters)


def draw(wanted: EngineJob, faults: bool = False) -> bytes:
    engine = FakeEngine(step_s=0, faults=faults)
    return encode_png(engine.generate(wanted, lambda _phase, _step: None).image)


@given(
    prompt=st.text(max_size=50),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    steps=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_image_tells_whose_it_is_or_is_too_small(
    prompt: str, height: int, width: int, steps: int, seed: int
) -> None:
    wanted = job(prompt, height, width, steps, seed)
    png = draw(wanted)
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (width, height)
    content = read_fake_image(png)
    if height * width < 50:
        assert content is None
    elif height * width >= 120:
        assert content == FakeImageContent(
            job_id=wanted.job_id,
            execution_id=wanted.execution_id,
            prompt_digest=prompt_digest(prompt),
            height=height,
            width=width,
            steps=steps,
            guidance=3.5,
            seed=seed,
        )


def test_same_job_gives_same_bytes_and_another_seed_others() -> None:
    assert draw(job(seed=1)) == draw(job(seed=1))
    assert draw(job(seed=1)) != draw(job(seed=2))


def png_of(pixels: np.ndarray) -> bytes:
    return encode_png(pixels.astype(np.uint8))


def test_damaged_images_are_told_from_small_ones() -> None:
    png = draw(job())
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.array(image)
    wrong_text, foreign, transposed, endless = pixels.copy(), pixels.copy(), pixels[:, :32], pixels.copy()
    wrong_text[0, 10] ^= 1
    foreign[0, 0] ^= 1
    endless[0, 2, 2] = 0xFF
    for damaged, reason in (
        (png_of(wrong_text), "checksum"),
        (png_of(foreign), "mark"),
        (png_of(transposed), "checksum"),
        (png_of(pixels[:40]), "says 64 x 64"),
        (png_of(endless), "claims"),
        (png[:-200], "PNG"),
        (b"", "PNG"),
    ):
        with pytest.raises(DamagedImageError, match=reason):
            read_fake_image(damaged)


def test_progress_is_told_in_order() -> None:
    told: list[tuple[JobPhase, int]] = []
    FakeEngine(step_s=0, faults=False).generate(job(), lambda phase, step: told.append((phase, step)))
    steps = [(JobPhase.STEP, step) for step in range(4)]
    assert told == [(JobPhase.TEXT, 0), *steps, (JobPhase.DECODE, 3)]


def test_cancelling_stops_it_between_two_steps() -> None:
    told: list[int] = []

    def cancel_at_2(phase: JobPhase, step: int) -> None:
        told.append(step)
        if (phase, step) == (JobPhase.STEP, 2):
            raise JobCancelled

    with pytest.raises(JobCancelled):
        FakeEngine(step_s=0, faults=False).generate(job(steps=20), cancel_at_2)
    assert told[-1] == 2


@pytest.mark.parametrize(
    ("prompt", "faults"),
    [
        ("a cat !crash@3", {3: Fault.CRASH}),
        ("!hang@0 then !oom@12", {0: Fault.HANG, 12: Fault.OUT_OF_MEMORY}),
        ("!error@1 !nonfinite@1", {1: Fault.ERROR}),
        ("!poisoned@2", {2: Fault.POISONED}),
        ("!crash", {}),
        ("!crash@", {}),
        ("!crash@-1", {}),
        ("!crash@1.5", {}),
        ("!crash@12345", {}),
        ("wow!crash@1", {}),
        ("!crash@1!", {}),
        ("!CRASH@1", {}),
        ("!explode@1", {}),
        ("!crash@٣", {}),
    ],
)
def test_markers_are_read_strictly(prompt: str, faults: dict[int, Fault]) -> None:
    assert faults_of(prompt) == faults


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("!oom@1", OutOfDeviceMemory),
        ("!error@2", RuntimeError),
        ("!nonfinite@0", NonFiniteImage),
        ("!poisoned@3", EngineBroken),
    ],
)
def test_faults_happen_only_where_they_are_enabled(prompt: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="fake"):
        draw(job(prompt), faults=True)
    assert read_fake_image(draw(job(prompt), faults=False)) is not None


def test_loading_tells_its_progress_and_the_card_warns() -> None:
    told: list[int] = []
    card = FakeEngine(step_s=0, faults=False).load(lambda _activity, percent: told.append(percent))
    assert told == sorted(told)
    assert len(told) > 2
    assert card.engine == "fake"
    assert "tests only" in card.warning


@pytest.mark.parametrize("size_bytes", [1, 5000, 1024 * 1024])
def test_a_prepared_png_has_the_size_that_was_asked_for(size_bytes: int) -> None:
    engine = FakeEngine(step_s=0, faults=False, png_bytes=size_bytes)
    drawing = engine.generate(job(height=48, width=80), lambda _phase, _step: None)
    assert drawing.png is not None
    with Image.open(io.BytesIO(drawing.png)) as image:
        assert image.size == (80, 48)
        assert np.array_equal(np.asarray(image), drawing.image)
    assert size_bytes <= len(drawing.png) <= max(size_bytes, 300)
    assert engine.generate(job(height=48, width=80), lambda _phase, _step: None) is drawing
