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
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5), [normal(3, 5, 300), normal(300), normal(300)]),
    "silu_mul": (lambda x, y: ops.silu_mul(x, y), [normal(3, 5, 77), normal(3, 5, 77) + 1]),
    "gelu": (lambda x: ops.gelu(x), [normal(3, 5, 77)]),
    "gelu_tanh": (lambda x: ops.gelu_tanh(x), [normal(3, 5, 77)]),
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
    "cross_entropy": (lambda x: ops.cross_entropy(x, labels=to_device(np.array([[3, -100, 49], [0, 7, 7]]))), [normal(2, 3, 50)]),
}  # fmt: skip
WORKS_IN = [np.float64]


def constants(*arrays):
    return [to_device(a.astype(WORKS_IN[0])) for a in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_a_kernel_equals_its_composition(name, dtype, cuda, measured):
    f, arrays = OPS[name]

    def computed(context, arrays, dtype):
        WORKS_IN[0] = dtype
        theta = {str(i): to_device(a.astype(dtype)) for i, a in enumerate(arrays)}

        def total(theta):
            y = f(*(theta[str(i)] for i in range(len(arrays))))
            return ops.sum(y * constants(normal(*y.shape) if y.shape else np.ones(()))[0])

        with context:
            found, grads = value_and_grad(total)(theta)
        return {"value": to_host(found)} | {k: to_host(g) for k, g in grads.items()}

    exact = computed(fast.text(), arrays, np.float64)
    nudged = [a * (1 + 2.0**-26 * np.random.default_rng(1).choice([-1.0, 1.0], a.shape)) for a in arrays]
    there = computed(fast.text(), nudged, np.float64)
    got = computed(contextlib.nullcontext(), arrays, dtype)
    for k, want in exact.items():
        cond = 4 * max(abs(want).max(), abs(there[k] - want).max() * 2.0**26)
        ratio = abs(got[k] - want).max() / (UNIT[dtype] * cond)
        measured("kernels", ratio, dtype)
        assert got[k].dtype == dtype and ratio <= 8, (k, ratio)


# --- AdamW -------------------------------------------------------------------------------------------------------------


def test_adamw_in_place_is_adamw(cuda, device):
    from minipeft.engine.fast import graph

    rng = np.random.default_rng(0)
    optimiser = AdamW(lr=1e-2, weight_decay=0.1)
    theta = {"x": to_device(rng.standard_normal((5, 7)))}
    state = optimiser.init(theta)
    x, m, v = theta["x"].copy(), state["m/x"].copy(), state["v/x"].copy()
    t, lr = to_device(np.zeros((), np.int32)), to_device(np.full((), 1e-2))
    for step in range(1, 5):
        g = to_device(rng.standard_normal((5, 7)))
        theta, state = optimiser.step(theta, {"x": g}, state, step, {"x": 2e-2})
        t += 1
        graph.adamw(x, g, m, v, t, lr, 2.0, optimiser)
    for mine, other in ((x, theta["x"]), (m, state["m/x"]), (v, state["v/x"])):
        assert (abs(to_host(mine) - to_host(other)) <= 32 * 2.0**-53 * abs(to_host(other)).max()).all()
