"""Quantizing that is stopped goes on where it was, in memory that does not depend on the model's depth."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from model_folders import (
    BAD,
    CPU,
    DONE,
    INTERRUPTED,
    contents,
    failing_after,
    load,
    quantize,
    tensors_of,
    weights,
)
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config, T5EncoderModel

from gpu_worker.engines.flux_architecture import empty_model
from gpu_worker.engines.weight_files import StoredTensor, WeightFile, plain_weight_files
from gpu_worker.manifest import MANIFEST_NAME
from gpu_worker.quantizer import block_file
from gpu_worker.quantizer.block_file import Method, make_block_file
from gpu_worker.quantizer.source import Source, TensorReader
from gpu_worker.quantizer.work import pieces_of

# --- Stopped and run again ---------------------------------------------------------------------


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
    assert counted == [66 - 14]
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


def test_a_finished_folder_that_was_damaged_is_no_finished_one(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    assert quantize(source, made, "--fast") == DONE
    (made / "transformer" / "rest.safetensors").unlink()
    assert quantize(source, made, "--fast") == BAD
    assert "transformer/rest.safetensors is missing" in capsys.readouterr().err


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
    assert counted == [66]
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


# --- The real model -----------------------------------------------------------------------------


def full_size() -> dict[str, Any]:
    """FLUX.1-dev's two large models, on meta."""
    with init_empty_weights(include_buffers=False):
        t5 = T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        return {
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "text_encoder_2": T5EncoderModel(t5),
        }


def test_the_sizes_of_the_real_model() -> None:
    models = full_size()
    headers = {
        name: {
            tensor: StoredTensor(dtype="BF16", shape=tuple(value.shape))
            for tensor, value in model.state_dict().items()
        }
        for name, model in models.items()
    }
    source = Source(
        folder=Path(),
        manifest=None,
        files={
            name: [WeightFile(path=Path(name), size_bytes=0, tensors=tensors, layout=None)]
            for name, tensors in headers.items()
        },
        models=models,
        copied=(),
    )
    found = {
        name: (
            len(pieces := pieces_of(source, name)),
            sum(len(piece.layers) for piece in pieces),
            round(sum(piece.size_bytes for piece in pieces) / 1e9, 1),
        )
        for name in models
    }
    # 19 + 38 blocks and 24, each with the rest; 10 linear layers of the transformer are in no block.
    assert found == {"transformer": (58, 494, 6.8), "text_encoder_2": (25, 168, 2.9)}
