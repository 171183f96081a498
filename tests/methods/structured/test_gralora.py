import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.gralora import GraLoRA

KEYS = dict(A="gralora_A", B="gralora_B", H="gralora_A_general.weight", G="gralora_B_general.weight")


def drawn(method, W, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(0), moved=moved)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_every_block_has_a_rank_of_its_own_and_the_whole_k_times_more(k):
    W = np.zeros((16, 24))
    D = weight_of(GraLoRA(r=4, k=k), W, drawn(GraLoRA(r=4, k=k), W, moved=1.0))
    blocks = D.reshape(k, 16 // k, k, 24 // k).transpose(0, 2, 1, 3)
    assert (np.linalg.matrix_rank(blocks) == 4 // k).all()
    assert np.linalg.matrix_rank(D) == min(4 * k, 16)


def test_factors_are_as_large_as_loras():
    a = drawn(GraLoRA(r=4, k=2, h=3), np.zeros((16, 24)))
    assert sum(v.size for v in a.values()) == (4 + 3) * (16 + 24)
    assert not a["B"].any() and not a["G"].any() and abs(a["A"]).max() <= 12**-0.5


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (dict(r=3, k=2), "k must divide r, found 2 and 3"),
        (dict(r=5, k=5), "k must divide 16 and 24, both widths, found 5"),
    ],
)
def test_what_does_not_fit_is_named(fields, line):
    with pytest.raises(Bad, match=line):
        drawn(GraLoRA(**fields), np.zeros((16, 24)))


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "k", "h"), [((9, 14), 1, 2), ((8, 12), 2, 0), ((8, 12), 4, 3)])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, k, h):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    config = peft.GraloraConfig(r=4, alpha=5, gralora_k=k, hybrid_r=h, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    method = GraLoRA(r=4, k=k, h=h, alpha=5.0)
    theta = {n: theirs.params[KEYS[n]] for n in drawn(method, W)}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for n in theta:
        g = theirs.grads[KEYS[n]]
        np.testing.assert_allclose(grads[n], g, rtol=0, atol=1e-12 * abs(g).max())
    np.testing.assert_allclose(weight_of(method, W, theta), theirs.merged(), rtol=0, atol=1e-12 * abs(W).max())
