import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.lowrank.qlora import QLoRA
from minipeft.quantize import FourBits, quantize

SITE = "layers.1.mlp.down.weight"  # (24, 40)


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


@pytest.mark.parametrize("double", [False, True])
def test_the_base_is_held_in_four_bits(double):
    model = tiny.model()
    adapted = attach(model, QLoRA(r=2, double_quant=double))
    held = {k: v for k, v in adapted.model.params.items() if isinstance(v, FourBits)}
    assert len(held) == 14 and all(v.double == double for v in held.values())
    assert adapted.model.size == model.size and adapted.model.dtype == model.dtype
    codes, full = sum(v.nbytes for v in held.values()), sum(model.params[k].nbytes for k in held)
    assert codes < 0.08 * full  # of float64
    assert adapted.model.digest() != model.digest()
    again = attach(adapted.model, QLoRA(r=2, double_quant=not double))
    assert again.model.params[SITE] is adapted.model.params[SITE]


def test_the_merge_is_an_ordinary_weight_and_its_requantisation_is_near():
    method = QLoRA(r=2, alpha=4.0, block=40, double_quant=False)
    adapted = moved(attach(tiny.model(), method))
    own, W = adapted.adapters[0].grouped()[SITE], adapted.model.params[SITE].dequantize()
    W1 = merge(adapted).params[SITE]
    assert np.allclose(W1, W + 2.0 * own["B"] @ own["A"], rtol=1e-14)
    back = method.requantized(W, **own).dequantize()
    limit = 0.152 * abs(W1).max(axis=1, keepdims=True)  # half the widest gap of the code; a row is a block
    assert (abs(back - W1) <= limit).all() and abs(back - W1).max() > 1e-3


def test_float32_stays():
    single = attach(tiny.model(), QLoRA(r=2)).model.astype(np.float32)
    assert single.params[SITE].dtype == np.float32
    assert Adapted(single).logits(tiny.example(single)).dtype == np.float32


def test_a_tied_head_and_what_is_no_linear():
    model = tiny.model("gpt2")
    adapted = attach(model, QLoRA(r=2), targets="head.weight attn.qkv.weight")
    assert "head.weight" not in adapted.model.params and adapted.model.arch.tied
    with pytest.raises(Bad, match=r"qlora: expected linears, found embed.tokens.weight, of kind embedding"):
        attach(model, QLoRA(), targets="embed.tokens.weight")


@pytest.mark.hf
def test_bitsandbytes_merges_to_the_requantised_weight():
    import bitsandbytes as bnb
    import torch
    from peft import LoraConfig, get_peft_model

    rng = np.random.default_rng(0)
    W = 0.1 * rng.standard_normal((64, 128)).astype(np.float32)
    layer = bnb.nn.Linear4bit(
        128, 64, bias=False, quant_type="nf4", compress_statistics=False, compute_dtype=torch.float32
    )
    layer.weight = bnb.nn.Params4bit(torch.tensor(W), requires_grad=False, quant_type="nf4", compress_statistics=False)
    bare = torch.nn.Sequential(layer.to("cpu"))
    bare.is_loaded_in_4bit = True  # by which PEFT knows
    net = get_peft_model(bare, LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    theirs = net.base_model.model[0]
    torch.nn.init.normal_(theirs.lora_B["default"].weight, std=0.1)
    own = dict(A=theirs.lora_A["default"].weight.detach().numpy(), B=theirs.lora_B["default"].weight.detach().numpy())
    method = QLoRA(r=4, alpha=8.0, double_quant=False)
    held = bnb.functional.dequantize_4bit(theirs.base_layer.weight.data, theirs.base_layer.weight.quant_state).numpy()
    assert (quantize(W).dequantize() == held).all()
    theirs.merge()
    merged = bnb.functional.dequantize_4bit(theirs.base_layer.weight.data, theirs.base_layer.weight.quant_state).numpy()
    ours = method.requantized(held, **own).dequantize()
    step = 0.31 * abs(held + 2 * own["B"] @ own["A"]).reshape(-1, 64).max(axis=1)
    apart = abs(ours - merged).reshape(-1, 64)
    assert (apart <= step[:, None]).all() and (apart > 1e-5).mean() < 1e-3  # a value on a midpoint may round either way
