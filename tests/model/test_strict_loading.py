"""Plain model folders: as the libraries load them, or refused by name; nothing in them runs."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from model_folders import (
    CPU,
    change,
    load,
    refusal,
    shard,
    tensors_of,
    weights,
)
from safetensors.torch import save_file

from gpu_worker.block_layout import METADATA_KEY
from gpu_worker.engines import flux_loading, strict_loading
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.flux_architecture import LargeComponent, empty_model
from gpu_worker.engines.flux_loading import load_pipeline
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.load_progress import BytesRead
from gpu_worker.engines.quantized_linear import QuantizedLinear
from gpu_worker.engines.strict_loading import Destination
from gpu_worker.engines.weight_files import read_header

PARTS = ("transformer", "text_encoder_2", "text_encoder", "vae")


# --- What is right -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_as_the_libraries_own_loading(embedded_folder: Path, dtype: torch.dtype) -> None:
    ours = load(embedded_folder, dtype=dtype)
    theirs = FluxPipeline.from_pretrained(
        embedded_folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    for part in PARTS:
        mine, other = getattr(ours, part), getattr(theirs, part)
        assert type(mine) is type(other)
        assert not mine.training
        expected, found = other.state_dict(), mine.state_dict()
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype is dtype
            assert torch.equal(found[name], tensor)
    t5, their_t5 = ours.text_encoder_2, theirs.text_encoder_2
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert t5.config._attn_implementation == their_t5.config._attn_implementation
    assert t5.config.to_dict() | {"_name_or_path": ""} == their_t5.config.to_dict() | {"_name_or_path": ""}
    assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)


def test_weights_are_no_views_of_their_files(plain: Path) -> None:
    """A file that is changed or cut later would change the model, or end the process."""
    pipeline = load(plain)
    mapped = Path("/proc/self/maps").read_text()
    assert str(plain) not in mapped
    before = pipeline.transformer.proj_out.weight.clone()
    weights(plain / "transformer").write_bytes(b"")
    assert torch.equal(pipeline.transformer.proj_out.weight, before)


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_shards_are_one_model(plain: Path, component: str) -> None:
    whole = getattr(load(plain), component).state_dict()
    shard(plain / component)
    for name, tensor in getattr(load(plain), component).state_dict().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("names", [{"shared"}, {"encoder.embed_tokens"}, {"shared", "encoder.embed_tokens"}])
def test_t5_s_embedding_under_either_name(plain: Path, names: set[str]) -> None:
    expected = load(plain).text_encoder_2.shared.weight

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors.pop("shared.weight")
        tensors |= {f"{name}.weight": embedding.clone() for name in names}

    change(weights(plain / "text_encoder_2"), rename)
    t5 = load(plain).text_encoder_2
    assert torch.equal(t5.shared.weight, expected)
    assert t5.encoder.embed_tokens.weight is t5.shared.weight


def test_t5_s_embedding_with_two_values(plain: Path) -> None:
    def differ(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1

    change(weights(plain / "text_encoder_2"), differ)
    assert "shared.weight is stored twice, with different values" in refusal(plain)


def test_each_layer_is_expanded_before_the_next_one_is_read(
    quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never is all of the model there in both forms."""
    alive: list[int] = []
    expanded = QuantizedLinear.expanded

    def counting(layer: QuantizedLinear) -> Any:
        alive.append(sum(isinstance(module, QuantizedLinear) for module in model.modules()))
        return expanded(layer)

    model = empty_model("transformer", quantized / "transformer")
    monkeypatch.setattr(QuantizedLinear, "expanded", counting)
    files = [read_header(path) for path in sorted((quantized / "transformer").glob("*.safetensors"))]
    to = Destination(device=CPU, dtype=torch.float32, expand=True)
    strict_loading.fill(model, files, {}, to, lambda _count: None)
    assert alive == [0] * 52


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: unspecified"),
    ],
)
def test_what_the_device_cannot_do_is_no_fault_of_the_files(
    plain: Path, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(flux_loading, "fill", failing)
    with pytest.raises(type(error)) as caught:
        load(plain)
    assert caught.value is error


def test_each_model_goes_where_the_plan_wants_it(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: dict[str, torch.device] = {}
    load_large = flux_loading.load_large

    def placing(
        name: LargeComponent, folder: Path, files: Any, to: Destination, on_bytes: Callable[[int], None]
    ) -> Any:
        places[name] = to.device
        return load_large(name, folder, files, dataclasses.replace(to, device=CPU), on_bytes)

    monkeypatch.setattr(flux_loading, "load_large", placing)
    gpu = torch.device("cuda", 0)
    for device, t5_device in [(CPU, gpu), (CPU, CPU)]:
        how = LoadPlan(
            device=device, t5_device=t5_device, dtype=torch.float32, t5_dtype=torch.float32, expand=False
        )
        load_pipeline(plain, how, lambda _what, _percent: None)
        assert places == {"transformer": device, "text_encoder_2": t5_device}


def test_progress_counts_the_bytes_that_are_checked_and_loaded(quantized: Path) -> None:
    told: list[tuple[str, int]] = []
    how = LoadPlan(device=CPU, t5_device=CPU, dtype=torch.float32, t5_dtype=torch.float32, expand=False)
    load_pipeline(quantized, how, lambda what, percent: told.append((what, percent)))
    assert len(set(told)) == len(told)
    percents = [percent for _, percent in told]
    assert percents == sorted(percents)
    assert percents[-1] >= 95
    order = list(dict.fromkeys(what for what, _ in told))
    assert order == [
        "checking the model's files",
        "loading transformer",
        "loading text_encoder_2",
        "loading text_encoder",
        "loading vae",
    ]
    assert len([what for what, _ in told if what == "loading transformer"]) > 5


def test_progress_never_exceeds_all_of_it() -> None:
    told: list[tuple[str, int]] = []
    progress = BytesRead(10, lambda what, percent: told.append((what, percent)))
    progress.begin("reading")
    for count in (1, 0, 8, 5):
        progress.add(count)
    assert told == [("reading", 0), ("reading", 10), ("reading", 90), ("reading", 100)]


# --- Plain folders that are wrong --------------------------------------------------------------


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64, torch.float8_e4m3fn])
def test_weights_of_another_type(plain: Path, component: str, dtype: torch.dtype) -> None:
    name = "proj_out.bias" if component == "transformer" else "encoder.final_layer_norm.weight"
    change(weights(plain / component), lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert f"{component}: {name} of a type that is not expected" in refusal(plain)


def test_several_faults_are_told_at_once(plain: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["proj_out.bias"], tensors["proj_out.weight"]
        tensors["stranger"] = torch.zeros(1)
        tensors["x_embedder.bias"] = torch.zeros(1)

    change(weights(plain / "transformer"), spoil)
    said = refusal(plain)
    assert "proj_out.bias and 1 more missing; stranger unexpected; x_embedder.bias of another shape" in said


@pytest.mark.parametrize("component", PARTS)
@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file(plain: Path, component: str, kept: int) -> None:
    file = weights(plain / component)
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file}: cannot be read" in refusal(plain)


def test_a_file_with_an_impossible_header(plain: Path) -> None:
    file = weights(plain / "transformer")
    file.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert f"{file}: cannot be read" in refusal(plain)


@pytest.mark.parametrize("component", PARTS)
def test_pickled_weights(plain: Path, component: str) -> None:
    file = weights(plain / component)
    torch.save(tensors_of(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    assert f"folder {component} has no .safetensors file; pytorch_model.bin is not read" in refusal(plain)


def test_a_pickle_under_another_name(plain: Path) -> None:
    file = weights(plain / "transformer")
    torch.save(tensors_of(file), file)
    assert f"{file}: cannot be read" in refusal(plain)


def test_code_planted_in_hqq_s_way_is_not_run(plain: Path, tmp_path: Path) -> None:
    """hqq's own loader takes text from tensors and from there to `eval`."""
    trace = tmp_path / "it ran"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    as_tensor = torch.tensor([ord(letter) for letter in code])
    file = weights(plain / "text_encoder_2")
    layer = "encoder.block.0.layer.1.DenseReluDense.wo"
    tensors = tensors_of(file)
    weight = tensors.pop(f"{layer}.weight")
    tensors |= {
        f"{layer}.W_q": weight.to(torch.uint8),
        f"{layer}.compute_dtype": as_tensor,
        f"{layer}.shape": as_tensor.clone(),
        f"{layer}.encoded_state_dict": torch.tensor([1]),
    }
    save_file(tensors, file, {"format": code, METADATA_KEY: code})
    assert f"{file}: not a 4-bit file of this version" in refusal(plain)
    save_file(tensors, file, {"format": code, "compute_dtype": code})
    assert f"{layer}.weight missing; {layer}.W_q and 3 more unexpected" in refusal(plain)
    assert not trace.exists()


@pytest.mark.parametrize("component", PARTS)
@pytest.mark.parametrize(
    "shard_name",
    [
        "../vae/diffusion_pytorch_model.safetensors",
        "/etc/passwd",
        "..",
        "a\\b.safetensors",
        "model.bin",
        "",
        7,
    ],
)
def test_an_index_that_names_no_shard_beside_it(plain: Path, component: str, shard_name: object) -> None:
    index = shard(plain / component)
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = shard_name
    index.write_text(json.dumps(content))
    assert f"{index}: " in (said := refusal(plain))
    assert f"{shard_name!r}: no name of a shard beside it" in said


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000]
)
def test_an_index_that_is_none(plain: Path, content: str) -> None:
    index = shard(plain / "transformer")
    index.write_text(content)
    assert str(index) in refusal(plain)


def test_an_index_and_its_shards_must_agree(plain: Path) -> None:
    index = shard(plain / "transformer")
    whole = json.loads(index.read_text())
    first, second = sorted(set(whole["weight_map"].values()))

    def indexed(weight_map: dict[str, str]) -> str:
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return refusal(plain)

    weight_map = whole["weight_map"]
    only_first = {name: file for name, file in weight_map.items() if file == first}
    assert f"{second}: does not belong to" in indexed(only_first)
    less = dict(weight_map)
    lost = less.popitem()[0]
    assert f"{lost} in {second} is not listed" in indexed(less)
    assert f"ghost is not in {first}" in indexed(weight_map | {"ghost": first})
    assert f"{lost} is in {second}, not in {first}" in indexed(weight_map | {lost: first})
    (index.parent / second).rename(index.parent / "elsewhere")
    assert f"{second} is missing" in indexed(weight_map)


def test_a_tensor_in_two_shards(plain: Path) -> None:
    index = shard(plain / "transformer")
    first, second = sorted(index.parent.glob("*.safetensors"))
    twice = next(iter(tensors_of(second)))
    change(first, lambda tensors: tensors.update({twice: tensors_of(second)[twice]}))
    assert f"{twice} is both in {first.name} and in {second.name}" in refusal(plain)


def test_files_of_which_nobody_knows_which_are_meant(plain: Path) -> None:
    file = weights(plain / "transformer")
    shutil.copy(file, file.with_name("model.fp16.safetensors"))
    assert "model.fp16.safetensors: does not belong to diffusion_pytorch_model" in refusal(plain)
    file.with_name("model.fp16.safetensors").rename(file.with_name("model.safetensors"))
    assert "only one of them can be meant" in refusal(plain)
    file.unlink()
    file.with_name("model.safetensors").rename(file.with_name("weights.safetensors"))
    assert "neither diffusion_pytorch_model.safetensors nor model.safetensors" in refusal(plain)


@pytest.mark.parametrize(
    ("component", "content"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}),
        ("transformer", {}),
        ("text_encoder_2", {"model_type": "umt5"}),
        ("text_encoder_2", {"architectures": ["T5EncoderModel"]}),
        ("text_encoder_2", {"model_type": "t5", "auto_map": {"AutoModel": "evil.Model"}}),
    ],
)
def test_the_configuration_of_another_model(plain: Path, component: str, content: dict[str, Any]) -> None:
    (plain / component / "config.json").write_text(json.dumps(content))
    assert str(plain / component) in refusal(plain)


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("transformer", {"num_attention_heads": 10**400}),
        ("transformer", {"num_layers": "two"}),
        ("text_encoder_2", {"d_model": -64}),
        ("text_encoder_2", {"num_heads": "four"}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("vae", {"block_out_channels": []}),
    ],
)
def test_a_configuration_that_makes_no_sense_is_named(
    plain: Path, component: str, changes: dict[str, object]
) -> None:
    file = plain / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelUnusable, match=component):
        FluxEngine(plain, device="cpu", threads=1).load(lambda _what, _percent: None)
