import dataclasses
import sys
import types

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw
from minipeft.errors import Bad
from minipeft.method import Site
from minipeft.methods.lowrank.corda import CorDA

SITE = "layers.0.attn.v.weight"  # (12, 24)


def drawn(shape, seed=0, batches=3):
    """A weight, and batches of inputs that vary more in some directions."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.standard_normal(shape[1]))
    return rng.standard_normal(shape), [rng.standard_normal((40, shape[1])) * spread for _ in range(batches)]


def begun(method, W, batches):
    site = Site("q.weight", W.shape, "linear", None, W, inputs=batches)
    return {k: a for k, (a, _) in draw(Facts(method, site, np.random.default_rng(0))).items()}


def moments(batches, scaled=True):
    C = sum(X.T @ X / (max(X.max(), -X.max()) ** 2 if scaled else 1) for X in batches) / len(batches)
    return C + 0.01 * np.diag(C).mean() * np.eye(len(C))


def part(method, W, batches):
    own = begun(method, W, batches)
    return method.scale * own["B"] @ own["A"]


@pytest.mark.parametrize("shape", [(7, 10), (10, 7)])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_taken_is_what_the_inputs_feel_most_or_least(shape, rslora):
    """‖(W − s B0 A0) C‖ is the least that rank r leaves (Eckart & Young); in the other mode it is ‖s B0 A0 C‖ that is."""
    W, batches = drawn(shape)
    C, m = moments(batches), min(shape)
    sigma = np.linalg.svd(W @ C, compute_uv=False)
    most, least = (part(CorDA(r=3, alpha=5.0, rslora=rslora, mode=mode), W, batches) for mode in ("ipm", "kpm"))
    bound = 8 * 2.0**-53 * np.linalg.norm(W @ C) * m
    assert np.allclose(np.linalg.svd((W - most) @ C, compute_uv=False), [*sigma[3:], 0, 0, 0], rtol=0, atol=bound)
    assert np.allclose(np.linalg.svd(least @ C, compute_uv=False)[:3], sigma[-3:], rtol=0, atol=bound)
    rest = part(CorDA(r=m - 3, alpha=5.0, mode="kpm"), W, batches)
    assert np.allclose(most + rest, W, rtol=0, atol=1e-12)


def test_the_factors_share_the_singular_values():
    W, batches = drawn((7, 10))
    method = CorDA(r=3, alpha=5.0)
    own, C = begun(method, W, batches), moments(batches)
    sigma = np.diag(np.linalg.svd(W @ C, compute_uv=False)[:3])
    assert np.allclose(own["B"].T @ own["B"], sigma / method.scale, atol=1e-12)
    assert np.allclose(own["A"] @ C @ C @ own["A"].T, sigma / method.scale, atol=1e-11)
    assert (own["A0"] == own["A"]).all() and (own["B0"] == own["B"]).all()


def test_inputs_that_vary_alike_leave_the_principal_part():
    W, _ = drawn((7, 10))
    U, S, Vt = np.linalg.svd(W)
    assert np.allclose(part(CorDA(r=3), W, [2 * np.eye(10)]), (U[:, :3] * S[:3]) @ Vt[:3], atol=1e-13)


def test_scaled_batches_weigh_alike_and_by_their_largest_entry_with_its_sign():
    W, batches = drawn((7, 10))
    louder = [7 * batches[0], *batches[1:]]
    for inputs, same in (("scaled", True), ("plain", False)):
        method = CorDA(r=3, alpha=5.0, inputs=inputs)
        assert np.allclose(part(method, W, louder), part(method, W, batches), atol=1e-12) == same
    lopsided = [np.where(batches[0] > 0, 0.1, 1) * batches[0], batches[1]]
    assert abs(lopsided[0].min()) > 2 * lopsided[0].max()
    U = np.linalg.svd(W @ moments(lopsided))[0][:, :3]
    assert np.allclose(part(CorDA(r=3, alpha=5.0), W, lopsided), U @ U.T @ W, atol=1e-11)


def test_before_training_the_model_is_the_base_and_off_it_is_exactly():
    model = tiny.model()
    batch, other = tiny.example(model), tiny.example(model, seed=2)
    for mode in ("ipm", "kpm"):
        adapted = attach(model, CorDA(r=2, alpha=6.0, mode=mode), targets="all-linear", data=[batch, other])
        assert np.allclose(adapted.logits(batch), Adapted(model).logits(batch), rtol=0, atol=1e-11)
        assert (adapted.using().logits(batch) == Adapted(model).logits(batch)).all()


def test_a_weight_of_lower_rank_and_empty_batches():
    W, batches = drawn((7, 10))
    W[2:] = 0.0
    own = begun(CorDA(r=4, alpha=5.0), W, [np.zeros((0, 10)), *batches])
    assert all(np.isfinite(a).all() for a in own.values()) and np.allclose(5 / 4 * own["B"] @ own["A"], W, atol=1e-12)


def test_refuses():
    W, batches = drawn((7, 10))
    with pytest.raises(Bad, match=r"corda: r must be at most 7, found 8 at q.weight"):
        begun(CorDA(r=8), W, batches)
    for none in ([np.zeros((4, 10))], None):
        with pytest.raises(Bad, match=r"corda: the inputs of q.weight: expected some that are not 0, found none"):
            begun(CorDA(r=2), W, none)
    with pytest.raises(Bad, match="corda: lora_bias and start go with factors that are drawn"):
        CorDA(lora_bias=True)
    with pytest.raises(Bad, match="corda measures inputs"):
        attach(tiny.model(), CorDA(r=2))
    with pytest.raises(Bad, match=r"corda: expected linears, found embed.tokens.weight"):
        attach(tiny.model(), CorDA(), targets="embed.tokens.weight", data=[tiny.example(tiny.model())])


@pytest.mark.hf
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
@pytest.mark.parametrize("shape", [(7, 10), (10, 7)])
def test_peft_finds_the_same_factors(shape, mode, transposed, monkeypatch):
    """Up to signs, in float32, whose error of the inverse is that of C's condition."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    attr = types.ModuleType("attr")  # PEFT does not say that it needs it
    attr.dataclass = dataclasses.dataclass
    monkeypatch.setitem(sys.modules, "attr", attr)
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    W, batches = drawn(shape)
    method = CorDA(r=3, alpha=5.0, mode=mode)
    own = begun(method, W, batches)
    lin = Conv1D(*shape) if transposed else torch.nn.Linear(shape[1], shape[0])
    lin.weight.data = torch.tensor(W.T if transposed else W, dtype=torch.float32).contiguous()
    net = torch.nn.Sequential(lin)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["0"], init_lora_weights="corda", fan_in_fan_out=transposed,
        corda_config=CordaConfig(corda_method=mode),
    )  # fmt: skip
    preprocess_corda(net, config, lambda: [net(torch.tensor(X[None], dtype=torch.float32)) for X in batches])
    theirs = get_peft_model(net, config).base_model.model[0]
    A, B = (p["default"].weight.detach().numpy() for p in (theirs.lora_A, theirs.lora_B))
    bound = 8 * 2.0**-24 * np.linalg.cond(moments(batches))
    sign = np.sign((own["B"] * B).sum(axis=0))
    assert np.allclose(own["B"] * sign, B, rtol=0, atol=bound * abs(B).max())
    assert np.allclose(own["A"] * sign[:, None], A, rtol=0, atol=bound * abs(A).max())
    base = theirs.base_layer.weight.detach().numpy()
    assert np.allclose(W - method.scale * own["B0"] @ own["A0"], base.T if transposed else base, rtol=0, atol=bound)
