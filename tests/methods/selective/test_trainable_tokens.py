import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import ops, value_and_grad
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.selective.trainable_tokens import TrainableTokens

E = "embed.tokens.weight"


def moved(family, **fields):
    model = tiny.model(family)
    adapted = attach(model, TrainableTokens(tokens=(7, 3), **fields))
    new = np.random.default_rng(0).standard_normal((2, model.arch.d))
    return model, adapted, adapted.replace({f"default/{E}:T": new}), new


def test_it_starts_as_the_rows_and_replaces_them_in_the_given_order():
    model, start, adapted, new = moved("llama")
    np.testing.assert_array_equal(start.theta[f"default/{E}:T"], model.params[E][[7, 3]])
    W = adapted.run().param(E)
    expected = model.params[E].copy()
    expected[7], expected[3] = new
    np.testing.assert_array_equal(W, expected)
    ids = np.array([[3, 7, 7], [0, 3, 49]])
    np.testing.assert_array_equal(adapted.run().lookup("embed.tokens", ids), expected[ids])
    np.testing.assert_array_equal(merge(adapted).params[E], expected)


def test_a_tied_head_follows_and_stays_tied():
    model, _, adapted, _ = moved("gpt2")
    run, batch = adapted.run(), tiny.example(model)
    np.testing.assert_array_equal(run.param("head.weight"), run.param(E))
    merged = merge(adapted)
    assert merged.arch.tied and "head.weight" not in merged.params
    np.testing.assert_allclose(Adapted(merged).logits(batch), adapted.logits(batch), rtol=0, atol=1e-12)


def test_an_untied_head_stays_unless_it_is_targeted():
    model, _, adapted, _ = moved("llama")
    np.testing.assert_array_equal(adapted.run().param("head.weight"), model.params["head.weight"])
    head = attach(model, TrainableTokens(tokens=(7,)), targets="head.weight")
    batch = tiny.example(model)
    before = head.logits(batch)
    after = head.replace({"default/head.weight:T": np.ones((1, model.arch.d))}).logits(batch)
    changed = abs(after - before).max(axis=(0, 1)) > 1e-9
    assert changed[7] and changed.sum() == 1


@pytest.mark.parametrize("reading, kept", [("keep", True), ("drop", False)])
def test_the_bias_of_a_head_by_reading(reading, kept):
    b = np.arange(3.0)
    assert (TrainableTokens(tokens=(1,), head_bias=reading).change(T=None).bias(b) is b) == kept


def test_bad_tokens_are_named():
    model = tiny.model()
    for tokens, word in [
        ((), "at least one"),
        ((3, 50, -1), "0 … 49, found 50, -1"),
        ((3, 4, 3), r"tokens must differ, found \(3, 4, 3\)"),
    ]:
        with pytest.raises(Bad, match=word):
            attach(model, TrainableTokens(tokens=tokens))


def test_the_gradient_reaches_the_chosen_rows_alone():
    model, _, adapted, _ = moved("llama")
    ids = np.array([[3, 5, 3]])
    _, grads = value_and_grad(lambda t: ops.sum(adapted.run(t).lookup("embed.tokens", ids)))(adapted.theta)
    np.testing.assert_array_equal(grads[f"default/{E}:T"], [[0.0] * model.arch.d, [2.0] * model.arch.d])
