"""Every replacement against its text: values, all gradients, dtypes, and that one can be done without."""

import contextlib
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_ops import CASES, CONDITIONS, K, frozen, gradients

from minipeft.engine import OPS, fast, ops, tensor, value_and_grad
from minipeft.engine.fast import REPLACEMENTS, loops
from minipeft.engine.tensor import unbroadcast

np.zeros(())
ops.add(np.zeros(1), 1.0)  # a backend is chosen, and its replacements registered
FAST = sorted(REPLACEMENTS["numpy"].keys() & OPS.keys())


def test_what_is_replaced_has_a_bound():
    importlib.import_module("minipeft.train")  # whose replacements are entered then
    assert set(FAST) <= set(CONDITIONS), "an op that has a replacement needs a bound in test_ops.CONDITIONS"
    assert REPLACEMENTS["numpy"].keys() - OPS.keys() == {"add_at", "adamw", "gradients"}  # below; tests/train


COMPILED = importlib.util.find_spec("numba") is not None
WAYS = [*itertools.product(FAST, (np.float32, np.float64), ("NumPy's",))]
WAYS += [(name, np.float32, "compiled") for name in FAST if COMPILED]  # as far as there are loops of an op


@contextlib.contextmanager
def computed(way):
    """By compiled loops, however few numbers there are, or without."""
    before, loops.LEAST = loops.LEAST, 0 if way == "compiled" else 1 << 60
    try:
        yield
    finally:
        loops.LEAST = before


@pytest.mark.parametrize(("name", "dtype", "way"), WAYS)
@given(data=st.data())
def test_a_replacement_equals_its_text(name, dtype, way, data):
    case = data.draw(CASES[name][0]).astype(dtype)
    exact, everything = case.astype(np.float64), tuple(range(len(case.args)))
    with fast.text():
        g = frozen(case.cotangent(OPS[name](*case.args, **case.constants).shape).astype(dtype))
        want, want_grads = gradients(OPS[name], exact, everything, g.astype(np.float64))
    with computed(way):
        y, grads = gradients(OPS[name], case, everything, g)
    bound, bounds = CONDITIONS[name](g.astype(np.float64), *exact.args, **exact.constants)
    u = np.finfo(dtype).eps / 2
    assert (y.shape, y.dtype) == (want.shape, dtype)
    assert (abs(y - want) <= K * u * bound).all(), "value"
    for i, a in enumerate(exact.args):
        got = grads[str(i)]
        assert (got.shape, got.dtype) == (a.shape, dtype)
        assert (abs(got - want_grads[str(i)]) <= K * u * unbroadcast(bounds[i], a.shape)).all(), f"argument {i}"


@pytest.mark.parametrize("name", FAST)
@given(data=st.data())
def test_the_comparison_sees_a_replacement_that_is_wrong(name, data):
    """One whose value is off by 1e-6 of itself is far outside of the bound in float64."""
    case = data.draw(CASES[name][0])
    with fast.text():
        want = OPS[name](*case.args, **case.constants)
    bound, _ = CONDITIONS[name](np.ones(want.shape), *case.args, **case.constants)
    off = abs(1e-6 * want) > K * np.finfo(np.float64).eps / 2 * np.broadcast_to(bound, want.shape)
    assert off[abs(want) > 1e-3].all()


@pytest.mark.skipif(not COMPILED, reason="needs numba")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_model_by_compiled_loops(family, rows):
    """Whatever way its arrays lie: keys of every length, one row and several, shared out among threads or not."""
    from minipeft.attaching import attach
    from minipeft.conformance import laws, tiny
    from minipeft.engine.fast import attention, blocks
    from minipeft.methods.lowrank.lora import LoRA

    adapted = laws.moved(attach(tiny.model(family, np.float32), LoRA(r=2)))
    batch, found = tiny.example(adapted.model, rows=rows), []
    kept = attention.KEPT
    for way, few, threads in (("NumPy's", kept, 1), ("compiled", kept, 1), ("compiled", 0, 2)):
        attention.KEPT, token = few, blocks._threads.set(threads)
        try:
            with computed(way):
                found.append(adapted.value_and_grad(batch))
        finally:
            attention.KEPT = kept
            blocks._threads.reset(token)
    (loss, grads), *others = found
    for other, more in others:
        assert abs(other - loss) <= 1e-5 * abs(loss)
        for k, g in grads.items():
            np.testing.assert_allclose(more[k], g, atol=1e-4 * abs(g).max())


@pytest.mark.skipif(not COMPILED, reason="needs numba")
def test_what_is_compiled_is_taken_and_leaves_nan_and_infinity_as_they_are(monkeypatch):
    x = np.linspace(-110, 110, loops.LEAST, dtype=np.float32)
    x[:6] = np.nan, np.inf, -np.inf, 0.0, 88.9, -88.9
    y, found = np.full_like(x, 2), {}
    for way in ("compiled", "NumPy's"):
        with monkeypatch.context() as m, np.errstate(invalid="ignore"):
            m.setattr(loops, "installed", lambda way=way: way == "compiled")
            loss = lambda t: ops.sum(ops.silu_mul(t["x"], t["y"]))
            found[way] = ops.silu_mul(x, y), *value_and_grad(loss)(dict(x=x, y=y))[1].values()
    for a, b in zip(found["compiled"], found["NumPy's"], strict=True):
        assert (np.isnan(a) == np.isnan(b)).all() and a.tobytes() != b.tobytes()
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)  # a slope passes through 0


@pytest.mark.skipif(not COMPILED, reason="needs numba")
def test_adamw_compiled():
    """Against the text in float64: each entry is made of a few roundings."""
    from minipeft.train import AdamW, optimisers
    from minipeft.train.fast import adamw

    rng, o = np.random.default_rng(0), AdamW(weight_decay=0.1)
    x, g, m, v = (rng.standard_normal(loops.LEAST) for _ in range(4))
    given = dict(x=x), dict(x=g), {"m/x": m, "v/x": abs(v)}
    with fast.text():
        want, after = optimisers.adamw(*given, 3, dict(x=0.1), o)
    got, kept = adamw(*[{k: a.astype(np.float32) for k, a in d.items()} for d in given], 3, dict(x=0.1), o)
    with np.errstate(all="raise"):
        step = 0.1 * abs(after["m/x"]) / np.sqrt(after["v/x"]) * 20 + abs(x)
    assert got["x"].dtype == np.float32 and (abs(got["x"] - want["x"]) <= 8 * 2.0**-24 * step).all()
    for k, a in after.items():
        assert (abs(kept[k] - a) <= 8 * 2.0**-24 * (abs(given[2][k]) + abs(g) + g * g)).all(), k


INDICES = [3, slice(1, 4), (slice(None), 2), (Ellipsis, slice(0, 2)), np.array([0, 2, 2, 0]), (np.array([1, 1]), np.array([3, 3])),
           (slice(None), np.array([0, 0, 1])), np.array([True, False, True, True, False]), None]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_adding_at_an_index(index):
    x = np.arange(20.0).reshape(5, 4)
    g = np.random.default_rng(0).standard_normal(x[index].shape)
    one, other = x.copy(), x.copy()
    tensor.add_at(one, index, g)
    with fast.text():
        tensor.add_at(other, index, g)
    np.testing.assert_allclose(one, other, rtol=1e-15)


def test_an_index_is_known_by_itself_and_its_shape():
    """Entries named once and twice by indices that look alike, at the same place in memory perhaps."""
    for _ in range(300):
        for i in ([0, 1, 2], [0, 1, 1]):
            index = (slice(None), np.array(i))
            got = ops.put(np.ones((2, 3)), index=index, shape=(2, 3))
            np.testing.assert_array_equal(got, [[1, 1, 1]] * 2 if i[-1] == 2 else [[1, 2, 0]] * 2)
            del index


@pytest.mark.parametrize("asked", ["MINIPEFT_FAST=0", "use(fast=False)"])
def test_the_text_alone_can_be_asked_for(asked):
    code = "import minipeft, numpy as np\nfrom minipeft.engine import ops, tensor\n"
    code += "minipeft.use(fast=False)\n" if "use" in asked else ""
    code += "ops.add(np.ones(2), 1.0); print(len(tensor._replaced))"
    env = os.environ | ({} if "use" in asked else {"MINIPEFT_FAST": "0"})
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        == "0\n"
    )


def test_a_replacement_may_say_where_it_applies():
    def doubled(x):
        return 2 * np.exp(x), (lambda g: g,)

    before = tensor.take({"exp": tensor.Replacement(doubled, when=lambda x: x.size > 1)})
    try:
        assert ops.exp(np.zeros(1))[0] == 1 and ops.exp(np.zeros(2))[0] == 2
        assert value_and_grad(lambda t: ops.sum(ops.exp(t["x"])))({"x": np.zeros(2)})[0] == 4
    finally:
        tensor.take(before)
