"""The 4-bit layer against hqq's own."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from gpu_worker.engines.quantized_linear import QuantizedLinear, packed
from gpu_worker.quantizer.hqq_layer import _quantizer, quantize_weight, relative_error


def hqq_layer(linear: nn.Linear, *, optimized: bool) -> Any:
    _quantizer()  # imports it
    from hqq.core.quantize import HQQLinear  # noqa: PLC0415 - hidden until then

    weight_quant_params = {
        "nbits": 4,
        "channel_wise": True,
        "group_size": 64,
        "optimize": optimized,
        "round_zero": False,
        "axis": 1,
        "view_as_float": False,
    }
    config = {
        "weight_quant_params": weight_quant_params,
        "scale_quant_params": None,
        "zero_quant_params": None,
        "offload_meta": False,
    }
    return HQQLinear(linear, config, del_orig=False, compute_dtype=torch.bfloat16, device="cpu")


def our_layer(linear: nn.Linear, *, optimized: bool = False) -> QuantizedLinear:
    layer = quantize_weight(linear.weight.detach(), optimized=optimized)
    bias = linear.bias.detach().to(torch.bfloat16) if linear.bias is not None else None
    return QuantizedLinear(layer.qweight, layer.scale, layer.zero, bias)


def linear(out_features: int = 96, in_features: int = 192, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(in_features, out_features, bias=bias)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("shape", [(96, 192), (2, 64), (64, 640)])
@torch.no_grad()
def test_the_same_numbers_as_hqq_bit_by_bit(shape: tuple[int, int], optimized: bool) -> None:
    plain = linear(*shape)
    ours, theirs = our_layer(plain, optimized=optimized), hqq_layer(plain, optimized=optimized)
    assert torch.equal(ours.dequantized(), theirs.dequantize())
    given = torch.randn(3, 7, shape[1], dtype=torch.bfloat16)
    assert torch.equal(ours(given), theirs(given))


@torch.no_grad()
def test_a_bias_is_added_before_rounding() -> None:
    """hqq rounds the product to bfloat16 first: its sums are off by up to one more step of that."""
    plain = linear(bias=True)
    ours, theirs = our_layer(plain), hqq_layer(plain, optimized=False)
    given = torch.randn(5, 192, dtype=torch.bfloat16)
    exact = given.double() @ ours.dequantized().double().T + ours.bias.double()
    assert (ours(given) - exact).abs().max() <= (theirs(given) - exact).abs().max()
    assert torch.allclose(ours(given), theirs(given), rtol=1e-2, atol=1e-2)


def test_an_odd_number_of_outputs() -> None:
    """hqq's packing needs an even number of groups, ours does not."""
    plain = linear(3, 64)
    assert relative_error(our_layer(plain), plain.weight.detach()) < 0.1


def test_packing_is_what_the_format_says() -> None:
    codes = torch.randint(0, 16, (5, 3, 64))
    bytes_ = packed(codes)
    assert bytes_.shape == (5, 3, 32)
    assert bytes_.dtype is torch.uint8
    assert int(bytes_[4, 2, 7]) == int(codes[4, 2, 7]) * 16 + int(codes[4, 2, 39])
    ones, zeros = torch.ones(5, 3, 1), torch.zeros(5, 3, 1)
    assert torch.equal(
        QuantizedLinear(bytes_, ones, zeros, None).dequantized().int(), codes.view(5, 192).int()
    )


def test_optimizing_helps_and_the_error_is_that_of_four_bits() -> None:
    torch.manual_seed(1)
    weight = torch.randn(128, 512)
    fast, best = (relative_error(quantize_weight(weight, optimized=on), weight) for on in (False, True))
    assert 0.05 < best < fast < 0.1


@pytest.mark.parametrize("optimized", [False, True])
def test_slices_of_a_large_layer_are_one_layer(optimized: bool) -> None:
    torch.manual_seed(2)
    weight = torch.randn(1500, 256)
    layer = quantize_weight(weight, optimized=optimized)
    halves = [quantize_weight(half, optimized=optimized) for half in (weight[:1024], weight[1024:])]
    assert torch.equal(layer.dequantized(), torch.cat([half.dequantized() for half in halves]))
    # Each slice searches for itself; hqq's whole layer is no better.
    whole = hqq_layer(as_linear(weight), optimized=optimized).dequantize()
    error = torch.linalg.norm(weight - whole) / torch.linalg.norm(weight)
    assert relative_error(layer, weight) == pytest.approx(float(error), rel=2e-3)


def as_linear(weight: torch.Tensor) -> nn.Linear:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    plain.weight.data = weight
    return plain


@pytest.mark.parametrize("weight", [torch.zeros(4, 64), torch.full((4, 64), 0.25), torch.eye(64)])
def test_flat_weights(weight: torch.Tensor) -> None:
    layer = quantize_weight(weight, optimized=True)
    assert torch.isfinite(layer.dequantized()).all()
    assert relative_error(layer, weight) < 0.07


@torch.no_grad()
def test_expanded_is_the_same_layer() -> None:
    layer = our_layer(linear(bias=True)).to(torch.float32)
    expanded = layer.expanded()
    assert type(expanded) is nn.Linear
    assert (expanded.in_features, expanded.out_features) == (192, 96)
    given = torch.randn(4, 192)
    assert torch.equal(expanded(given), layer(given))
    assert not any(parameter.is_meta for parameter in expanded.parameters())


def test_all_of_it_moves_and_changes_its_type() -> None:
    """hqq's own layer leaves its scales where they are."""
    parent = nn.Sequential(our_layer(linear(bias=True)))
    moved = parent.to("meta")
    assert {name for name, buffer in moved[0].named_buffers() if buffer.is_meta} == {
        "qweight",
        "scale",
        "zero",
        "bias",
    }
    changed = nn.Sequential(our_layer(linear(bias=True))).to(torch.float32)[0]
    assert changed.qweight.dtype is torch.uint8
    assert changed(torch.randn(2, 192)).dtype is torch.float32


@torch.no_grad()
def test_it_compiles_into_one_graph() -> None:
    layer = our_layer(linear(bias=True))
    given = torch.randn(4, 192, dtype=torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(given), layer(given))


@torch.no_grad()
def test_t5_works_with_it() -> None:
    """T5 asks for the weight of its last layer in each block."""
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=50,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    model = T5EncoderModel(config).eval().to(torch.bfloat16)
    plain = model(torch.arange(20)[None]).last_hidden_state
    for name, module in list(model.encoder.block.named_modules()):
        if type(module) is nn.Linear:
            model.encoder.block.set_submodule(name, our_layer(module, optimized=True))
    quantized = model(torch.arange(20)[None]).last_hidden_state
    assert quantized.dtype is torch.bfloat16
    similarity = torch.nn.functional.cosine_similarity(plain.float(), quantized.float(), dim=-1)
    assert 0.97 < float(similarity.min()) < 1


@pytest.mark.parametrize("part", ["qweight", "zero", "bias"])
def test_parts_that_do_not_belong_together(part: str) -> None:
    parts = {
        "qweight": torch.zeros(4, 2, 32, dtype=torch.uint8),
        "scale": torch.ones(4, 2, 1),
        "zero": torch.ones(4, 2, 1),
        "bias": torch.ones(4),
    }
    QuantizedLinear(**parts)
    with pytest.raises(ValueError, match=f"{part} is of shape"):
        QuantizedLinear(**parts | {part: torch.ones(3, 2, 1)})


def test_a_worker_never_imports_hqq() -> None:
    """Not even where it is installed, and transformers would."""
    code = (
        "from gpu_worker.engines.offline import prepare_environment\n"
        "prepare_environment()\n"
        "import gpu_worker.engines.flux, json, sys\n"
        "print(json.dumps([name for name, module in sys.modules.items() if module and name[:3] == 'hqq']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
