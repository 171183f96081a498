"""Sharing the work out among threads changes no bit, and long attention in blocks equals attention in one."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.bench.cases import settings
from minipeft.bench.ours import our_model
from minipeft.engine import fast, ops
from minipeft.engine.backend import read_only
from minipeft.engine.fast import attention, blocks
from minipeft.engine.gradcheck import gradcheck
from minipeft.engine.tensor import value_and_grad
from minipeft.model.batch import batch
from minipeft.train import fit


@pytest.fixture
def threads():
    """As many share the work as it is called with, until the end of the test."""
    before = blocks._threads.get()
    yield blocks._threads.set
    blocks._threads.set(before)


def normal(*shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def attended(q, k, v, bias):
    return value_and_grad(lambda t: ops.sum(ops.attention(t["q"], t["k"], t["v"], bias, scale=0.3) * weights(q)))(
        dict(q=q, k=k, v=v)
    )


def weights(q):
    return np.cos(np.arange(q.size, dtype=q.dtype)).reshape(q.shape)


def causal(t, dtype=np.float64):
    hidden = np.finfo(dtype).min / 2
    return np.where(np.tri(t, dtype=bool), 0, hidden).astype(dtype)[None, None]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", ["no", "causal", "padded"])
def test_attention_in_blocks_equals_attention_in_one(monkeypatch, groups, masked):
    t = 70
    q, k, v = normal((2, 4, t, 8), (2, groups, t, 8), (2, groups, t, 8))
    bias = causal(t) if masked == "causal" else np.zeros((1, 1, t, t))
    if masked == "padded":  # the first queries of a row see nothing
        bias = np.minimum(causal(t), np.where(np.arange(t) < 5, causal(2)[0, 0, 0, 1], 0))
    whole, one = attended(q, k, v, bias)
    monkeypatch.setattr(attention, "KEPT", 1 << 10)
    cut, many = attended(q, k, v, bias)
    assert len(attention._query_blocks(2, t, t, attention._split_bias(bias, groups), q.dtype)) > 1
    np.testing.assert_allclose(cut, whole, rtol=1e-12)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-10, atol=1e-12)


def test_attention_in_blocks_has_the_gradient_of_finite_differences(monkeypatch):
    monkeypatch.setattr(attention, "KEPT", 1 << 8)
    t = 40
    q, k, v, bias = normal((1, 2, t, 4), (1, 1, t, 4), (1, 1, t, 4), (1, 2, t, t))
    gradcheck(lambda a: ops.sum(ops.attention(a["q"], a["k"], a["v"], scale=0.5) * weights(q)), dict(q=q, k=k, v=v))
    gradcheck(lambda a: ops.sum(ops.attention(q, k, v, a["bias"], scale=0.5) * weights(q)), dict(bias=bias))


def test_long_causal_attention_leaves_out_hidden_keys():
    found = attention._query_blocks(1, 1024, 1024, attention._split_bias(causal(1024, np.float32), 1), np.float32)
    assert [n for _, n in found] == [at.stop for at, _ in found]


def test_a_mask_that_nobody_can_write_to_is_laid_out_once():
    mask, other = read_only(causal(70)), causal(70)
    laid = attention._keys_first(mask)
    np.testing.assert_array_equal(laid, mask)
    assert laid.swapaxes(-1, -2).flags.c_contiguous
    assert attention._keys_first(mask) is laid and attention._keys_first(read_only(causal(70))) is not laid
    attention._keys_first(other)
    other[...] = 1
    np.testing.assert_array_equal(attention._keys_first(other), other)


@pytest.mark.parametrize("n, width, count", [(512, 512, 1), (512, 4096, 4), (509, 4096, 1), (0, 8, 1), (48, 10**6, 1)])
def test_thin_pieces_are_equal_and_small_or_one(n, width, count):
    assert blocks.thin(n, width) == count
    assert n % count == 0 and (count == 1 or n // count * width <= blocks.UNPACKED)


@pytest.mark.parametrize("rows", [24, 480])  # fewer and more than it pays to change W for
def test_thin_products_in_a_stack_equal_whole_ones(monkeypatch, rows):
    x, W, A, B = normal((rows, 64), (96, 64), (8, 64), (96, 8))

    def computed():
        f = lambda t: ops.sum(ops.linear_lowrank(t["x"], W, t["A"], t["B"], s=2.0) ** 2)
        g = lambda t: ops.sum(ops.add_lowrank(t["x"] @ W.T, t["x"], t["A"], t["B"], s=2.0) ** 2)
        return [value_and_grad(h)(dict(x=x, A=A, B=B)) for h in (f, g)]

    whole = computed()
    monkeypatch.setattr(blocks, "UNPACKED", 8 * 96 * 6)
    monkeypatch.setattr(blocks, "FEW", 1)
    assert blocks.thin(rows, 8 * 96) == rows // 6
    for (value, grads), (want, want_grads) in zip(computed(), whole, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-12)
        for name in grads:
            np.testing.assert_allclose(grads[name], want_grads[name], rtol=1e-9, atol=1e-9)


def test_sharing_changes_no_bit_of_the_rows(threads):
    x, y = normal((1024, 512), (1024, 512), dtype=np.float32)
    alone = ops.silu_mul(x, y)
    threads(3)
    np.testing.assert_array_equal(ops.silu_mul(x, y), alone)


@pytest.mark.parametrize("op", ["linear_lowrank", "matmul", "block_matmul", "attention"])
def test_sharing_products_agrees_with_one_thread(monkeypatch, threads, op):
    x, W, A, B = normal((300, 64), (96, 64), (8, 64), (96, 8))
    q = normal((2, 4, 32, 8))[0]
    if op == "attention":
        f, theta = lambda t: ops.sum(ops.attention(t["q"], q, q, scale=0.3) * weights(q)), dict(q=q)
    elif op == "block_matmul":
        f, theta = lambda t: ops.sum(ops.block_matmul(t["x"], t["R"]) ** 2), dict(x=x, R=normal((8, 8, 8))[0])
    elif op == "matmul":
        f, theta = lambda t: ops.sum((t["x"] @ W.T) ** 2), dict(x=x)
    else:
        f = lambda t: ops.sum(ops.linear_lowrank(t["x"], W, t["A"], t["B"], s=2.0) ** 2)
        theta = dict(x=x, A=A, B=B)
    loss, grads = value_and_grad(f)(theta)
    monkeypatch.setattr(blocks, "PAYS_FLOPS", 0)
    with blocks.sharing_cores():
        threads(3)
        shared, found = value_and_grad(f)(theta)
    np.testing.assert_allclose(shared, loss, rtol=1e-12)
    for name in grads:
        np.testing.assert_allclose(found[name], grads[name], rtol=1e-9, atol=1e-9)


def test_the_forward_pass_alone_below_the_size_from_which_sharing_pays(monkeypatch, threads):
    """The backward pass has twice the operations, so only it is shared out."""
    q = normal((2, 4, 32, 8))[0]
    (loss, one), flops = attended(q, q, q, causal(32)), 2 * 2 * 4 * 32 * 32 * 16
    monkeypatch.setattr(blocks, "PAYS_FLOPS", 1.5 * flops)
    threads(2)
    shared, two = attended(q, q, q, causal(32))
    np.testing.assert_allclose(shared, loss, rtol=1e-12)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-9, atol=1e-12)


def test_an_error_in_a_block_is_raised(threads):
    threads(2)

    def f(at):
        raise ValueError(f"rows {at.start}")

    with pytest.raises(ValueError, match="rows"):
        blocks.over_rows(f, 64, 1 << 24)


def test_sharing_is_over_afterwards():
    with blocks.sharing_cores():
        pass
    assert blocks._threads.get() == 0
    with blocks.sharing_cores(largest=1.0):
        assert blocks._threads.get() <= 1


@pytest.mark.wide
@pytest.mark.skipif(blocks._openblas() is None, reason="another BLAS library than OpenBLAS")
def test_trainings_side_by_side_give_the_bits_of_one_after_another():
    """Two share cores, one is too small to, one computes the text: none changes what another computes."""
    sizes = ["M,layers=1,b=4,t=64", "M,layers=1,b=3,t=96", "S,layers=1", "S,d=96,layers=1"]
    models = [our_model(size) for size in sizes]

    def trained(i):
        adapted, s = attach(models[i], "lora", targets="all-linear", seed=i), settings(sizes[i])
        ids = np.random.default_rng(i).integers(0, s["vocab"], (s["b"], s["t"]))
        with fast.text() if i == 3 else contextlib.nullcontext():
            return fit(adapted, [batch(input_ids=ids, labels=ids)], steps=2).adapted.theta

    get, put = blocks._openblas()
    had = get()
    try:
        put(2)  # more than the tests' own
        alone = [trained(i) for i in range(len(sizes))]
        with ThreadPoolExecutor(len(sizes)) as pool:
            together = list(pool.map(trained, range(len(sizes))))
        assert get() == 2
    finally:
        put(had)
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(one[k], other[k]) for k in one)
