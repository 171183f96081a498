"""Every op against finite differences, an independent value, and the engine's promises; the larger ones against their parts.

`CASES` has one row for each op: a strategy that draws arguments and constants, and a witness for the value. Its keys
must be the registry's, so no op goes untested.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from scipy import linalg, special

from minipeft.engine import OPS, Tensor, fast, gradcheck, ops, value, value_and_grad
from minipeft.engine.tensor import Node, Put, unbroadcast

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=["text", "fast"], autouse=True)
def way(request):
    """Everything here holds for the text, and for what replaces it."""
    with fast.text() if request.param == "text" else contextlib.nullcontext():
        yield request.param


class Case(NamedTuple):
    args: tuple  # float64 arrays, read-only
    constants: dict
    seed: int = 0

    def cotangent(self, shape: tuple) -> np.ndarray:
        return frozen(np.random.default_rng(self.seed).standard_normal(shape))

    def astype(self, dtype: Any) -> Case:
        def cast(a: Any) -> Any:
            return frozen(a.astype(dtype)) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

        return Case(tuple(map(cast, self.args)), {k: cast(v) for k, v in self.constants.items()}, self.seed)


def frozen(x: Any) -> Any:
    x = np.asarray(x)
    x.flags.writeable = False
    return x


# --- values ---------------------------------------------------------------------------------------------------------


def normal(rng, *shapes):
    return [rng.standard_normal(s).clip(-4, 4) for s in shapes]


def positive(rng, *shapes):
    return [rng.uniform(0.5, 2, s) for s in shapes]


def apart(rng, *shapes):
    """No two of all elements nearer than 0.5, none nearer to 0 than 0.25: far from every kink."""
    sizes = [math.prod(s) for s in shapes]
    pool = (rng.permutation(sum(sizes)) - sum(sizes) // 2 + 0.5) / 2
    return [p.reshape(s) for p, s in zip(np.split(pool, np.cumsum(sizes)[:-1]), shapes, strict=True)]


# --- strategies -----------------------------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
batches = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
sides = st.integers(0, 3)
lengths = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)


def case(build):
    """A strategy of `Case`s from `build(draw, rng) -> args, constants`."""

    @st.composite
    def strategy(draw):
        seed = draw(seeds)
        args, constants = build(draw, np.random.default_rng(seed))
        return Case(tuple(map(frozen, args)), constants, seed)

    return strategy()


def unary(values=normal, **constants):
    return case(lambda draw, rng: (values(rng, draw(shapes)), {k: draw(s) for k, s in constants.items()}))


def binary(values=normal):
    def build(draw, rng):
        both = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
        return values(rng, *both.input_shapes), {}

    return case(build)


def rowwise(values=normal):
    return case(lambda draw, rng: (values(rng, (*draw(batches), draw(lengths))), {}))


def axes(draw, ndim, several=True):
    """None, an axis or several, negative ones among them."""
    one = st.integers(-ndim, ndim - 1)
    if not several:
        return draw(one)
    if ndim == 0:
        return None
    some = st.lists(one, min_size=1, unique_by=lambda a: a % ndim).map(tuple)
    return draw(st.none() | one | some)


def reduction(values=normal, empty=True):
    def build(draw, rng):
        (x,) = values(rng, draw(shapes))
        axis = axes(draw, x.ndim)
        along = x.shape if axis is None else [x.shape[a] for a in np.atleast_1d(axis)]
        assume(empty or 0 not in along)  # the mean of nothing is not defined
        return [x], {"axis": axis, "keepdims": draw(st.booleans())}

    return case(build)


def one_axis(draw, rng):
    (x,) = apart(rng, draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)))
    axis = axes(draw, x.ndim, several=False)
    assume(x.shape[axis])
    return [x], {"axis": axis, "keepdims": draw(st.booleans())}


def chosen(draw, rng):
    both = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, min_side=0, max_side=3))
    *xy, condition = both.input_shapes
    return normal(rng, *xy), {"condition": frozen(rng.random(condition) < 0.5)}


def reshaped(draw, rng):
    (x,) = normal(rng, draw(shapes))
    options = [(x.size,), x.shape[::-1], (*x.shape, 1)] + ([(-1,)] if x.size else [])
    return [x], {"shape": draw(st.sampled_from(options))}


def transposed(draw, rng):
    (x,) = normal(rng, draw(shapes))
    order = draw(st.permutations(range(x.ndim)))
    signed = tuple(a - x.ndim * draw(st.booleans()) for a in order)
    return [x], {"axes": draw(st.sampled_from([None, signed]))}


def swapped(draw, rng):
    (x,) = normal(rng, draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=3)))
    return [x], {"a": axes(draw, x.ndim, False), "b": axes(draw, x.ndim, False)}


def stretched(draw, rng):
    both = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    return normal(rng, both.input_shapes[0]), {"shape": both.result_shape}


def joined(draw, rng):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    axis = axes(draw, len(shape), False)
    at = axis % len(shape)
    widths = draw(st.lists(sides, min_size=1, max_size=3))
    return normal(rng, *((*shape[:at], w, *shape[at + 1 :]) for w in widths)), {"axis": axis}


def stacked(draw, rng):
    shape = draw(shapes)
    return normal(rng, *[shape] * draw(st.integers(1, 3))), {"axis": axes(draw, len(shape) + 1, False)}


def index_of(draw, shape):
    """Slices, integers, new axes; integer arrays with repeats; boolean masks."""
    kinds = [hnp.basic_indices(shape, allow_newaxis=True, max_dims=4)]
    if shape and math.prod(shape):
        kinds.append(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=4)))
        kinds.append(hnp.arrays(bool, shape))
    return draw(st.one_of(kinds))


def indexed(draw, rng):
    (x,) = normal(rng, draw(shapes))
    return [x], {"index": index_of(draw, x.shape)}


def placed(draw, rng):
    shape = draw(shapes)
    index = index_of(draw, shape)
    return normal(rng, np.zeros(shape)[index].shape), {"index": index, "shape": shape}


def looked_up(draw, rng):
    V, d = draw(lengths), draw(sides)
    return normal(rng, (V, d)), {"ids": frozen(rng.integers(0, V, draw(shapes)))}


def products(draw, rng):
    both = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=3))
    (left, right), (n, k, m) = both.input_shapes, draw(st.tuples(sides, sides, sides))
    return normal(rng, (*left, n, k), (*right, k, m)), {}


def systems(draw, rng):
    both = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=2))
    (left, right), n, k = both.input_shapes, draw(lengths), draw(sides)
    M, y = rng.uniform(-1, 1, (*left, n, n)) / (2 * n), normal(rng, (*right, n, k))[0]
    return [M + np.eye(n), y], {}  # ‖M − I‖ ≤ ½, so cond M ≤ 3


def spectra(draw, rng):
    return normal(rng, (draw(lengths), draw(lengths))), {}


def normalised(bias):
    def build(draw, rng):
        d = draw(lengths)
        x, *wb = apart(rng, (*draw(batches), d)) + normal(rng, (d,), (d,))[: 1 + bias]
        return [x, *wb], {"eps": draw(st.sampled_from([1e-5, 0.1]))}

    return case(build)


def gated(draw, rng):
    x = draw(shapes)
    return normal(rng, x, draw(st.sampled_from([x[i:] for i in range(len(x) + 1)]))), {}


def lines(draw, rng):
    n, m = draw(sides), draw(sides)
    return normal(rng, (*draw(batches), n), (m, n), (m,))[: draw(st.sampled_from([2, 3]))], {}


def lowrank(draw, rng):
    n, m, r, batch = draw(sides), draw(sides), draw(sides), draw(batches)
    return normal(rng, (*batch, m), (*batch, n), (r, n), (m, r)), {"s": draw(st.sampled_from([1.0, -0.5, 2.0]))}


def linear_lowrank_case(draw, rng):
    n, m, r, batch = draw(sides), draw(sides), draw(sides), draw(batches)
    shapes = [(*batch, n), (m, n), (r, n), (m, r), (m,)][: draw(st.sampled_from([4, 5]))]
    return normal(rng, *shapes), {"s": draw(st.sampled_from([1.0, -0.5, 2.0]))}


def in_blocks(draw, rng):
    K, beta, gamma, batch = draw(st.integers(1, 3)), draw(lengths), draw(sides), draw(batches)
    return normal(rng, (*batch, K * beta), (draw(st.sampled_from([1, K])), beta, gamma)), {}


def rotary(draw, rng):
    b, h, t, half = draw(sides), draw(lengths), draw(sides), draw(lengths)
    angles = rng.uniform(-7, 7, (draw(st.sampled_from([1, b])), 1, t, half))
    return normal(rng, (b, h, t, 2 * half)), {"cos": frozen(np.cos(angles)), "sin": frozen(np.sin(angles))}


def attended(draw, rng):
    b, g, rep, t, s, d, dv = (draw(i) for i in (sides, lengths, st.integers(1, 2), sides, lengths, lengths, lengths))
    h = g * rep
    q, k, v = normal(rng, (b, t, h, d), (b, s, g, d), (b, s, g, dv))
    args = [x.swapaxes(1, 2) for x in (q, k, v)]  # as the model lays them out
    bias = draw(st.sampled_from([None, (), (s,), (t, s), (h, t, s), (1, h, t, s), (b, 1, 1, s), (b, h, t, s)]))
    return args + (normal(rng, bias) if bias is not None else []), {"scale": draw(st.sampled_from([1.0, 0.5]))}


def labelled(draw, rng):
    rows, V = draw(batches), draw(lengths)
    labels = np.where(rng.random(rows) < 0.3, -100, rng.integers(0, V, rows))
    return normal(rng, (*rows, V)), {"labels": frozen(labels)}


# --- witnesses ------------------------------------------------------------------------------------------------------


def put_witness(x, index, shape):
    """Adds the entries one by one, in plain Python."""
    y = np.zeros(math.prod(shape))
    where = np.arange(y.size).reshape(shape)[index]
    for i, xi in zip(np.ravel(where), np.ravel(x), strict=True):
        y[i] += xi
    return y.reshape(shape)


def layer_norm_witness(x, w, b, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * w + b


def linear_lowrank_witness(x, W, A, B, b=0.0, *, s):
    return np.einsum("...n,mn->...m", x, W + s * B @ A) + b


def block_matmul_witness(x, R):
    K = x.shape[-1] // R.shape[1]
    return x @ linalg.block_diag(*np.broadcast_to(R, (K, *R.shape[1:])))


def rope_witness(x, cos, sin):
    """The rotation as a product of complex numbers."""
    lo, hi = np.split(x, 2, axis=-1)
    z = (lo + 1j * hi) * (cos + 1j * sin)
    return np.concatenate([z.real, z.imag], axis=-1)


def attention_witness(q, k, v, bias=0.0, *, scale):
    rep = q.shape[1] // k.shape[1]
    logits = scale * np.einsum("bhtd,bhsd->bhts", q, k.repeat(rep, 1)) + bias
    return np.einsum("bhts,bhsd->bhtd", special.softmax(logits, axis=-1), v.repeat(rep, 1))


def cross_entropy_witness(logits, labels):
    rows = [-special.log_softmax(x)[y] for x, y in zip(_2d(logits), labels.ravel(), strict=True) if y != -100]
    return np.mean(rows) if rows else 0.0


def _2d(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def ifft2_witness(S):
    """The sum of cosines that the docstring states."""
    (m, n), (j, k) = S.shape, np.indices(S.shape)
    phase = np.multiply.outer(j, j) / m + np.multiply.outer(k, k) / n
    return np.einsum("jkpq,pq->jk", np.cos(2 * np.pi * phase), S) / (m * n)


CASES: dict[str, tuple[st.SearchStrategy, Any]] = {
    "add": (binary(), np.add),
    "sub": (binary(), np.subtract),
    "mul": (binary(), np.multiply),
    "div": (binary(apart), np.divide),
    "neg": (unary(), np.negative),
    "power": (unary(positive, p=st.sampled_from([0, 1, 2, 3, -1, 0.5, -0.5, 1.5])), lambda x, p: np.power(x, p)),
    "maximum": (binary(apart), np.maximum),
    "minimum": (binary(apart), np.minimum),
    "where": (case(chosen), lambda x, y, condition: np.where(condition, x, y)),
    "exp": (unary(), np.exp),
    "log": (unary(positive), np.log),
    "sqrt": (unary(positive), np.sqrt),
    "absolute": (unary(apart), np.abs),
    "sin": (unary(), np.sin),
    "cos": (unary(), np.cos),
    "tanh": (unary(), np.tanh),
    "sigmoid": (unary(), special.expit),
    "relu": (unary(apart), lambda x: x * (x > 0)),
    "softplus": (unary(), lambda x: -special.log_expit(-x)),
    "sum": (reduction(), np.sum),
    "mean": (reduction(empty=False), np.mean),
    "max": (case(one_axis), np.max),
    "norm": (reduction(apart), lambda x, axis, keepdims: np.sqrt(np.sum(x**2, axis=axis, keepdims=keepdims))),
    "reshape": (case(reshaped), lambda x, shape: np.reshape(x, shape)),
    "transpose": (case(transposed), np.transpose),
    "swapaxes": (case(swapped), lambda x, a, b: np.moveaxis(x, [a, b], [b, a]) if a % x.ndim != b % x.ndim else x),
    "broadcast_to": (case(stretched), lambda x, shape: x + np.zeros(shape)),
    "concatenate": (case(joined), lambda *xs, axis: np.concatenate(xs, axis)),
    "stack": (case(stacked), lambda *xs, axis: np.concatenate([np.expand_dims(x, axis) for x in xs], axis)),
    "getitem": (case(indexed), lambda x, index: x[index]),
    "put": (case(placed), put_witness),
    "take": (case(looked_up), lambda W, ids: np.take(W, ids, axis=0)),
    "matmul": (case(products), lambda x, y: np.einsum("...nk,...km->...nm", x, y)),
    "solve": (case(systems), lambda M, y: np.linalg.inv(M) @ y),
    "ifft2": (case(spectra), ifft2_witness),
    "softmax": (rowwise(), lambda x: special.softmax(x, axis=-1)),
    "log_softmax": (rowwise(), lambda x: special.log_softmax(x, axis=-1)),
    "gelu": (unary(), lambda x: x * special.ndtr(x)),
    "gelu_tanh": (unary(), lambda x: x * special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": (unary(), lambda x: x * special.expit(x)),
    "silu_mul": (case(gated), lambda x, y: x * special.expit(x) * y),
    "layer_norm": (normalised(bias=True), layer_norm_witness),
    "rms_norm": (normalised(bias=False), lambda x, w, eps: x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w),
    "linear": (case(lines), lambda x, W, b=0.0: np.einsum("...n,mn->...m", x, W) + b),
    "add_lowrank": (case(lowrank), lambda y, x, A, B, s: y + s * np.einsum("...n,mn->...m", x, B @ A)),
    "linear_lowrank": (case(linear_lowrank_case), linear_lowrank_witness),
    "block_matmul": (case(in_blocks), block_matmul_witness),
    "rope": (case(rotary), rope_witness),
    "attention": (case(attended), attention_witness),
    "cross_entropy": (case(labelled), cross_entropy_witness),
}
ops.add(np.zeros(1), 1.0)  # a backend is chosen, and its replacements registered
WAYS = [(n, way) for n in CASES for way in ("text", "fast") if way == "text" or n in fast.REPLACEMENTS["numpy"]]
every_op = pytest.mark.parametrize("name, way", WAYS, indirect=["way"])


def test_every_op_has_a_case():
    assert set(CASES) == set(OPS)


# --- what every op promises -----------------------------------------------------------------------------------------


def gradients(f, case: Case, taped: tuple[int, ...], g: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """The value of f at the case and the gradients of ⟨g, f⟩ for the arguments `taped`, by their position."""

    def loss(theta):
        y = f(*(theta.get(str(i), a) for i, a in enumerate(case.args)), **case.constants)
        return ops.sum(ops.mul(y, g)), y

    (_, y), grads = value_and_grad(loss)({str(i): case.args[i] for i in taped})
    return value(y), grads


@every_op
@given(data=st.data())
def test_gradients_equal_finite_differences(name, data):
    case = data.draw(CASES[name][0])
    f = OPS[name]
    g = case.cotangent(f(*case.args, **case.constants).shape)
    theta = {str(i): a for i, a in enumerate(case.args)}
    gradcheck(lambda t: ops.sum(ops.mul(f(*t.values(), **case.constants), g)), theta, seed=case.seed)


@every_op
@given(data=st.data())
def test_values_equal_the_witness(name, data):
    strategy, witness = CASES[name]
    case = data.draw(strategy)
    got, want = OPS[name](*case.args, **case.constants), np.asarray(witness(*case.args, **case.constants))
    assert got.shape == want.shape
    # Inputs are of size ≤ 16 (norms) or ≤ 4, sums have ≤ 27 terms: intermediate results stay within 1000 of the largest
    # result or of 1, and each loses a few u.
    u = np.finfo(np.float64).eps / 2
    np.testing.assert_allclose(got, want, rtol=0, atol=1000 * u * max(1.0, abs(want).max(initial=0)))


@every_op
@settings(max_examples=8)
@given(data=st.data())
def test_what_is_taped_changes_nothing(name, data):
    """A plain call returns a plain array, the same bits; taping fewer arguments leaves the others' gradients alone."""
    case = data.draw(CASES[name][0])
    f, everything = OPS[name], tuple(range(len(case.args)))
    plain = f(*case.args, **case.constants)
    assert isinstance(plain, np.ndarray | np.generic)
    g = case.cotangent(plain.shape)
    _, want = gradients(f, case, everything, g)
    for n in everything:
        for taped in itertools.combinations(everything, n + 1):
            y, got = gradients(f, case, taped, g)
            np.testing.assert_array_equal(y, plain)
            for i in taped:
                np.testing.assert_array_equal(got[str(i)], want[str(i)])


@every_op
@settings(max_examples=8)
@given(data=st.data())
def test_float32_stays_float32(name, data):
    """In the value, and in what each VJP returns before the tape could cast it. The gradient given is not written to."""
    case = data.draw(CASES[name][0]).astype(np.float32)
    assert OPS[name](*case.args, **case.constants).dtype == np.float32
    y = OPS[name](*map(Tensor, case.args), **case.constants)
    g = frozen(case.cotangent(y.shape).astype(np.float32))
    wanted = (True,) * len(case.args)
    parts = y.node.vjps(g, wanted) if callable(y.node.vjps) else [vjp(g) for vjp in y.node.vjps]
    for part in parts[: len(wanted)]:  # an argument left at its default gets None
        assert (part.g if isinstance(part, Put) else part).dtype == np.float32


# --- conventions at kinks and edges ---------------------------------------------------------------------------------


def grad(f, *args):
    _, g = value_and_grad(lambda t: ops.sum(f(*t.values())))({str(i): np.asarray(a, float) for i, a in enumerate(args)})
    return [x.tolist() for x in g.values()]


@pytest.mark.parametrize(
    ("f", "args", "want"),
    [
        (ops.maximum, ([1.0], [1.0]), [[1], [0]]),
        (ops.minimum, ([1.0], [1.0]), [[1], [0]]),
        (lambda x: ops.max(x, axis=0), ([2.0, 5.0, 5.0],), [[0, 1, 0]]),
        (ops.relu, ([0.0],), [[0]]),
        (ops.absolute, ([0.0],), [[0]]),
        (ops.norm, ([0.0, 0.0],), [[0, 0]]),
        (lambda x: ops.power(x, p=2), ([0.0],), [[0]]),
        (lambda x: ops.power(x, p=1), ([0.0],), [[1]]),
        (lambda x: ops.softmax(ops.reshape(x, shape=(3, 1))), ([1.0, 2.0, 3.0],), [[0, 0, 0]]),
    ],
    ids=["maximum-tie", "minimum-tie", "max-tie", "relu-0", "abs-0", "norm-0", "square-0", "identity-0", "softmax-one"],
)
def test_gradient_at_the_edge(f, args, want):
    assert grad(f, *args) == want


def test_matmul_refuses_vectors():
    with pytest.raises(ValueError, match=r"matrices, not shapes \(3,\) and \(3, 2\)"):
        ops.matmul(np.ones(3), np.ones((3, 2)))


@pytest.mark.parametrize("label", [-1, 3, -99])
def test_cross_entropy_refuses_labels_out_of_range(label):
    with pytest.raises(ValueError, match=r"0 … 2 or be -100, found"):
        ops.cross_entropy(np.zeros((2, 3)), labels=np.array([0, label]))


def test_cross_entropy_of_nothing_is_zero():
    x = {"x": np.ones((2, 3), np.float32)}
    loss, grads = value_and_grad(lambda t: ops.cross_entropy(t["x"], labels=np.array([-100, -100])))(x)
    assert loss == 0
    assert not grads["x"].any()


# --- ops equal their composition in simpler ones ------------------------------------------------------------------------------


def gelu_parts(x):
    density = np.exp(-(value(x) ** 2) / 2) / math.sqrt(2 * math.pi)
    Phi = special.ndtr(value(x))  # no op of its own, so taped by hand
    if isinstance(x, Tensor):
        Phi = Tensor(Phi, Node(x.shape, x.dtype, (x.node,), (lambda g: g * density,)))
    return ops.mul(x, Phi)


def gelu_tanh_parts(x):
    inner = ops.add(x, ops.mul(0.044715, ops.power(x, p=3)))
    return ops.mul(ops.mul(0.5, x), ops.add(1, ops.tanh(ops.mul(math.sqrt(2 / math.pi), inner))))


def softmax_parts(x):
    e = ops.exp(x)
    return ops.div(e, ops.sum(e, axis=-1, keepdims=True))


def log_softmax_parts(x):
    return ops.sub(x, ops.log(ops.sum(ops.exp(x), axis=-1, keepdims=True)))


def linear_parts(x, W, b=0.0):
    column = ops.reshape(x, shape=(*x.shape[:-1], 1, x.shape[-1]))
    return ops.add(ops.sum(ops.mul(column, W), axis=-1), b)


def layer_norm_parts(x, w, b, *, eps):
    centred = ops.sub(x, ops.mean(x, axis=-1, keepdims=True))
    return ops.add(rms_norm_parts(centred, w, eps=eps), b)


def rms_norm_parts(x, w, *, eps):
    square = ops.mean(ops.mul(x, x), axis=-1, keepdims=True)
    return ops.mul(ops.div(x, ops.sqrt(ops.add(square, eps))), w)


def block_matmul_parts(x, R):
    K = x.shape[-1] // R.shape[1]
    parts = ops.matmul(ops.reshape(x, shape=(-1, K, 1, R.shape[1])), R)
    return ops.reshape(parts, shape=(*x.shape[:-1], K * R.shape[2]))


def rope_parts(x, *, cos, sin):
    half = x.shape[-1] // 2
    lo, hi = ops.getitem(x, index=np.s_[..., :half]), ops.getitem(x, index=np.s_[..., half:])
    left = ops.sub(ops.mul(lo, cos), ops.mul(hi, sin))
    return ops.concatenate(left, ops.add(ops.mul(hi, cos), ops.mul(lo, sin)), axis=-1)


def attention_parts(q, k, v, bias=0.0, *, scale):
    heads = np.repeat(np.arange(k.shape[1]), q.shape[1] // k.shape[1])
    k, v = ops.getitem(k, index=np.s_[:, heads]), ops.getitem(v, index=np.s_[:, heads])
    logits = ops.mul(scale, ops.matmul(q, ops.swapaxes(k)))
    return ops.matmul(softmax_parts(ops.add(logits, bias)), v)


def cross_entropy_parts(logits, *, labels):
    rows = ops.reshape(log_softmax_parts(logits), shape=(labels.size, logits.shape[-1]))
    kept = np.flatnonzero(labels != -100)
    if not kept.size:
        return ops.sum(ops.mul(logits, 0.0))
    return ops.neg(ops.mean(ops.getitem(rows, index=(kept, labels.ravel()[kept]))))


def elementwise_condition(in_value, in_slope):
    return lambda g, x: (in_value(abs(x)), [abs(g) * in_slope(abs(x))])


def silu_mul_condition(g, x, y):
    g, y, xs, s = abs(g), abs(y), abs(x) * special.expit(x), special.expit(x)
    return xs * y, [g * y * s * (1 + abs(x)), g * xs]


def spread(x):
    """Exponentials turn an absolute error of x, u·max|x|, into a relative one."""
    return 1 + abs(x).max(axis=-1, keepdims=True)


def softmax_condition(g, x):
    y, L, g = special.softmax(x, axis=-1), spread(x), abs(g)
    return y * L, [L * y * (g + (g * y).sum(-1, keepdims=True))]


def log_softmax_condition(g, x):
    y, L, g = special.softmax(x, axis=-1), spread(x), abs(g)
    return abs(x) + L, [g + L * y * g.sum(-1, keepdims=True)]


def cross_entropy_condition(g, logits, *, labels):
    x, y = _2d(logits), labels.ravel()
    kept = y != -100
    n, hit = max(kept.sum(), 1), y[:, None] == np.arange(x.shape[-1])
    slope = kept[:, None] * (special.softmax(x, axis=-1) * spread(x) + hit) * abs(g) / n
    return (kept * 2 * spread(x)[:, 0]).sum() / n, [slope.reshape(logits.shape)]


def layer_norm_condition(g, x, w, b, *, eps):
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    k = 1 + abs(x).max(-1, keepdims=True) * r  # x − mean cancels: its error u·max|x|, seen against the deviation 1/r
    near, g = 1 + abs(centred * r), abs(g)
    gw = g * abs(w)
    gx = r * k * (gw + gw.mean(-1, keepdims=True) + near * (gw * near).mean(-1, keepdims=True))
    return k * near * abs(w) + abs(b), [gx, g * k * near, g]


def rms_norm_condition(g, x, w, *, eps):
    r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    x, w, g = abs(x), abs(w), abs(g)
    return x * r * w, [r * (g * w + x * r**2 * (g * w * x).mean(-1, keepdims=True)), g * x * r]


def absolute_condition(parts):
    """Sums of products: the same expression, and its gradients, on absolute values."""

    def condition(g, *args, **constants):
        constants = {k: -abs(v) if k == "sin" and parts is rope_parts else abs(v) for k, v in constants.items()}
        if parts is rope_parts:  # both signs of sin occur; bound each half by |x| cos + |x'| |sin|
            cos, sin = constants["cos"], -constants["sin"]

            def turned(a):
                lo, hi = np.split(abs(a), 2, axis=-1)
                return np.concatenate([lo * cos + hi * sin, hi * cos + lo * sin], axis=-1)

            return turned(args[0]), [turned(g)]
        case = Case(tuple(map(abs, args)), constants)
        y, grads = gradients(parts, case, tuple(range(len(args))), abs(g))
        return y, list(grads.values())

    return condition


def linear_lowrank_parts(x, W, A, B, b=None, *, s):
    y = add_lowrank_parts(ops.linear(x, W), x, A, B, s=s)
    return y if b is None else ops.add(y, b)


def add_lowrank_parts(y, x, A, B, *, s):
    return ops.add(y, ops.mul(s, linear_parts(linear_parts(x, A), B)))


def attention_condition(g, q, k, v, bias=0.0, *, scale):
    rep = q.shape[1] // k.shape[1]
    p = special.softmax(scale * q @ k.repeat(rep, 1).swapaxes(-1, -2) + bias, axis=-1)
    q, k, v, g = abs(q), abs(k).repeat(rep, 1), abs(v).repeat(rep, 1), abs(g)
    p = p * spread(scale * q @ k.swapaxes(-1, -2) + abs(bias))
    gp = g @ v.swapaxes(-1, -2)
    gs = p * (gp + (p * gp).sum(-1, keepdims=True))

    def grouped(x):
        return x.reshape(x.shape[0], x.shape[1] // rep, rep, *x.shape[2:]).sum(2)

    gk, gv = grouped(scale * gs.swapaxes(-1, -2) @ q), grouped(p.swapaxes(-1, -2) @ g)
    return p @ v, [scale * gs @ k, gk, gv, gs]


# name -> the composition, and a bound for the value and each gradient: the same expression on absolute values, with what
# cancellation and exponentials amplify. Both are in float64 on the inputs of the op.
COMPOSITIONS = {
    "softmax": (softmax_parts, softmax_condition),
    "log_softmax": (log_softmax_parts, log_softmax_condition),
    "gelu": (gelu_parts, elementwise_condition(lambda x: x, lambda x: 1 + x * np.exp(-x * x / 2) * (1 + x * x))),
    "gelu_tanh": (gelu_tanh_parts, elementwise_condition(lambda x: x, lambda x: 1 + x * (1 + 0.134145 * x**2))),
    "silu": (lambda x: ops.mul(x, ops.sigmoid(x)), lambda g, x: (*(v := silu_mul_condition(g, x, 1.0))[:1], v[1][:1])),
    "silu_mul": (lambda x, y: ops.mul(ops.mul(x, ops.sigmoid(x)), y), silu_mul_condition),
    "softplus": (lambda x: ops.log(ops.add(1, ops.exp(x))), elementwise_condition(lambda x: 1 + x, lambda x: 1)),
    "layer_norm": (layer_norm_parts, layer_norm_condition),
    "rms_norm": (rms_norm_parts, rms_norm_condition),
    "linear": (linear_parts, absolute_condition(linear_parts)),
    "add_lowrank": (add_lowrank_parts, absolute_condition(add_lowrank_parts)),
    "linear_lowrank": (linear_lowrank_parts, absolute_condition(linear_lowrank_parts)),
    "block_matmul": (block_matmul_parts, absolute_condition(block_matmul_parts)),
    "rope": (rope_parts, absolute_condition(rope_parts)),
    "attention": (attention_parts, attention_condition),
    "cross_entropy": (cross_entropy_parts, cross_entropy_condition),
}


def matmul_condition(g, x, y):
    g, x, y = abs(g), abs(x), abs(y)
    return x @ y, [g @ y.swapaxes(-1, -2), x.swapaxes(-1, -2) @ g]


CONDITIONS = {name: condition for name, (_, condition) in COMPOSITIONS.items()} | {
    "matmul": matmul_condition,
    "put": lambda g, x, *, index, shape: (ops.put(abs(x), index=index, shape=shape), [abs(g)[index]]),
}
K = 8  # roundings that a result may have seen, each of size u·condition


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", COMPOSITIONS)
@given(data=st.data())
def test_an_op_equals_its_composition(name, dtype, data):
    parts, condition = COMPOSITIONS[name]
    given_ = data.draw(CASES[name][0]).astype(dtype)
    exact = given_.astype(np.float64)
    everything = tuple(range(len(given_.args)))
    g = frozen(given_.cotangent(OPS[name](*given_.args, **given_.constants).shape).astype(dtype))
    y, grads = gradients(OPS[name], given_, everything, g)
    want, want_grads = gradients(parts, exact, everything, g.astype(np.float64))
    bound, grad_bounds = condition(g.astype(np.float64), *exact.args, **exact.constants)
    u = np.finfo(dtype).eps / 2
    assert (abs(y - want) <= K * u * bound).all(), "value"
    for i, a in enumerate(exact.args):
        allowed = K * u * unbroadcast(grad_bounds[i], a.shape)
        assert (abs(grads[str(i)] - want_grads[str(i)]) <= allowed).all(), f"gradient of argument {i}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("name", [*COMPOSITIONS, "sigmoid", "tanh", "norm"])
@settings(max_examples=6)
@given(data=st.data())
def test_finite_at_extremes(name, size, dtype, data):
    """Inputs of ±1e4 and more, or all zero, give finite values and gradients without a warning."""
    case = data.draw(CASES[name][0])
    case = case._replace(args=tuple(a * size for a in case.args)).astype(dtype)
    y = OPS[name](*case.args, **case.constants)
    y, grads = gradients(OPS[name], case, tuple(range(len(case.args))), np.ones(y.shape, dtype))
    for x in (y, *grads.values()):
        assert np.isfinite(x).all()
