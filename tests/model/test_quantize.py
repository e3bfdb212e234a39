"""`python -m gpu_worker quantize` on the embedded model, which is a FLUX model like any other."""

import errno
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_worker.engines.engine import EngineJob, RgbImage
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.flux_architecture import empty_model
from gpu_worker.engines.flux_loading import load_pipeline
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.quantized_linear import QuantizedLinear
from gpu_worker.engines.weight_files import plain_weight_files, read_header
from gpu_worker.manifest import MANIFEST_NAME, FileEntry, Manifest, file_entry, read_manifest, write_manifest
from gpu_worker.quantize import main
from gpu_worker.quantizer import block_file, target
from gpu_worker.quantizer.block_file import Method, make_block_file
from gpu_worker.quantizer.hqq_layer import quantize_weight
from gpu_worker.quantizer.source import Source, TensorReader
from gpu_worker.quantizer.work import pieces_of
from proto.messages import ImageParameters

CPU = torch.device("cpu")
DONE, BAD, INTERRUPTED = 0, 78, 130


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def quantize(source: Path, made: Path, *more: str) -> int:
    return main(["--source", str(source), "--target", str(made), "--device", "cpu", *more])


@pytest.fixture
def source(embedded_folder: Path, tmp_path: Path) -> Path:
    """A copy under the same name, to be changed."""
    return Path(shutil.copytree(embedded_folder, tmp_path / embedded_folder.name))


def drawn(
    folder: Path, *, expand: bool = False, seed: int = 1, prompt: str = "a futuristic cityscape"
) -> RgbImage:
    engine = FluxEngine(folder, device="cpu", threads=1)
    engine.load(lambda _what, _percent: None)
    if expand:
        how = LoadPlan(device=CPU, t5_device=CPU, dtype=torch.float32, expand=True)
        engine._loaded = load_pipeline(folder, how, lambda _what, _percent: None), CPU
    parameters = ImageParameters(height=256, width=256, steps=4, guidance=3.5, seed=seed)
    wanted = EngineJob(execution_id=b"E" * 16, job_id=b"J" * 16, prompt=prompt, parameters=parameters)
    return engine.generate(wanted, lambda _phase, _step: None)


def quantized_layers(model: Any) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def load(folder: Path, *, dtype: torch.dtype = torch.float32, expand: bool = False) -> Any:
    how = LoadPlan(device=CPU, t5_device=CPU, dtype=dtype, expand=expand)
    return load_pipeline(folder, how, lambda _what, _percent: None)


# --- What is made ------------------------------------------------------------------------------


def test_a_picture_from_four_bits_is_close_to_the_plain_one(
    embedded_folder: Path, quantized_folder: Path
) -> None:
    """As its weights are random, this model is far more sensitive than a trained one: random noise of the
    same size in the weights (6 to 9 %) changes its pictures as much."""
    plain = drawn(embedded_folder).astype(int)

    def distance(other: RgbImage) -> float:
        return float(np.abs(other - plain).mean())

    quantized = distance(drawn(quantized_folder))
    # Measured: 7 levels of 255, to 14 and 67.
    assert 0 < quantized < 0.7 * distance(drawn(embedded_folder, seed=2))
    assert quantized < 0.2 * distance(drawn(embedded_folder, prompt="a cat"))


def test_expanded_draws_the_very_same_picture(quantized_folder: Path) -> None:
    """The dequantized weights are the same numbers, whenever it is done."""
    assert (drawn(quantized_folder, expand=True) == drawn(quantized_folder)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expanded_holds_plain_layers_only(quantized_folder: Path, dtype: torch.dtype) -> None:
    resident, expanded = load(quantized_folder, dtype=dtype), load(quantized_folder, dtype=dtype, expand=True)
    for name in ("transformer", "text_encoder_2"):
        layers = quantized_layers(getattr(resident, name))
        assert layers
        assert not quantized_layers(getattr(expanded, name))
        for layer, quantized in layers.items():
            plain = getattr(expanded, name).get_submodule(layer)
            assert plain.weight.dtype is dtype
            assert torch.equal(plain.weight, quantized.dequantized())


def test_layers_are_what_hqq_makes_of_the_weights(embedded_folder: Path, quantized_folder: Path) -> None:
    plain, quantized = load(embedded_folder), load(quantized_folder, dtype=torch.bfloat16)
    for name in ("transformer", "text_encoder_2"):
        layers = quantized_layers(getattr(quantized, name))
        # All in the blocks that are wide enough, none outside of them.
        expected = {
            layer
            for layer, module in getattr(plain, name).named_modules()
            if type(module) is torch.nn.Linear and "block" in layer and module.in_features % 64 == 0
        }
        assert set(layers) == expected
        for layer in sorted(layers)[::5]:
            again = quantize_weight(getattr(plain, name).get_submodule(layer).weight.detach(), optimized=True)
            for part in ("qweight", "scale", "zero"):
                assert torch.equal(getattr(layers[layer], part), getattr(again, part))


def test_all_else_is_the_source_in_bfloat16(embedded_folder: Path, quantized_folder: Path) -> None:
    for name in ("transformer", "text_encoder_2"):
        before = {
            tensor: value
            for file in plain_weight_files(embedded_folder / name)
            for tensor, value in tensors_of(file.path).items()
        }
        after = {}
        for path in (quantized_folder / name).glob("*.safetensors"):
            after |= tensors_of(path)
        kept = {tensor for tensor in after if tensor in before}
        assert len(kept) > 5
        for tensor in kept:
            assert torch.equal(after[tensor], before[tensor].to(torch.bfloat16))
        lost = before.keys() - kept - {"encoder.embed_tokens.weight"}
        assert {tensor.removesuffix(".weight") for tensor in lost} == {
            tensor.removesuffix(".qweight") for tensor in after if tensor.endswith(".qweight")
        }


def test_the_manifest_lists_every_file_but_the_report(embedded_folder: Path, quantized_folder: Path) -> None:
    manifest = read_manifest(quantized_folder)
    assert manifest is not None
    assert manifest.quantization is not None
    assert "hqq 0." in manifest.quantization.tool
    unlisted = contents(quantized_folder).keys() - manifest.files.keys()
    assert unlisted == {MANIFEST_NAME, "quantization-report.json"}
    for path, entry in manifest.files.items():
        assert file_entry(quantized_folder / path) == entry
    for part in ("vae", "text_encoder", "tokenizer", "tokenizer_2", "scheduler"):
        assert contents(quantized_folder / part) == contents(embedded_folder / part)


def test_the_report_has_the_error_of_each_layer(quantized_folder: Path) -> None:
    report = json.loads((quantized_folder / "quantization-report.json").read_text())
    pipeline = load(quantized_folder)
    for part in report["components"]:
        assert part["errors"].keys() == quantized_layers(getattr(pipeline, part["component"])).keys()
        assert part["worst_error"] == part["errors"][part["worst_layer"]] == max(part["errors"].values())
        assert 0.03 < part["mean_error"] <= part["worst_error"] < 0.12
        assert part["size_bytes"] < 0.5 * part["plain_size_bytes"]
        # This model is so small that the headers count.
        assert 4.5 < part["bits_per_weight"] < 8


def test_what_it_prints(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(source, tmp_path / "made", "--fast") == DONE
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:2]] == ["transformer", "text_encoder_2"]
    assert "40 layers, relative error 6." in printed[0]
    assert printed[2].endswith(f"python -m gpu_worker --model-dir {tmp_path / 'made'}")
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.quantization is not None
    assert manifest.quantization.tool.endswith("not optimized")


# --- Sources of all kinds ----------------------------------------------------------------------


def weights(component: Path) -> Path:
    return next(component.glob("*.safetensors"))


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """No views of the file, which is going to be written over."""
    return load_tensors(file.read_bytes())


def shard(component: Path) -> None:
    """Split the component's file as large ones are."""
    whole, file = tensors_of(weights(component)), weights(component)
    names, stem = sorted(whole), file.stem
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard_name = f"{stem}-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, component / shard_name, {"format": "pt"})
        index |= dict.fromkeys(part, shard_name)
    file.unlink()
    (component / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def block_files(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in contents(folder).items()
        if name.split("/")[0] in ("transformer", "text_encoder_2")
    }


def test_shards_and_other_names_give_the_same_bytes(
    source: Path, quantized_folder: Path, tmp_path: Path
) -> None:
    for name in ("transformer", "text_encoder_2"):
        shard(source / name)
    assert quantize(source, tmp_path / "made") == DONE
    assert block_files(tmp_path / "made") == block_files(quantized_folder)


def test_t5_s_embedding_under_its_other_name(source: Path, tmp_path: Path) -> None:
    file = weights(source / "text_encoder_2")
    tensors = tensors_of(file)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, file, {"format": "pt"})
    assert quantize(source, tmp_path / "made", "--fast") == DONE
    rest = tensors_of(tmp_path / "made" / "text_encoder_2" / "rest.safetensors")
    assert torch.equal(rest["shared.weight"], tensors["encoder.embed_tokens.weight"].to(torch.bfloat16))
    load(tmp_path / "made")


def sign(folder: Path, **changes: Any) -> None:
    """Give the folder a manifest."""
    files: dict[str, FileEntry] = {
        name: file_entry(folder / name) for name in contents(folder) if name != MANIFEST_NAME
    }
    write_manifest(
        folder, Manifest(**{"source": "someone/model", "revision": "abc", "files": files} | changes)
    )


def test_source_and_revision_come_from_the_source_s_manifest(
    source: Path, tmp_path: Path, quantized_folder: Path
) -> None:
    sign(source)
    assert quantize(source, tmp_path / "made", "--fast") == DONE
    made, unknown = read_manifest(tmp_path / "made"), read_manifest(quantized_folder)
    assert made is not None
    assert unknown is not None
    assert (made.source, made.revision) == ("someone/model", "abc")
    assert (unknown.source, unknown.revision) == (source.name, "unknown")


def test_a_source_that_is_not_what_its_manifest_says(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(source)
    with weights(source / "transformer").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert quantize(source, tmp_path / "made") == BAD
    assert weights(source / "transformer").name in capsys.readouterr().err


# --- Stopped and run again ---------------------------------------------------------------------


@contextmanager
def failing_after(calls: int, error: BaseException) -> Iterator[list[int]]:
    """Layers can be quantized so many times; then this is raised. Counts the calls."""
    counted = [0]

    def counting(weight: torch.Tensor, *, optimized: bool) -> QuantizedLinear:
        counted[0] += 1
        if counted[0] > calls:
            raise error
        return quantize_weight(weight, optimized=optimized)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(block_file, "quantize_weight", counting)
        yield counted


def test_a_stopped_run_goes_on_with_the_next_block(
    embedded_folder: Path, quantized_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    # The first block has 14 layers, and the second is in the middle.
    with failing_after(20, KeyboardInterrupt()):
        assert quantize(embedded_folder, made) == INTERRUPTED
    assert "goes on" in capsys.readouterr().err
    assert [file.name for file in (made / "transformer").glob("*.safetensors")] == ["block-000.safetensors"]
    assert not (made / MANIFEST_NAME).exists()

    # Also what a killed process leaves behind.
    (made / "transformer" / "block-001.safetensors.unfinished").write_bytes(b"half")
    with failing_after(1000, AssertionError()) as counted:
        assert quantize(embedded_folder, made) == DONE
    assert counted == [54 - 14]
    assert contents(made) == contents(quantized_folder)


def test_a_finished_folder_is_left_alone(
    embedded_folder: Path, quantized_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(quantized_folder)
    with failing_after(0, AssertionError()):
        assert quantize(embedded_folder, quantized_folder) == DONE
    assert "there already" in capsys.readouterr().err
    assert quantize(embedded_folder, quantized_folder, "--fast") == BAD
    assert "choose another --target" in capsys.readouterr().err
    assert contents(quantized_folder) == before


@pytest.mark.parametrize("change", ["other weights", "other method", "damaged file", "other versions"])
def test_what_an_earlier_run_made_of_something_else_is_made_again(
    source: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, options = tmp_path / "made", ["--fast"]
    with failing_after(15, KeyboardInterrupt()):
        assert quantize(source, made, *options) == INTERRUPTED
    first = made / "transformer" / "block-000.safetensors"
    before = first.read_bytes()
    match change:
        case "other weights":
            file = weights(source / "transformer")
            tensors = tensors_of(file)
            tensors["transformer_blocks.0.attn.to_q.weight"].mul_(2)
            save_file(tensors, file, {"format": "pt"})
        case "other method":
            options = []
        case "damaged file":
            first.write_bytes(before[:-100])
        case _:
            monkeypatch.setattr(block_file, "hqq_version", lambda: "0.2.9")
    with failing_after(1000, AssertionError()) as counted:
        assert quantize(source, made, *options) == DONE
    assert counted == [54]
    assert (first.read_bytes() == before) == (change == "damaged file")
    load(made)


def test_files_of_a_longer_model_do_not_stay(embedded_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with failing_after(1, KeyboardInterrupt()):
        assert quantize(embedded_folder, made, "--fast") == INTERRUPTED
    (made / "transformer" / "block-999.safetensors").write_bytes(b"of another model")
    assert quantize(embedded_folder, made, "--fast") == DONE
    assert not (made / "transformer" / "block-999.safetensors").exists()


# --- Memory ------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live. Files' mappings are none."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, known: int, size_bytes: int) -> None:
        self._known.discard(known)
        self.now -= size_bytes


def transformer_with(blocks: int, folder: Path) -> Source:
    torch.manual_seed(blocks)
    FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=blocks,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    ).save_pretrained(folder / "transformer")
    return Source(
        folder=folder,
        manifest=None,
        files={"transformer": plain_weight_files(folder / "transformer")},
        models={"transformer": empty_model("transformer", folder / "transformer")},
        copied=(),
    )


def peak_bytes(source: Source, made: Path, *, optimized: bool) -> int:
    (made / "transformer").mkdir(parents=True)
    with TensorReader(source.files["transformer"]) as reader, LiveBytes() as live:
        for piece in pieces_of(source, "transformer"):
            make_block_file(piece, reader, made, Method(optimized=optimized, device=CPU), lambda: None)
    return live.peak


@pytest.mark.parametrize("optimized", [False, True])
def test_memory_does_not_depend_on_the_number_of_blocks(tmp_path: Path, optimized: bool) -> None:
    few, many = transformer_with(2, tmp_path / "few"), transformer_with(5, tmp_path / "many")
    peak = peak_bytes(many, tmp_path / "out-many", optimized=optimized)
    assert peak == peak_bytes(few, tmp_path / "out-few", optimized=optimized)
    # The double block's 4-bit tensors, and hqq's working copies of its largest layer in float32.
    double = pieces_of(many, "transformer")[0].size_bytes
    largest = 4 * 6 * 64 * 64
    assert peak < double + 9 * largest


# --- What cannot be done -----------------------------------------------------------------------


def plant_nan(folder: Path) -> None:
    file = weights(folder / "transformer")
    tensors = tensors_of(file)
    tensors["single_transformer_blocks.1.proj_mlp.weight"][3, 3] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def lose_a_tensor(folder: Path) -> None:
    file = weights(folder / "transformer")
    tensors = tensors_of(file)
    del tensors["proj_out.bias"]
    save_file(tensors, file, {"format": "pt"})


def make_it_integers(folder: Path) -> None:
    file = weights(folder / "transformer")
    tensors = tensors_of(file)
    tensors["proj_out.bias"] = tensors["proj_out.bias"].to(torch.int8)
    save_file(tensors, file, {"format": "pt"})


def claim_a_quantization(folder: Path) -> None:
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "hqq"}})
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (plant_nan, "single_transformer_blocks.1.proj_mlp holds NaN"),
        (lose_a_tensor, "proj_out.bias missing"),
        (make_it_integers, "proj_out.bias of a type"),
        (claim_a_quantization, "text_encoder_2 is quantized"),
        (lambda folder: shutil.rmtree(folder / "vae"), "folder vae is missing"),
        (lambda folder: (folder / MANIFEST_NAME).write_text("{}"), "not a manifest"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_sources_that_are_refused(
    source: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    assert quantize(source, tmp_path / "made", "--fast") == BAD
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made" / MANIFEST_NAME).exists()


def test_what_is_in_four_bits_already(
    quantized_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(quantized_folder, tmp_path / "made") == BAD
    assert "in 4 bits already" in capsys.readouterr().err


def test_targets_that_are_refused(
    embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for made, said in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "photos", "holds cat.png"),
        (tmp_path / "file" / "below", "NotADirectoryError"),
        (embedded_folder, "apart from the source"),
        (embedded_folder / "made", "apart from the source"),
        (embedded_folder.parent, "apart from the source"),
    ]:
        assert quantize(embedded_folder, made, "--fast") == BAD
        printed = capsys.readouterr().err
        assert said in printed
        assert "Traceback" not in printed
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_two_at_once(embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with target.claimed(tmp_path / "made", embedded_folder):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == BAD
    assert "another process is quantizing into it" in capsys.readouterr().err
    assert quantize(embedded_folder, tmp_path / "made", "--fast") == DONE


def test_a_disk_that_is_too_small_is_known_before(
    embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=60_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with failing_after(0, AssertionError()):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == BAD
    assert "GB are needed on the disk, 0.1 GB are free" in capsys.readouterr().err


def test_a_disk_that_is_full_in_the_middle(
    embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing_after(20, OSError(errno.ENOSPC, "No space left on device")):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == BAD
    assert "the disk is full: make room, and run it again" in capsys.readouterr().err
    assert quantize(embedded_folder, tmp_path / "made", "--fast") == DONE


def test_too_little_memory(embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with failing_after(3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == 69
    assert "out of memory on cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu"], "--device (FLUX_QUANTIZE_DEVICE): 'gpu'"),
        (["--device", "cuda:99"], "device cuda:99: torch sees"),
        (["--threads", "-1"], "--threads (FLUX_QUANTIZE_THREADS)"),
    ],
)
def test_bad_settings(
    embedded_folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["--source", str(embedded_folder), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == BAD
    assert said in capsys.readouterr().err


def test_without_hqq(
    embedded_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_worker.quantizer.hqq_layer.hqq_version", lambda: None)
    assert main(["--source", str(embedded_folder)]) == BAD
    assert "DISABLE_CUDA=1 pip install -r requirements/quantize.txt" in capsys.readouterr().err


def test_the_files_say_what_they_are(quantized_folder: Path) -> None:
    layout = read_header(quantized_folder / "transformer" / "block-002.safetensors").layout
    assert layout is not None
    assert (layout.component, layout.block) == ("transformer", "single_transformer_blocks.0")
    with safe_open(quantized_folder / "transformer" / "block-002.safetensors", framework="pt") as opened:
        assert list(opened.metadata()) == ["flux-server-4bit"], "their order would not always be the same"
