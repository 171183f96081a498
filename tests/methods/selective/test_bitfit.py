import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.selective.bitfit import BitFit


def test_every_bias_and_nothing_else():
    model = tiny.model("bert")
    adapter = attach(model, BitFit()).adapters[0]
    biases = {k: v for k, v in model.params.items() if k.endswith(".bias")}
    assert set(adapter.at) == set(biases)
    assert adapter.size == sum(v.size for v in biases.values())
    assert {"embed.norm.bias", "layers.0.attn.norm.bias", "layers.1.mlp.down.bias", "score.bias"} <= set(adapter.at)


def test_small_trains_the_query_and_the_first_linear():
    model = tiny.model("bert")
    assert set(attach(model, BitFit(part="small")).adapters[0].at) == {
        f"layers.{n}.{end}" for n in (0, 1) for end in ("attn.q.bias", "mlp.up.bias")
    }
    fused = tiny.model("gpt2")
    adapted = attach(fused, BitFit(part="small"))
    adapted = adapted.replace({k: v + 1 for k, v in adapted.theta.items()})
    site = "layers.0.attn.qkv.bias"
    change = merge(adapted).params[site] - fused.params[site]
    assert np.allclose(change, [1.0] * 24 + [0.0] * 48)


def test_refuses():
    with pytest.raises(Bad, match=r"targets '\*.bias' match nothing in this llama model: it has no biases"):
        attach(tiny.model("llama"), BitFit())
    with pytest.raises(Bad, match=r"bitfit: expected biases, found final.norm.weight, of kind norm"):
        attach(tiny.model("llama"), BitFit(targets="final.norm.weight"))
    with pytest.raises(Bad, match="part must be 'all' or 'small'"):
        BitFit(part="tiny")
