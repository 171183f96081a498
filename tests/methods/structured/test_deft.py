import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.deft import DEFT
from minipeft.methods.structured.para import PaRa

KEYS = dict(P="deft_P", R="deft_R")


def drawn(method, W, moved=0.5):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(1), moved=moved)


@pytest.mark.parametrize("r", [1, 3, 9])
def test_para_takes_a_space_out_of_the_outputs(r):
    """QᵀW' = 0, and what is orthogonal to Q stays; a rank beyond out takes all."""
    W = np.random.default_rng(0).standard_normal((6, 8))
    method = PaRa(r=r)
    a = drawn(method, W)
    W1, k = weight_of(method, W, a), min(r, 6)
    assert set(a) == {"P"} and a["P"].shape == (6, k)
    Q = np.linalg.qr(a["P"])[0]
    np.testing.assert_allclose(Q.T @ W1, 0, atol=1e-13)
    rest = np.eye(6) - Q @ Q.T
    np.testing.assert_allclose(rest @ W1, rest @ W, rtol=0, atol=1e-13)
    assert np.linalg.matrix_rank(W1, tol=1e-9) == 6 - k
    np.testing.assert_allclose(weight_of(method, W1, a), W1, rtol=0, atol=1e-13)  # once is enough


@pytest.mark.parametrize("projector", ["relu", "qr"])
@pytest.mark.parametrize(("alpha", "r"), [(None, 2), (5.0, 2), (5.0, 9)])
def test_it_starts_as_the_weight_was_unless_told_otherwise(projector, alpha, r):
    W = np.random.default_rng(0).standard_normal((6, 8))
    method = DEFT(r=r, projector=projector, alpha=alpha)
    np.testing.assert_allclose(weight_of(method, W, drawn(method, W, moved=0)), W, rtol=0, atol=1e-14)
    other = DEFT(r=r, projector=projector, alpha=alpha, start="normal")
    a = drawn(other, W, moved=0)
    assert 0 < abs(a["R"]).max() < 0.08 and abs(weight_of(other, W, a) - W).max() > 1e-4
    assert (method.identity, other.identity, PaRa().identity) == (True, False, False)


def test_dropout_acts_on_what_is_put_in():
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((5, 40)), rng.standard_normal((1, 3, 40))
    method = DEFT(r=2, alpha=3.0, dropout=0.5)
    a = drawn(method, W)
    y = one_part.output(method, a, x, W, train=True, rng=np.random.default_rng(2))
    keep = np.random.default_rng(2).random(x.shape, dtype=np.float32) >= 0.5
    taken = x @ weight_of(PaRa(r=2, projector="relu"), W, dict(P=a["P"])).T
    np.testing.assert_allclose(y - taken, (2 * keep * x) @ (1.5 * a["P"] @ a["R"]).T, rtol=0, atol=1e-12)


def test_bad_fields_are_named():
    with pytest.raises(Bad, match="projector must be 'relu' or 'qr', found 'svd'"):
        DEFT(projector="svd")
    with pytest.raises(Bad, match="alpha must be positive, found 0"):
        DEFT(alpha=0)


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(6, 8), (13, 5)])
@pytest.mark.parametrize("r", [1, 4, 20])
@pytest.mark.parametrize("projector", ["relu", "qr"])
@pytest.mark.parametrize(("alpha", "para"), [(None, False), (5, False), (0, False), (None, True)])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, r, projector, alpha, para, monkeypatch):
    import peft
    import torch
    from peft.tuners.deft import layer

    from minipeft.interop.peft.harness import Wide

    monkeypatch.setattr(layer, "torch", Wide(torch))
    rng = np.random.default_rng(0)
    out, in_ = shape
    W, b, x, c = (rng.standard_normal(s) for s in (shape, (out,), (2, 3, in_), (2, 3, out)))
    config = peft.DeftConfig(r=r, decomposition_method=projector, alpha=alpha, para=para, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    own = dict(r=r, projector=projector)
    method = PaRa(**own) if para else DEFT(**own, alpha=alpha or None)
    names = {k: KEYS[k] for k in drawn(method, W)}
    assert set(names.values()) == set(theirs.params)
    theta = {k: theirs.params[name] for k, name in names.items()}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    cond = np.linalg.cond(theta["P"]) if projector == "qr" else 1.0
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-14 * cond * abs(theirs.y).max())
    for k, name in names.items():
        most = abs(theirs.grads[name]).max()
        np.testing.assert_allclose(grads[k], theirs.grads[name], rtol=0, atol=1e-14 * cond**2 * (1 + most))
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta), merged, rtol=0, atol=1e-14 * cond * (1 + abs(merged).max()))


@pytest.mark.hf
@pytest.mark.parametrize("projector", ["relu", "qr"])
def test_r_starts_as_peft_s_where_p_does(projector):
    import peft
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6))
    config = peft.DeftConfig(r=3, decomposition_method=projector, alpha=5, target_modules=["0"])
    lin = peft.get_peft_model(model, config).base_model.model[0]
    P, R, W = (t.detach().double().numpy() for t in (lin.deft_P["default"], lin.deft_R["default"], lin.weight))
    method = DEFT(r=3, projector=projector, alpha=5.0)
    np.testing.assert_allclose(R, method.projector_of(P)[1].T @ W / method.scale_of(P), rtol=0, atol=1e-6)
