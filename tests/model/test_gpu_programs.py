"""The programs that measure on a GPU (tests/gpu), with small models on a CPU: they must not rot here."""

import json
from pathlib import Path

import pytest
from gpu.back_to_back import measure_pause
from gpu.bench import plan_rows
from gpu.measure import main as measure
from gpu.random_flux import T5_TOKENS, make_random_flux

from gpu_worker.engines.flux import FluxEngine
from gpu_worker.memory_plan import MemoryPlan


@pytest.fixture(scope="module")
def random_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "random-flux"
    make_random_flux(folder, "small")
    return folder


def test_prompts_are_as_long_as_the_real_ones(random_flux: Path) -> None:
    engine = FluxEngine(random_flux, device="cpu", threads=1)
    engine.load(lambda _what, _percent: None)
    assert engine._loaded is not None
    encoded, _ = engine._loaded.text.encode("a cat")
    assert encoded.prompt_embeds.shape[1] == T5_TOKENS


def test_a_plan_is_measured_beside_the_stock_pipeline(
    random_flux: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(random_flux), "--plan", "bf16", "--device", "cpu", "--sizes", "64", "96", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["measure", *given, "--rounds", "1", "--stock"])
    measure()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [size["side"] for size in figures["sizes"]] == [64, 96]
    for size in figures["sizes"]:
        parts = size["text_s"] + 2 * size["step_s"] + size["decode_s"]
        assert 0 < parts < 2 * size["whole_s"]
        assert size["stock_s"] > 0
    rows = plan_rows(figures)
    assert len(rows) == 2
    assert rows[0].startswith(f"| {MemoryPlan.BF16.value} | 64² |")


def test_the_pause_between_two_jobs_is_measured(random_flux: Path) -> None:
    pauses = measure_pause(random_flux, "cpu", side=64, steps=1, jobs=3)
    assert (len(pauses.gaps_s), len(pauses.png_delays_s)) == (2, 3)
    assert all(pause_s > 0 for pause_s in pauses.gaps_s)
