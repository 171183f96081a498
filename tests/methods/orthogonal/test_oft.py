import dataclasses

import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import symbols
from minipeft.errors import Bad
from minipeft.method import Step, weight_of
from minipeft.methods.orthogonal.oft import OFT


def skew(row, beta):
    Q, n = np.zeros((beta, beta)), 0
    for i in range(beta):
        for j in range(i + 1, beta):
            Q[i, j], Q[j, i] = row[n], -row[n]
            n += 1
    return Q


def rotations(Q, method, beta):
    """Every block by the definitions, with matrix powers and an inverse."""
    I, out = np.eye(beta), []
    for row in Q:
        S = skew(row, beta)
        if method.cayley == "exact":
            out.append((I - S) @ np.linalg.inv(I + S))
            continue
        k = max(method.terms - 1, 3)
        R = {1: I, 2: I + 2 * S}.get(method.terms)
        if R is None:
            R = I + sum(2 * np.linalg.matrix_power(S, n) for n in range(1, k)) + np.linalg.matrix_power(S, k)
        out.append(R)
    return out


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("fields", [dict(cayley="exact"), *(dict(terms=t) for t in range(1, 8))], ids=str)
def test_the_weight_is_rotated_block_by_block(fields, share):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((5, 12))
    method = OFT(block=4, block_share=share, **fields)
    Q = one_part.arrays(method, one_part.site(W), rng, moved=0.3)["Q"]
    assert Q.shape == (1 if share else 3, 6)
    Rs = rotations(Q, method, 4) * (3 if share else 1)
    expected = np.hstack([W[:, 4 * i : 4 * i + 4] @ R.T for i, R in enumerate(Rs)])
    np.testing.assert_allclose(weight_of(method, W, dict(Q=Q)), expected, rtol=0, atol=1e-13)
    E = np.hstack([W[:, 4 * i : 4 * i + 4] @ R for i, R in enumerate(Rs)])
    np.testing.assert_allclose(weight_of(method, W, dict(Q_emb=Q)), E, rtol=0, atol=1e-13)


def test_the_exact_rotation_is_orthogonal_and_the_series_is_its_inverse():
    Q = 0.1 * np.random.default_rng(0).standard_normal((3, 10))
    R = OFT(block=5, cayley="exact").rotation(Q)
    np.testing.assert_allclose(R @ R.swapaxes(1, 2), np.broadcast_to(np.eye(5), R.shape), rtol=0, atol=1e-14)
    N = OFT(block=5, terms=60).rotation(Q)
    np.testing.assert_allclose(N, R.swapaxes(1, 2), rtol=0, atol=1e-14)
    assert abs(N - R).max() > 0.1


@pytest.mark.parametrize(
    "d, fields, beta", [(24, dict(block=32), 24), (24, dict(block=5), 4), (24, dict(block=7), 6),
                        (24, dict(block=0, r=3), 8),
                        (24, dict(block=0, r=5), 6), (20, dict(block=3), 2)],
)  # fmt: skip
def test_what_does_not_divide_is_replaced_by_the_nearest_divisor(d, fields, beta):
    assert symbols(OFT(**fields), one_part.site(np.zeros((2, d))))["beta"] == beta


def test_coft_reads_the_projection_and_writes_it_after_a_step():
    rng = np.random.default_rng(0)
    method, Q = OFT(block=4, coft=True, eps=0.5, cayley="exact"), rng.standard_normal((3, 6))
    Q[0] *= 1e-3  # this one lies inside
    radius = 0.5 / np.sqrt(3)
    projected = Q.copy()
    for i in (1, 2):
        projected[i] *= radius / np.linalg.norm(skew(Q[i], 4))
    free = OFT(block=4, cayley="exact")
    np.testing.assert_allclose(method.rotation(Q), free.rotation(projected), rtol=0, atol=1e-14)
    theta = {"layers.0.attn.q.weight": dict(Q=Q.copy())}
    method.after_step(Step(1, 1, theta, {}, {}))
    written = theta["layers.0.attn.q.weight"]["Q"]
    np.testing.assert_allclose(written, projected, rtol=1e-7)
    np.testing.assert_array_equal(written[0], Q[0])
    np.testing.assert_allclose(method.rotation(written), method.rotation(Q), rtol=0, atol=1e-15)


def test_bad_fields_are_named():
    for fields, word in [(dict(r=2), "block and r"), (dict(block=0), "block and r"),
                         (dict(cayley="neuman"), "did you mean neumann"),
                         (dict(terms=0), "terms"), (dict(coft=True, eps=0.0), "eps")]:  # fmt: skip
        with pytest.raises(Bad, match=word):
            OFT(**fields)


@pytest.mark.hf
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    "theirs, ours",
    [
        (dict(oft_block_size=4), dict(block=4)),
        (dict(oft_block_size=5), dict(block=5)),
        (dict(r=3, oft_block_size=0), dict(block=0, r=3)),
        (dict(oft_block_size=4, use_cayley_neumann=False), dict(block=4, cayley="exact")),
        (
            dict(oft_block_size=4, num_cayley_neumann_terms=7, block_share=True),
            dict(block=4, terms=7, block_share=True),
        ),
        (dict(oft_block_size=4, coft=True, eps=0.5), dict(block=4, coft=True, eps=0.5)),
        (
            dict(oft_block_size=4, coft=True, eps=0.5, block_share=True),
            dict(block=4, coft=True, eps=0.5, block_share=True),
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_output_gradients_and_merged_weight_are_those_of_peft(theirs, ours, table):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((9, 12), (9,), (2, 3, 12), (2, 3, 9)))
    if table:
        b, x, c = None, rng.integers(0, 9, (2, 3)), rng.standard_normal((2, 3, 12))
    hf = one_part.Peft(peft.OFTConfig(target_modules=["lin"], **theirs), W, b, x, c)
    name, key = ("Q_emb", "oft_embedding_R.weight") if table else ("Q", "oft_R.weight")
    method = OFT(**ours)
    theta = {name: hf.params[key]}
    if method.coft:  # its radius is a number of float32
        K = len(theta[name])
        radius = np.float32(method.eps) * np.float32(1 / np.sqrt(np.float32(K)))
        method = dataclasses.replace(method, eps=float(radius) * np.sqrt(K))
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b, table)
    np.testing.assert_allclose(y, hf.y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(grads[name], hf.grads[key], rtol=0, atol=1e-12)
    np.testing.assert_allclose(weight_of(method, W, theta), hf.merged(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("settings", "cayley"), [(dict(block=1), "neumann"), (dict(block=0, r=100), "exact")])
def test_blocks_of_one_turn_nothing(settings, cayley):
    """PEFT takes the nearest number of blocks that there can be, which is one for each input where more are asked for."""
    model = tiny.model()
    adapted = attach(model, OFT(cayley=cayley, **settings))
    assert {a.shape[1] for a in adapted.adapters[0].arrays.values()} == {0}
    example = tiny.example(model)
    np.testing.assert_allclose(adapted.logits(example), Adapted(model).logits(example), rtol=0, atol=1e-13)
