"""The GPU's own kernels, products and graphs, beside the compositions that they stand for. On a real GPU alone."""

import contextlib

import numpy as np
import pytest
from both import on_numpy

from minipeft.engine import fast, ops, value_and_grad
from minipeft.engine.backend import lowest, to_device, to_host, xp
from minipeft.engine.bfloat16 import bfloat16
from minipeft.engine.tensor import value
from minipeft.train import AdamW

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("device", ["cupy"], indirect=True)]
UNIT = {np.float64: 2.0**-53, np.float32: 2.0**-24}
DTYPES = [np.float64, np.float32]


@pytest.fixture
def cuda(device):
    """CuPy, with products and kernels, which the stand-in for it has not."""
    if device.__name__ != "cupy":
        pytest.skip("kernels need CuPy")
    return device


@pytest.fixture
def blas(cuda):
    from minipeft.engine.fast import cuda_blas

    return cuda_blas


# --- products -----------------------------------------------------------------------------------------------------------


def as_it_lies(a, how):
    """The array with other strides: its last axes turned, its second axis last but one in memory, or with gaps."""
    if how == "turned":
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, -1, -2)), -1, -2)
    if how == "heads last" and a.ndim == 4:
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 1, 2)), 1, 2)
    if how == "gaps":
        wide = np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
        wide[..., : a.shape[-1]] = a
        return wide[..., : a.shape[-1]]
    return a


def placed(a, how):
    """The same on the device, with the same strides."""
    lies = as_it_lies(a, how)
    if how == "gaps":
        return to_device(lies.base)[..., : a.shape[-1]]
    if how == "turned":
        return to_device(np.ascontiguousarray(lies.swapaxes(-1, -2))).swapaxes(-1, -2)
    return to_device(np.ascontiguousarray(lies.swapaxes(1, 2))).swapaxes(1, 2) if how == "heads last" and a.ndim == 4 else to_device(lies)  # fmt: skip


SHAPES = [((5, 7), (7, 6)), ((1, 7), (7, 1)), ((3, 4, 5, 7), (3, 4, 7, 6)), ((3, 4, 5, 7), (3, 1, 7, 6)), ((2, 1, 3, 5, 7), (2, 4, 1, 7, 6)),
          ((4, 5, 1), (4, 1, 6)), ((0, 7), (7, 6)), ((5, 0), (0, 6))]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("lie", ["dense", "turned", "heads last", "gaps"])
def test_products_of_any_layout(shapes, lie, dtype, blas, measured):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(s).astype(dtype) for s in shapes)
    want, cond = x.astype(np.float64) @ y, abs(x).astype(np.float64) @ abs(y)
    for xs, ys in ((lie, "dense"), ("dense", lie), (lie, lie)):
        got = to_host(blas.product(placed(x, xs), placed(y, ys)))
        ratio = (abs(got - want) / (UNIT[dtype] * cond + 1e-300)).max(initial=0.0)
        measured("products", ratio, dtype)
        assert got.dtype == dtype and ratio <= 8
    z = rng.standard_normal(want.shape).astype(dtype)
    for outs in ("dense", lie):
        out = placed(z.copy(), outs)
        blas.product(placed(x, lie), placed(y, lie), out=out, alpha=0.5, beta=2.0)
        assert (abs(to_host(out) - (0.5 * want + 2.0 * z)) <= 16 * UNIT[dtype] * (cond + 2 * abs(z))).all()


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("lie", ["dense", "turned", "heads last", "gaps"])
def test_products_in_bfloat16(shapes, lie, blas, measured):
    rng = np.random.default_rng(0)
    x, y = (on_numpy(lambda s=s: bfloat16(rng.standard_normal(s).astype(np.float32))) for s in shapes)
    wide = [on_numpy(a.dequantize).astype(np.float64) for a in (x, y)]
    want, cond = wide[0] @ wide[1], abs(wide[0]) @ abs(wide[1])
    for xs, ys in ((lie, "dense"), ("dense", lie), (lie, lie)):
        got = to_host(blas.product(placed(x.values, xs), placed(y.values, ys)))
        ratio = (abs(got - want) / (UNIT[np.float32] * cond + 1e-300)).max(initial=0.0)
        measured("products in bfloat16", ratio, np.float32)
        assert got.dtype == np.float32 and ratio <= 8
    z = rng.standard_normal(want.shape).astype(np.float32)
    for outs in ("dense", lie):
        out = placed(z.copy(), outs)
        blas.product(placed(x.values, lie), placed(y.values, lie), out=out, alpha=0.5, beta=2.0)
        assert (abs(to_host(out) - (0.5 * want + 2.0 * z)) <= 16 * UNIT[np.float32] * (cond + 2 * abs(z))).all()


def test_a_large_product_in_bfloat16(blas, measured):
    """Summed in float32 over 4096 products: in bfloat16 it would be off by a thousand times as much."""
    rng = np.random.default_rng(0)
    x, y = (
        on_numpy(lambda s=s: bfloat16(rng.standard_normal(s).astype(np.float32))) for s in ((256, 4096), (192, 4096))
    )
    wide = [on_numpy(a.dequantize).astype(np.float64) for a in (x, y)]
    want, cond = wide[0] @ wide[1].T, abs(wide[0]) @ abs(wide[1]).T
    ratio = (
        abs(to_host(blas.product(to_device(x.values), to_device(y.values).T)) - want) / (UNIT[np.float32] * cond)
    ).max()
    measured("products in bfloat16", ratio, np.float32)
    assert ratio <= 8


def test_the_device_rounds_as_the_host_does(cuda):
    """Every upper half of the bits with lower halves at and beside the middle; what is no number, too."""
    from minipeft.engine.fast.cuda_products import factors

    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | low).view(np.float32)
    want = on_numpy(lambda: bfloat16(x).values)
    W = bfloat16(xp.ones((1, len(low)), xp.float32))
    for lies in (to_device(x), to_device(np.ascontiguousarray(x.T)).T):
        assert (to_host(factors(lies, W)[0]) == want).all()
    row, bits = to_device(x.reshape(-1)), want.reshape(-1)
    for at in (slice(1, None), slice(2, 7), slice(0, 0), slice(0, 3), slice(4, 4001)):  # beside multiples of 16 bytes
        assert (to_host(factors(row[at], W)[0]) == bits[at]).all()
    assert (to_host(bfloat16(to_device(x)).values) == want).all()
    fine = np.random.default_rng(0).standard_normal((999, 7))
    assert (to_host(bfloat16(to_device(fine)).values) == on_numpy(lambda: bfloat16(fine).values)).all()


@pytest.mark.parametrize("lowrank", [False, True])
def test_linears_over_bfloat16(lowrank, cuda, measured):
    """A kernel's way and the composition, each against the host: rounded alike, so apart by float32's sums alone."""
    arrays = dict(x=normal(3, 5, 14), b=normal(10)) | (dict(A=normal(2, 14), B=normal(10, 2)) if lowrank else {})
    arrays = {k: a.astype(np.float32) for k, a in arrays.items()}

    def computed():
        W, g = bfloat16(to_device(normal(10, 14).astype(np.float32))), to_device(normal(3, 5, 10).astype(np.float32))

        def loss(t):
            low = [t["A"], t["B"]] if lowrank else []
            y = ops.linear_lowrank(t["x"], W, *low, t["b"], s=1.5) if lowrank else ops.linear(t["x"], W, t["b"])
            return ops.sum(y * g), y

        (_, y), grads = value_and_grad(loss)({k: to_device(a) for k, a in arrays.items()})
        return {"y": to_host(value(y))} | {k: to_host(v) for k, v in grads.items()}

    want = on_numpy(computed)
    for context in (fast.text(), contextlib.nullcontext()):
        with context:
            got = computed()
        for k, w in want.items():
            ratio = abs(got[k] - w).max() / (UNIT[np.float32] * 14 * abs(w).max())
            measured("products in bfloat16", ratio, np.float32)
            assert got[k].dtype == np.float32 and ratio <= 8, (k, ratio)


def test_tensor_float_is_opt_in_and_bounded(blas):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
    want, cond = x.astype(np.float64) @ y, abs(x).astype(np.float64) @ abs(y)
    exact = abs(to_host(blas.product(to_device(x), to_device(y))) - want) / cond
    blas.allow_tf32(True)
    try:
        rough = abs(to_host(blas.product(to_device(x), to_device(y))) - want) / cond
    finally:
        blas.allow_tf32(False)
    assert exact.max() <= 8 * 2.0**-24
    assert 8 * 2.0**-24 < rough.max() <= 4 * 2.0**-11  # each factor is rounded to 11 bits


# --- kernels ------------------------------------------------------------------------------------------------------------


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def causal(t):
    return np.triu(np.full((t, t), -1e9), 1)[None, None]


def blind(t):
    """A causal mask from which the first third of the keys is missing: its queries see nothing."""
    hidden = np.triu(np.ones((t, t)), 1) + (np.arange(t) < t // 3) > 0
    return constants(hidden * (lowest(WORKS_IN[0]) / 2))[0][None, None]


def padded(t, *left):
    """A causal mask of rows that begin with so many keys of padding."""
    hidden = np.triu(np.ones((t, t)), 1) + (np.arange(t) < np.array(left)[:, None, None]) > 0
    return constants(hidden * (lowest(WORKS_IN[0]) / 2))[0][:, None]


def block(norm, act):
    """What changes of low rank are given here is made again in the backward pass: a norm's value, and an activation's."""

    def f(x, A1, B1, A2, B2, A3, B3):
        w, b, U, V, W = constants(normal(40), normal(1, 40)[0], normal(72, 40), normal(1, 72, 40)[0], normal(40, 72))
        u = ops.rms_norm(x, w, eps=1e-5) if norm == "rms" else ops.layer_norm(x, w, b, eps=1e-5)
        h, up = ops.linear_lowrank(u, U, A1, B1, s=0.5), ops.linear_lowrank(u, V, A2, B2, s=0.5)
        h = ops.silu_mul(h, up) if act == "silu_mul" else getattr(ops, act)(h + up)
        return x + ops.add_lowrank(ops.linear(h, W), h, A3, B3, s=0.5)

    shapes = [(3, 50, 40), (8, 40), (72, 8), (3, 40), (72, 3), (12, 72), (40, 12)]
    return f, [normal(*shape) for shape in shapes]


def turned(*shape):
    angles = normal(*shape)
    return np.cos(angles), np.sin(angles)


OPS = {
    "linear": (lambda x, W, b: ops.linear(x, W, b), [normal(3, 5, 14), normal(10, 14), normal(10)]),
    "linear_lowrank": (lambda x, W, A, B, b: ops.linear_lowrank(x, W, A, B, b, s=1.5),
                       [normal(3, 5, 14), normal(10, 14), normal(2, 14), normal(10, 2), normal(10)]),
    "add_lowrank": (lambda y, x, A, B: ops.add_lowrank(y, x, A, B, s=1.5), [normal(3, 5, 10), normal(3, 5, 14), normal(2, 14), normal(10, 2)]),
    "block_matmul": (lambda x, R: ops.block_matmul(x, R), [normal(3, 5, 12), normal(3, 4, 4)]),
    "block_matmul with one block": (lambda x, R: ops.block_matmul(x, R), [normal(3, 5, 12), normal(1, 4, 4)]),
    "matmul": (lambda x, y: ops.matmul(x, y), [normal(3, 1, 5, 7), normal(1, 4, 7, 6)]),
    "rms_norm": (lambda x, w: ops.rms_norm(x, w, eps=1e-5), [normal(3, 5, 777), normal(777)]),
    "rms_norm by four": (lambda x, w: ops.rms_norm(x, w, eps=1e-5) + ops.rms_norm(x, w, eps=1e-5), [normal(3, 5, 776), normal(776)]),
    "layer_norm by four": (lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5) + ops.layer_norm(x, w, b, eps=1e-5), [normal(3, 5, 300), normal(300), normal(1, 300)[0]]),
    "add": (lambda x, y: ops.add(x, y), [normal(3, 160, 160), normal(1, 3, 160, 160)[0]]),
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5), [normal(3, 5, 300), normal(300), normal(300)]),
    "silu_mul": (lambda x, y: ops.silu_mul(x, y), [normal(3, 5, 77), normal(3, 5, 77) + 1]),
    "silu_mul by four": (lambda x, y: ops.silu_mul(x, y), [normal(3, 5, 76), normal(3, 5, 76) + 1]),
    "silu_mul that is broadcast": (lambda x, y: ops.silu_mul(x, y), [normal(3, 5, 76), normal(5, 76) + 1]),
    "gelu": (lambda x: ops.gelu(x), [normal(3, 5, 77)]),
    "gelu by four": (lambda x: ops.gelu(x), [normal(3, 4, 77)]),
    "gelu_tanh": (lambda x: ops.gelu_tanh(x), [normal(3, 5, 77)]),
    "gelu_tanh by four": (lambda x: ops.gelu_tanh(x), [normal(3, 4, 77)]),
    "rope": (lambda x: ops.rope(ops.swapaxes(x, a=1, b=2), **dict(zip(("cos", "sin"), constants(*turned(2, 1, 6, 4))))), [normal(2, 6, 5, 8)]),
    "attention": (lambda q, k, v: ops.attention(q, k, v, constants(causal(6))[0], scale=0.3), [normal(3, 4, 6, 8), normal(3, 2, 6, 8), normal(3, 2, 6, 5)]),
    "attention with a bias": (lambda q, k, v, b: ops.attention(q, k, v, b, scale=0.3),
                              [normal(3, 4, 6, 8), normal(3, 4, 9, 8), normal(3, 4, 9, 8), normal(1, 4, 6, 9)]),
    "attention that sees nothing": (lambda q, k, v: ops.attention(q, k, v, blind(6), scale=0.3), [normal(3, 4, 6, 8), normal(3, 2, 6, 8), normal(3, 2, 6, 5)]),
    "attention that sees nothing, with a bias": (lambda q, k, v, b: ops.attention(q, k, v, b + blind(6), scale=0.3),
                                                [normal(3, 4, 6, 8), normal(3, 2, 6, 8), normal(3, 2, 6, 5), normal(1, 4, 6, 6)]),
    "long attention that sees nothing": (lambda q, k, v: ops.attention(q, k, v, blind(1100), scale=0.3),
                                         [normal(2, 4, 1100, 8), normal(2, 4, 1100, 8), normal(2, 4, 1100, 8)]),
    "long attention": (lambda q, k, v: ops.attention(q, k, v, constants(causal(1100))[0], scale=0.3),
                       [normal(2, 4, 1100, 8), normal(2, 4, 1100, 8), normal(2, 4, 1100, 8)]),
    "attention of odd sizes": (lambda q, k, v: ops.attention(q, k, v, scale=0.3), [normal(2, 4, 9, 7), normal(2, 2, 70, 7), normal(2, 2, 70, 5)]),
    "attention of wide heads": (lambda q, k, v: ops.attention(q, k, v, constants(causal(130))[0], scale=0.1),
                                [normal(1, 2, 130, 128), normal(1, 1, 2, 130, 128)[0], normal(1, 2, 130, 100)]),
    "attention of grouped heads beside padding": (lambda q, k, v: ops.attention(*(ops.swapaxes(x, a=1, b=2) for x in (q, k, v)), padded(150, 0, 70), scale=0.3),
                                                  [normal(2, 150, 6, 32), normal(2, 150, 2, 32), normal(1, 2, 150, 2, 32)[0]]),
    "attention under a bias of each head": (lambda q, k, v: ops.attention(q, k, v, constants(np.float32(normal(1, 2, 67, 67)))[0], scale=0.3),
                                            [normal(3, 2, 67, 16), normal(1, 3, 2, 67, 16)[0], normal(3, 2, 67, 16)]),
    "linear_lowrank of many rows": (lambda x, A, B: ops.linear_lowrank(x, constants(normal(300, 200))[0], A, B, s=1.5),
                                    [normal(5, 200, 200), normal(16, 200), normal(300, 16)]),
    "linear_lowrank of rank 40": (lambda x, W, A, B, b: ops.linear_lowrank(x, W, A, B, b, s=1.5), [normal(3, 50, 30), normal(20, 30), normal(40, 30), normal(20, 40), normal(20)]),
    "linear_lowrank of rank 70": (lambda x, W, A, B, b: ops.linear_lowrank(x, W, A, B, b, s=1.5), [normal(3, 50, 30), normal(20, 30), normal(70, 30), normal(20, 70), normal(20)]),
    "a block with rms_norm and silu_mul": block("rms", "silu_mul"),
    "a block with layer_norm and gelu": block("layer", "gelu"),
    "a block with rms_norm and gelu_tanh": block("rms", "gelu_tanh"),
    "rope of rows by four": (lambda x: ops.rope(ops.swapaxes(x, a=1, b=2), **dict(zip(("cos", "sin"), constants(*turned(2, 1, 6, 8))))), [normal(2, 6, 5, 16)]),
    "cross_entropy": (lambda x: ops.cross_entropy(x, labels=to_device(np.array([[3, -100, 49], [0, 7, 7]]))), [normal(2, 3, 50)]),
}  # fmt: skip
WORKS_IN = [np.float64]


MADE = {}  # a graph may not bring anything to the device


def constants(*arrays):
    keys = [(WORKS_IN[0], a.shape, a.tobytes()) for a in arrays]
    for key, a in zip(keys, arrays):
        if key not in MADE:
            MADE[key] = to_device(a.astype(WORKS_IN[0]))
    return [MADE[key] for key in keys]


def gradients(name, theta, context=contextlib.nullcontext):
    """The value of one of OPS, weighed and summed up, and its gradients; how large the terms of the value are."""
    WORKS_IN[0] = theta["0"].dtype.type

    def total(theta):
        y = OPS[name][0](*theta.values())
        weighed = y * constants(normal(*y.shape) if y.shape else np.ones(()))[0]
        return ops.sum(weighed), abs(value(weighed)).sum()

    with context():
        (found, terms), grads = value_and_grad(total)(theta)
    return {"value": value(found)} | grads, terms


def given(name, dtype, nudged=0.0):
    signs = np.random.default_rng(1)
    arrays = [a * (1 + nudged * signs.choice([-1.0, 1.0], a.shape)) for a in OPS[name][1]]
    return {str(i): to_device(a.astype(dtype)) for i, a in enumerate(arrays)}


def exact(name):
    """{value or argument: (what the text gives in float64, cond)}."""
    (at, terms), (there, _) = (gradients(name, given(name, np.float64, by), fast.text) for by in (0.0, 2.0**-26))
    at, there = ({k: to_host(x) for k, x in found.items()} for found in (at, there))
    conds = {k: 4 * max(abs(w).max(), abs(there[k] - w).max() * 2.0**26) for k, w in at.items()}
    conds["value"] = max(conds["value"], float(terms))  # which may cancel
    return {k: (w, conds[k]) for k, w in at.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_a_kernel_equals_its_composition(name, dtype, cuda, measured):
    got, _ = gradients(name, given(name, dtype))
    for k, (want, cond) in exact(name).items():
        ratio = abs(to_host(got[k]) - want).max() / (UNIT[dtype] * cond)
        measured("kernels", ratio, dtype)
        assert got[k].dtype == dtype and ratio <= 8, (k, ratio)


@pytest.mark.parametrize("wide", ["x", "y"])
def test_a_low_rank_beside_what_is_wide(wide, cuda, measured, monkeypatch):
    """As one product of longer rows, forward where the result is wide, and back where x is."""
    from minipeft.engine.fast import cuda_lowrank, cuda_products

    taken = []
    monkeypatch.setattr(cuda_lowrank, "CACHE", 0)
    monkeypatch.setattr(cuda_products, "joined", lambda *args: taken.append(cuda_lowrank.joined(*args)) or taken[-1])
    n, m = (8, 64) if wide == "y" else (64, 8)
    W = normal(m, n)
    monkeypatch.setitem(OPS, "wide", (lambda x, A, B: ops.linear_lowrank(x, constants(W)[0], A, B, s=0.5), [normal(2, 50, n), normal(3, n), normal(m, 3)]))  # fmt: skip
    got, _ = gradients("wide", given("wide", np.float32))
    assert [found is not None for found in taken] == [wide == "y", wide == "x"]
    for k, (want, cond) in exact("wide").items():
        ratio = abs(to_host(got[k]) - want).max() / (UNIT[np.float32] * cond)
        measured("kernels", ratio, np.float32)
        assert ratio <= 8, (k, ratio)


@pytest.mark.parametrize("name", [name for name in OPS if "attention" in name])
def test_attention_in_tensor_float(name, blas, measured):
    """With what each factor loses in TensorFloat-32 as u. Something is lost, where no gradient of a bias is asked for."""
    blas.allow_tf32(True)
    try:
        got, _ = gradients(name, given(name, np.float32))
    finally:
        blas.allow_tf32(False)
    ratios = {k: abs(to_host(got[k]) - want).max() / (2.0**-11 * cond) for k, (want, cond) in exact(name).items()}
    for ratio in ratios.values():
        measured("attention in TensorFloat-32, by its unit", ratio, np.float32)
    assert max(ratios.values()) <= 8
    assert max(ratios.values()) * 2.0**-11 > 2.0**-24 or "with a bias" in name


@pytest.mark.parametrize("name", [name for name in OPS if "attention" in name or "block" in name or "rank" in name])
def test_kernels_give_the_same_bits_again_and_in_a_graph(name, cuda):
    from minipeft.engine.fast.graph import Graph

    theta = given(name, np.float32)
    first, second = ({k: to_host(g) for k, g in gradients(name, theta)[0].items()} for _ in range(2))
    graph = Graph(lambda: gradients(name, theta)[0])
    replayed = []
    for _ in range(2):
        graph()
        graph.stream.synchronize()
        replayed.append({k: to_host(g) for k, g in graph.result.items()})
    for other in (second, *replayed):
        for k, g in first.items():
            assert (other[k] == g).all(), k


# --- AdamW -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 130])
def test_adamw_in_place_is_adamw(count, cuda, device):
    """Of more arrays than a kernel takes, too, some of them empty, of two types, and a gradient that lies across."""
    from minipeft.engine.fast import graph

    rng = np.random.default_rng(0)
    optimiser = AdamW(lr=1e-2, weight_decay=0.1)
    kinds = [np.float64] * count if count < 3 else [(np.float64, np.float32)[i % 3 == 1] for i in range(count)]
    theta = {
        str(i): to_device(rng.standard_normal((i % 5, 7) if i else (400, 7)).astype(k)) for i, k in enumerate(kinds)
    }
    state = optimiser.init(theta)
    lr = {k: 2e-2 + 1e-3 * int(k) for k in theta}
    x, m, v = (
        {k: a.copy() for k, a in d.items()}
        for d in (theta, {k: state[f"m/{k}"] for k in theta}, {k: state[f"v/{k}"] for k in theta})
    )
    t, one = to_device(np.zeros((), np.int32)), to_device(np.full((), 1.0))
    for step in range(1, 5):
        g = {k: to_device(rng.standard_normal(a.shape[::-1]).astype(a.dtype)).T for k, a in theta.items()}
        theta, state = optimiser.step(theta, g, state, step, lr)
        t += 1
        graph.adamw([(x[k], g[k], m[k], v[k], lr[k]) for k in theta], t, one, optimiser)
    for k in theta:
        for mine, other in ((x[k], theta[k]), (m[k], state[f"m/{k}"]), (v[k], state[f"v/{k}"])):
            a, b = to_host(mine), to_host(other)
            assert (abs(a - b) <= 32 * UNIT[a.dtype.type] * abs(b).max(initial=0)).all()
