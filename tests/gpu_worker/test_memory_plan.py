"""Memory plans by table, for FLUX.1-dev's real sizes on cards of all sizes.

`python tests/gpu_worker/test_memory_plan.py` prints the table.
"""

import dataclasses
from typing import get_args

import pytest

from gpu_worker.engines.engine import ModelUnusable, NotEnoughFreeMemory
from gpu_worker.memory_plan import (
    CONTEXT_BYTES,
    DeviceMemory,
    MemoryPlan,
    PlanChoice,
    PlanName,
    choose_plan,
    gigabytes,
    plan_choices,
)
from gpu_worker.model_footprint import ComponentFootprint, ModelFootprint

GIB = 1024**3
CARDS = (8, 10, 12, 16, 24, 32, 48, 80)

# FLUX.1-dev: parameters by its architecture; 4-bit sizes as HQQ with groups of 64 gives them.
PLAIN = ModelFootprint(
    transformer=ComponentFootprint(parameters=11_901_408_320),
    t5=ComponentFootprint(parameters=4_762_310_656),
    clip=ComponentFootprint(parameters=123_060_480),
    vae=ComponentFootprint(parameters=83_819_683),
)
PACKED = dataclasses.replace(
    PLAIN,
    transformer=ComponentFootprint(
        parameters=11_901_408_320,
        packed_bytes=5_940_000_000,
        unpacked_elements=380_000_000,
        largest_packed=18432 * 3072,
    ),
    t5=ComponentFootprint(
        parameters=4_762_310_656,
        packed_bytes=2_315_000_000,
        unpacked_elements=277_000_000,
        largest_packed=4096 * 10240,
    ),
)
TINY = ModelFootprint(
    transformer=ComponentFootprint(parameters=400_000, width=64 / 3072),
    t5=ComponentFootprint(parameters=100_000, width=64 / 4096),
    clip=ComponentFootprint(parameters=60_000),
    vae=ComponentFootprint(parameters=80_000, width=16 / 256),
)


def card(size_gib: float, *, taken_gib: float = 0.0) -> DeviceMemory:
    """Less a twentieth, as drivers keep some."""
    total = int(0.95 * size_gib * GIB)
    return DeviceMemory(
        device=f"cuda:0 (a card of {size_gib:g} GB)",
        total_bytes=total,
        free_bytes=total - CONTEXT_BYTES - int(taken_gib * GIB),
        number_bytes=2,
        is_gpu=True,
    )


def host(size_gib: float) -> DeviceMemory:
    size_bytes = int(size_gib * GIB)
    return DeviceMemory(
        device="cpu", total_bytes=size_bytes, free_bytes=size_bytes, number_bytes=4, is_gpu=False
    )


def told(choice: PlanChoice) -> str:
    return f"{choice.plan}{' tiled' if choice.tiled else ''}"


@pytest.mark.parametrize(
    ("size_gib", "plain", "packed"),
    [
        (8, None, None),
        (10, None, "4bit-t5-cpu tiled"),
        (12, None, "4bit tiled"),
        (16, None, "4bit"),
        (24, None, "4bit"),
        (32, None, "4bit"),
        (48, "bf16", "4bit-expanded"),
        (80, "bf16", "4bit-expanded"),
    ],
)
def test_the_fastest_plan_that_fits(size_gib: float, plain: str | None, packed: str | None) -> None:
    for model, expected in ((PLAIN, plain), (PACKED, packed)):
        if expected is None:
            with pytest.raises(ModelUnusable):
                choose_plan(None, model, card(size_gib))
        else:
            choice = choose_plan(None, model, card(size_gib))
            assert told(choice) == expected
            assert choice.expected_peak_bytes <= card(size_gib).total_bytes


def test_sizes_are_those_that_are_known_of_flux() -> None:
    """MODEL.md's: 23.8 and 6.70 GB for the transformer, 9.52 and 2.87 for T5."""
    for part, plain_gb, packed_gb in (("transformer", 23.8, 6.70), ("t5", 9.52, 2.87)):
        assert getattr(PLAIN, part).weight_bytes(2, expanded=False) / 1e9 == pytest.approx(
            plain_gb, rel=0.005
        )
        stored = getattr(PACKED, part)
        assert stored.weight_bytes(2, expanded=False) / 1e9 == pytest.approx(packed_gb, rel=0.005)
        assert stored.weight_bytes(2, expanded=True) == getattr(PLAIN, part).weight_bytes(2, expanded=True)
        estimate = getattr(PLAIN.packed(), part)
        assert estimate.weight_bytes(2, expanded=False) / 1e9 == pytest.approx(packed_gb, rel=0.08)


def test_each_plan_takes_less_than_the_one_before() -> None:
    for tiled in (False, True):
        peaks = [it.expected_peak_bytes for it in plan_choices(PACKED, card(80)) if it.tiled is tiled]
        assert peaks == sorted(peaks, reverse=True)
        assert len(set(peaks)) == len(peaks) == 4


@pytest.mark.parametrize(
    ("wanted", "model", "size_gib", "expected"),
    [
        (MemoryPlan.BF16, PLAIN, 80, "bf16"),
        (MemoryPlan.PACKED, PACKED, 80, "4bit"),
        (MemoryPlan.PACKED, PACKED, 12, "4bit tiled"),
        (MemoryPlan.T5_OFFLOADED, PACKED, 12, "4bit-t5-offload"),
        (MemoryPlan.T5_ON_CPU, PACKED, 12, "4bit-t5-cpu"),
        (MemoryPlan.EXPANDED, PACKED, 48, "4bit-expanded"),
    ],
)
def test_a_plan_that_was_asked_for(
    wanted: MemoryPlan, model: ModelFootprint, size_gib: float, expected: str
) -> None:
    assert told(choose_plan(wanted, model, card(size_gib))) == expected


@pytest.mark.parametrize(
    ("wanted", "model", "size_gib", "texts"),
    [
        (
            MemoryPlan.BF16,
            PLAIN,
            24,
            ["memory plan bf16 needs about", "has 24.5 GB", "quantize", "then 4bit"],
        ),
        (None, PLAIN, 12, ["memory plan bf16 needs about", "python -m gpu_worker quantize", "would fit"]),
        (None, PLAIN, 4, ["memory plan bf16 needs about", "no memory plan fits"]),
        (None, PACKED, 8, ["memory plan 4bit-t5-cpu needs about", "has 8.2 GB", "no memory plan fits"]),
        (MemoryPlan.EXPANDED, PACKED, 32, ["4bit-expanded needs about", "memory plan 4bit would fit"]),
        (MemoryPlan.PACKED, PACKED, 10, ["plan 4bit needs about", "memory plan 4bit-t5-cpu would fit"]),
        (MemoryPlan.BF16, PACKED, 80, ["4-bit ones", "4bit-expanded makes them plain"]),
        (MemoryPlan.T5_ON_CPU, PLAIN, 80, ["plain ones", "python -m gpu_worker quantize"]),
    ],
)
def test_a_plan_that_cannot_fit_is_refused_with_what_would(
    wanted: MemoryPlan | None, model: ModelFootprint, size_gib: float, texts: list[str]
) -> None:
    with pytest.raises(ModelUnusable) as refused:
        choose_plan(wanted, model, card(size_gib))
    for text in texts:
        assert text in str(refused.value)


def test_what_others_take_leaves_a_smaller_plan_or_is_a_reason_to_wait() -> None:
    assert told(choose_plan(None, PACKED, card(24, taken_gib=11))) == "4bit tiled"
    with pytest.raises(
        NotEnoughFreeMemory, match=r"4bit-t5-cpu needs about 8.\d GB; .* others use 19.3 GB now"
    ):
        choose_plan(None, PACKED, card(24, taken_gib=18))
    with pytest.raises(NotEnoughFreeMemory, match=r"memory plan bf16 needs about .* others use 53.7 GB now"):
        choose_plan(MemoryPlan.BF16, PLAIN, card(80, taken_gib=50))


def test_a_context_that_is_there_already_counts_once() -> None:
    exact = choose_plan(MemoryPlan.PACKED, PACKED, card(80)).expected_peak_bytes
    memory = dataclasses.replace(card(80), total_bytes=exact, free_bytes=exact - CONTEXT_BYTES)
    assert told(choose_plan(MemoryPlan.PACKED, PACKED, memory)) == "4bit"
    less = dataclasses.replace(memory, free_bytes=memory.free_bytes - 1)
    assert told(choose_plan(MemoryPlan.PACKED, PACKED, less)) == "4bit tiled"


def test_on_the_cpu_weights_are_twice_as_large_and_t5_saves_nothing() -> None:
    assert told(choose_plan(None, PLAIN, host(128))) == "bf16"
    assert choose_plan(None, PLAIN, host(128)).title(host(128)).startswith("fp32, about 7")
    with pytest.raises(ModelUnusable, match="quantize the model first"):
        choose_plan(None, PLAIN, host(32))
    peaks = {it.plan: it.expected_peak_bytes for it in plan_choices(PACKED, host(64)) if not it.tiled}
    assert peaks[MemoryPlan.T5_ON_CPU] == peaks[MemoryPlan.T5_OFFLOADED] == peaks[MemoryPlan.PACKED]


def test_the_embedded_model_fits_anywhere() -> None:
    choice = choose_plan(None, TINY, host(1))
    assert told(choice) == "bf16"
    assert choice.title(host(1)) == "fp32, about 0.6 GB expected"


def test_every_plan_can_be_asked_for() -> None:
    assert get_args(PlanName) == ("auto", *(plan.value for plan in MemoryPlan))


def test_titles() -> None:
    assert choose_plan(None, PACKED, card(12)).title(card(12)) == "4bit, VAE in tiles, about 11.7 GB expected"
    assert choose_plan(None, PLAIN, card(80)).title(card(80)) == "bf16, about 37.4 GB expected"


def table() -> str:
    """For the documentation."""
    rows = ["| card | plain folder | 4-bit folder |", "|---|---|---|"]
    for size_gib in CARDS:
        cells = []
        for model in (PLAIN, PACKED):
            try:
                choice = choose_plan(None, model, card(size_gib))
                cells.append(f"{told(choice)}, {gigabytes(choice.expected_peak_bytes)}")
            except ModelUnusable as refused:
                cells.append(f"refused ({str(refused).rpartition('; ')[2]})")
        rows.append(f"| {size_gib} GB | {' | '.join(cells)} |")
    rows += ["", "| plan | expected peak | with the VAE in tiles |", "|---|---|---|"]
    peaks = {
        (it.plan, it.tiled): gigabytes(it.expected_peak_bytes)
        for model in (PLAIN, PACKED)
        for it in plan_choices(model, card(80))
    }
    rows += [f"| {plan} | {peaks[plan, False]} | {peaks[plan, True]} |" for plan in MemoryPlan]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
