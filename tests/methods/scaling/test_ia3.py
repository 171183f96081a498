import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.registry import spec_of
from minipeft.interop.peft.spec import to_ours
from minipeft.merging import merge
from minipeft.methods.scaling.ia3 import IA3


def test_outputs_and_inputs_are_scaled_and_the_bias_with_the_outputs():
    rng = np.random.default_rng(0)
    W, b, x = rng.standard_normal((3, 4)), rng.standard_normal(3), rng.standard_normal((2, 4))
    l, l_ff = rng.standard_normal(3), rng.standard_normal(4)
    got = one_part.output(IA3(), dict(l=l), x, W, b)
    np.testing.assert_allclose(got.T, np.diag(l) @ (W @ x.T + b[:, None]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(IA3().change(l=l).bias(b), l * b, rtol=0, atol=0)
    got = one_part.output(IA3(), dict(l_ff=l_ff), x, W, b)
    np.testing.assert_allclose(got.T, W @ np.diag(l_ff) @ x.T + b[:, None], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(IA3().change(l_ff=l_ff).bias(b), b)
    assert IA3().change(l=l).bias(None) is None


@pytest.mark.parametrize(
    "family, expected",
    [("llama", {"attn.k": "l", "attn.v": "l", "mlp.down": "l_ff"}), ("gpt2", {"attn.qkv": "l", "mlp.down": "l_ff"})],
)
def test_default_targets_and_their_sides(family, expected):
    adapter = attach(tiny.model(family), IA3()).adapters[0]
    found = {}
    for key in adapter.arrays:
        site, _, name = key.rpartition(":")
        found[".".join(site.split(".")[2:4])] = name
    assert found == expected


def test_a_field_says_which_inputs_are_scaled():
    fields = dict(targets="attn.o.weight mlp.down.weight attn.v.weight", inputs="attn.o.weight mlp.down.weight")
    adapter = attach(tiny.model("bert"), IA3(**fields)).adapters[0]
    assert {k.rpartition(":")[2] for k in adapter.arrays if "attn.v" in k} == {"l"}
    assert {k.rpartition(":")[2] for k in adapter.arrays if "attn.v" not in k} == {"l_ff"}


def test_merging_scales_the_bias_of_a_fused_linear():
    model = tiny.model("gpt2")
    adapted = attach(model, IA3())
    adapted = adapted.replace({k: 2 * v for k, v in adapted.theta.items()})
    merged = merge(adapted)
    name = "layers.0.attn.qkv.bias"
    np.testing.assert_array_equal(merged.params[name], 2 * model.params[name])
    batch = tiny.example(model)
    np.testing.assert_allclose(Adapted(merged).logits(batch), adapted.logits(batch), rtol=0, atol=1e-12)


def test_tables_are_refused():
    with pytest.raises(Bad, match=r"expected linears, found embed.tokens.weight, of kind embedding"):
        attach(tiny.model(), IA3(), targets="embed.tokens.weight")


@pytest.mark.parametrize(
    ("shape", "out", "array"),
    [((1, 1), (1, 5), "l"), ((1, 5), (1, 5), "l_ff"), ((1, 5), (3, 5), "l_ff"), ((3, 1), (3, 5), "l")],
)
def test_a_column_of_one_output_is_no_row(shape, out, array):
    """PEFT has both under one key, and one number is both."""
    found = to_ours(spec_of(IA3).keys, {"ia3_l": np.ones(shape)}, one_part.site(np.zeros(out)), tiny.ARCHS["llama"])
    assert list(found) == [array]
