import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.merging import merge
from minipeft.method import change_of, weight_of
from minipeft.methods.selective.beft import BEFT


def test_only_the_bias_changes_and_where_there_is_none_one_comes():
    rng = np.random.default_rng(0)
    W, b, x, beta = (rng.standard_normal(s) for s in ((5, 4), 5, (3, 4), 5))
    a = dict(beta=beta)
    assert (weight_of(BEFT(), W, a) == W).all()
    np.testing.assert_allclose(one_part.output(BEFT(), a, x, W, b), x @ W.T + b + beta, atol=1e-14)
    np.testing.assert_allclose(one_part.output(BEFT(), a, x, W), x @ W.T + beta, atol=1e-14)
    assert (change_of(BEFT(), a).bias(None) == beta).all()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_merged_model_has_the_bias(family):
    model = tiny.model(family)
    adapted = attach(model, BEFT(), targets="layers.1.attn.v.weight")
    moved = adapted.replace({k: a + 0.5 for k, a in adapted.theta.items()})
    before = model.params.get("layers.1.attn.v.bias", np.zeros(()))
    np.testing.assert_allclose(
        merge(moved).params["layers.1.attn.v.bias"], before + 0.5 * np.ones(12 if family == "llama" else 24)
    )


@pytest.mark.hf
def test_output_and_gradient_are_those_of_peft():
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((9, 14), (9,), (2, 3, 14), (2, 3, 9)))
    theirs = one_part.Peft(peft.BeftConfig(target_modules=["lin"]), W, b, x, c)
    y, grads = one_part.forward_and_grads(BEFT(), dict(beta=theirs.params["beft_bias"][0]), {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    np.testing.assert_allclose(grads["beta"], theirs.grads["beft_bias"][0], rtol=1e-13)
