import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.kasa import KaSA

SITE = "layers.0.attn.v.weight"  # (12, 24)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_base_keeps_its_largest_singular_values_whatever_the_scale(rslora):
    model = tiny.model()
    method = KaSA(r=3, alpha=5.0, rslora=rslora)
    own = attach(model, method, targets=SITE).adapters[0].grouped()[SITE]
    W = model.params[SITE]
    U, S, Vt = np.linalg.svd(W)
    left = weight_of(method, W, own)  # B is 0
    np.testing.assert_allclose(left, (U[:, :9] * S[:9]) @ Vt[:9], rtol=0, atol=1e-13)
    np.testing.assert_allclose(own["A0"] @ own["A0"].T, np.eye(3), rtol=0, atol=1e-14)
    assert own["d"].shape == (3,) and own["d"].all() and not own["B"].any()


def test_attaching_again_to_what_is_merged_takes_nothing_that_is_there():
    """The smallest of what is left are the zeros."""
    model = tiny.model()
    method = KaSA(r=3)
    W = weight_of(method, model.params[SITE], attach(model, method, targets=SITE).adapters[0].grouped()[SITE])
    again = one_part.arrays(method, one_part.site(W), RNG)
    np.testing.assert_allclose(weight_of(method, W, again), W, rtol=0, atol=1e-13)


def test_dropout_spares_the_residual():
    W, x, p = RNG.standard_normal((5, 7)), RNG.standard_normal((2, 3, 7)), 0.5
    method = KaSA(r=2, alpha=3.0, dropout=p)
    a = one_part.arrays(method, one_part.site(W), RNG, moved=0.5)
    got = one_part.output(method, a, x, W, train=True, rng=np.random.default_rng(3))
    keep = np.random.default_rng(3).random(x.shape, dtype=np.float32) >= p
    change = 1.5 * a["B"] @ np.diag(a["d"]) @ a["A"]
    expected = x @ (W - a["B0"] @ a["A0"]).T + np.where(keep, x / (1 - p), 0) @ change.T
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_the_penalty_counts_every_site():
    method = KaSA(r=2, beta=0.5, gamma=3.0)
    one = dict(A=np.array([[1.0, 0, 0], [0, 2, 0]]), B=np.array([[3.0, 0], [0, 1]]), d=np.array([1.0, 2]))
    each = 0.5 * 5 + 3 * (3 + 8)  # AAᵀ − I = diag(0, 3), BᵀB − I = diag(8, 0)
    assert method.penalty({"a": one, "b": one, "c": {"W1": np.ones(3)}}) == pytest.approx(2 * each, rel=1e-14)
    assert KaSA(beta=0.0, gamma=0.0).penalty({"a": one}) is None


def test_refuses():
    with pytest.raises(Bad, match=r"kasa: r must be less than 12, found 12 at layers.0.attn.v.weight"):
        attach(tiny.model(), KaSA(r=12), targets=SITE)
    with pytest.raises(Bad, match="beta must be at least 0"):
        KaSA(beta=-1.0)
    with pytest.raises(Bad, match="linears"):
        attach(tiny.model(), KaSA(r=2), targets="embed.tokens.weight")


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(5, 9), (12, 7)])
@pytest.mark.parametrize("options", [{}, dict(use_rslora=True), dict(lora_bias=True)])
def test_output_gradients_merged_weight_and_penalty_are_those_of_peft(shape, options, monkeypatch):
    import peft
    from peft.tuners.lora import variants

    from minipeft.interop.peft.harness import Wide

    monkeypatch.setattr(variants, "torch", Wide(variants.torch))  # it decomposes in float32
    monkeypatch.setattr("torch.Tensor.float", variants.torch.Tensor.double)
    out, in_ = shape
    W, b, x, c = (RNG.standard_normal(s) for s in (shape, (out,), (2, 3, in_), (2, 3, out)))
    own = peft.KasaConfig(beta=0.3, gamma=0.7)
    config = peft.LoraConfig(r=3, lora_alpha=5, kasa_config=own, target_modules=["lin"], **options)
    theirs = one_part.Peft(config, W, b, x, c)
    ours = dict(use_rslora="rslora", lora_bias="lora_bias")
    method = KaSA(r=3, alpha=5.0, beta=0.3, gamma=0.7, **{ours[k]: v for k, v in options.items()})
    keys = dict(A="lora_A.weight", B="lora_B.weight", d="lora_diag", c="lora_B.bias")
    a = one_part.arrays(method, one_part.site(W), RNG)
    theta = {k: theirs.params[keys[k]] for k in a if k in keys}
    assert set(theirs.params) == {keys[k] for k in theta}
    rest = {k: a[k] for k in ("A0", "B0")}
    y, grads = one_part.forward_and_grads(method, theta, rest, x, c, W, b)
    # the truncated base is off by u ‖W‖ over the gap of singular values, at worst
    S = np.linalg.svd(W, compute_uv=False)
    tolerance = 8 * 2.0**-52 * S[0] / (S[-4] - S[-3]) * min(shape) + 1e-13
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=tolerance * abs(theirs.y).max())
    for k in theta:
        np.testing.assert_allclose(
            grads[k], theirs.grads[keys[k]], rtol=0, atol=1e-13 * abs(theirs.grads[keys[k]]).max()
        )
    penalty = theirs.model.base_model._get_kasa_loss().item()
    assert method.penalty({"lin": theta}) == pytest.approx(penalty, rel=1e-13)
    merged = theirs.merged()
    np.testing.assert_allclose(
        weight_of(method, W, {**theta, **rest}), merged, rtol=0, atol=tolerance * abs(merged).max()
    )
