import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.orthogonal.boft import BOFT, gathered


def drawn(method, W, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(0), moved=moved)


def rotation(method, n):
    """M of random blocks."""
    a = drawn(method, np.zeros((n, n)), moved=0.7)
    return weight_of(method, np.eye(n), a | dict(s=np.ones(n))).T, a["R"]


@pytest.mark.parametrize(("n", "fields"), [
    (12, dict(block=3)), (12, dict(block=2, by_number=True)), (16, dict(block=4, factors=2)), (16, dict(block=2, factors=4)),
    (24, dict(block=2, factors=3)), (16, dict(block=16)),
])  # fmt: skip
def test_the_product_is_orthogonal_and_each_factor_mixes_twice_as_many(n, fields):
    method = BOFT(**fields)
    M, R = rotation(method, n)
    np.testing.assert_allclose(M @ M.T, np.eye(n), atol=1e-13)
    assert np.isclose(np.linalg.det(M), 1) and abs(M - M.T).max() > 0.1
    reached = R.shape[-1] * 2 ** (method.factors - 1)
    assert all((abs(row) > 1e-14).sum() == reached for row in M)
    support = abs(M) > 1e-14
    assert all(support[i, j] == (i // reached == j // reached) for i in range(n) for j in range(n))


def test_the_order_of_inputs_is_the_butterflys():
    assert gathered(8, 4, 0).tolist() == list(range(8))
    assert gathered(16, 4, 1).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert gathered(8, 2, 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_only_the_skew_part_of_a_block_acts():
    a = drawn(BOFT(block=3), np.zeros((4, 6)), moved=0.5)
    other = a | dict(R=a["R"] + np.eye(3) + np.ones((3, 3)))
    W = np.random.default_rng(1).standard_normal((4, 6))
    np.testing.assert_allclose(weight_of(BOFT(block=3), W, other), weight_of(BOFT(block=3), W, a), atol=1e-14)


@pytest.mark.parametrize(
    ("width", "fields", "line"),
    [
        (10, dict(block=4), "block must divide the width 10, found 4"),
        (10, dict(block=3, by_number=True), "block must divide the width 10, found 3"),
        (12, dict(block=3, factors=2), "need blocks of even size"),
        (12, dict(block=4, factors=2), "runs of 8 inputs divide 12"),
    ],
)
def test_what_does_not_fit_is_named(width, fields, line):
    with pytest.raises(Bad, match=line):
        drawn(BOFT(**fields), np.zeros((5, width)))


def test_dropout_makes_blocks_of_one_factor_the_identity():
    """As often as it says, in training alone; W' stays the rotated weight else."""
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((5, 16)), np.eye(16)
    method = BOFT(block=4, factors=2, block_dropout=0.3)
    a = drawn(method, W, moved=0.7)
    np.testing.assert_allclose(one_part.output(method, a, x, W).T, weight_of(method, W, a), atol=1e-13)
    spared = []
    for seed in range(50):
        got = one_part.output(method, a, x, W, train=True, rng=np.random.default_rng(seed)).T
        best = None
        for factor in range(2):
            for mask in range(16):  # which of the four blocks were spared
                keep = np.ones((2, 4))
                keep[factor] = [mask >> k & 1 for k in range(4)]
                if np.allclose(got, weight_of(method, W, a | dict(R=a["R"] * keep[..., None, None])), atol=1e-12):
                    best = factor, 4 - bin(mask).count("1")
                    break
            if best:
                break
        assert best is not None
        spared.append(best)
    factors, counts = zip(*spared)
    assert set(factors) == {0, 1} and abs(np.mean(counts) / 4 - 0.3) < 5 * np.sqrt(0.21 / (4 * len(counts)))


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "fields"), [
    ((9, 14), dict(block=7)), ((8, 12), dict(block=3, by_number=True)), ((9, 16), dict(block=4, factors=2)), ((5, 16), dict(block=2, factors=4)),
])  # fmt: skip
def test_output_gradients_and_merged_weight_are_those_of_peft(monkeypatch, shape, fields):
    """With more factors than one, PEFT's extension for CUDA gives way to a sum of blocks on the diagonal."""
    import peft
    import torch
    from peft.tuners.boft import layer

    class OnTheDiagonal:
        apply = staticmethod(lambda blocks: torch.stack([torch.block_diag(*factor) for factor in blocks]))

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", OnTheDiagonal)
    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    own = {"boft_block_size": 0, "boft_block_num" if "by_number" in fields else "boft_block_size": fields["block"]}
    config = peft.BOFTConfig(target_modules=["lin"], boft_n_butterfly_factor=fields.get("factors", 1), **own)
    torch.set_default_dtype(torch.float64)  # PEFT's identity is of the default type
    try:
        theirs = one_part.Peft(config, W, b, x, c)
        merged = theirs.merged()
    finally:
        torch.set_default_dtype(torch.float32)
    method, theta = BOFT(**fields), dict(R=theirs.params["boft_R"], s=theirs.params["boft_s"][:, 0])
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for k, g in (("R", theirs.grads["boft_R"]), ("s", theirs.grads["boft_s"][:, 0])):
        np.testing.assert_allclose(grads[k], g, rtol=0, atol=1e-11 * abs(g).max())
    np.testing.assert_allclose(weight_of(method, W, theta), merged, rtol=0, atol=1e-12 * abs(W).max())
