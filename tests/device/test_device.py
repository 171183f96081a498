"""The package on a device: everything that runs on NumPy runs there and agrees with it, and a step waits once.

On the stand-in for CuPy in the default suite; with `-m gpu` on CuPy, on more families and types.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recorded
from both import FEW, agree, computed, conditions, on, on_numpy
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from ranks import in_turn, together
from test_ops import CASES

import minipeft.train.loop
import minipeft.train.state
from minipeft import generate
from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, with_head
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.compare import compare
from minipeft.conformance import cases as files
from minipeft.conformance import laws, tiny
from minipeft.conformance.mutants.killing import result_of
from minipeft.conformance.own import Own
from minipeft.conformance.replay import replay
from minipeft.engine import OPS, backend, gradcheck, ops, use, value_and_grad
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.bfloat16 import UNIT
from minipeft.engine.tensor import value
from minipeft.errors import Bad
from minipeft.merging import digest, merge
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.base import Model
from minipeft.settings import small
from minipeft.train import SGD, Adafactor, AdamW, fit

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = list(tiny.ARCHS)
DTYPES = [np.float64, np.float32]
DATA = recorded.ROOT
RECORDED = recorded.CASES
MEASURED = (
    "corda",
    "eva",
    "lora_ga",
)  # they start from what was measured on data, which rounds in another way on each device


def placed(x):
    """A constant of an op on the device: an array, a tuple of an index with arrays, or what is no array."""
    if isinstance(x, tuple):
        return tuple(map(placed, x))
    return to_device(x) if isinstance(x, np.ndarray) else x


def constants_of(case):
    return {k: placed(v) for k, v in case.constants.items()}


# --- ops ------------------------------------------------------------------------------------------------------------

EVERY_OP = [(name,) for name in CASES if name in OPS]


@pytest.mark.parametrize("device, name", on(EVERY_OP, EVERY_OP), indirect=["device"])
def test_gradients_of_ops_equal_finite_differences(device, name):
    @settings(max_examples=4, phases=[Phase.generate], database=None)
    @given(data=st.data())
    def holds(data):
        case = data.draw(CASES[name][0])
        f, given = OPS[name], constants_of(case)
        theta = {str(i): to_device(a) for i, a in enumerate(case.args)}
        g = to_device(case.cotangent(f(*theta.values(), **given).shape))
        gradcheck(lambda t: ops.sum(ops.mul(f(*t.values(), **given), g)), theta, seed=case.seed)

    holds()


@pytest.mark.parametrize(
    "device, name, dtype",
    on([(n, np.float32) for (n,) in EVERY_OP], [(n, d) for (n,) in EVERY_OP for d in DTYPES]),
    indirect=["device"],
)
def test_values_and_gradients_of_ops_equal_numpys(device, name, dtype, measured):
    worst = [0.0]

    @settings(max_examples=4, phases=[Phase.generate], database=None)
    @given(data=st.data())
    def holds(data):
        case = data.draw(CASES[name][0]).astype(dtype)
        cotangent = None

        def f(inputs):
            nonlocal cotangent
            given = constants_of(case)
            if cotangent is None:
                cotangent = case.cotangent(OPS[name](*inputs.values(), **given).shape).astype(dtype)
            g = to_device(cotangent)

            def loss(theta):
                y = OPS[name](*theta.values(), **given)
                return ops.sum(ops.mul(y, g)), y

            (_, y), grads = value_and_grad(loss)(inputs)
            return {"value": y, **grads}

        def terms(want):
            if name == "attention":  # p (∂ − Σ p ∂), a difference, next to nothing over one or two keys
                q, k, v = (abs(a.astype(np.float64)).max(initial=0) for a in case.args[:3])
                slope = abs(cotangent).max(initial=0) * v * case.args[2].shape[-1] * case.constants["scale"]
                sums = {
                    "0": k * case.args[1].shape[2],
                    "1": q * case.args[0].shape[2],
                    "3": 1 / case.constants["scale"],
                }
                return {name: slope * size for name, size in sums.items() if name in want}
            if name not in ("layer_norm", "rms_norm"):
                return {}
            x, w = case.args[0].astype(np.float64), case.args[1]  # the gradient of few numbers is a difference of such
            centred = x - x.mean(axis=-1, keepdims=True) if name == "layer_norm" else x
            rstd = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + case.constants["eps"])
            return {"0": float(abs(cotangent * w * rstd).max(initial=0))}

        worst[0] = max(worst[0], agree(f, {str(i): a for i, a in enumerate(case.args)}, terms))

    holds()
    measured(f"`{name}`", worst[0], dtype)


# --- families, methods ----------------------------------------------------------------------------------------

BOTH = [(f, d) for f in FAMILIES for d in DTYPES]


@pytest.mark.parametrize("device, family, dtype", on(BOTH[::2], BOTH), indirect=["device"])
def test_every_family_equals_numpy(device, family, dtype, measured):
    """Logits, loss and the gradients of every parameter, trained whole."""

    def results(params):
        plain = tiny.model(family, dtype)
        model = Model(plain.arch, params, plain.names)
        adapted, batch = attach(model, METHODS["full"]()), tiny.example(model)
        loss, grads = adapted.value_and_grad(batch)
        return {"logits": adapted.logits(batch), "loss": loss, **{k: grads[k] for k in sorted(grads)}}

    params = on_numpy(lambda: {k: np.array(v) for k, v in tiny.model(family, dtype).params.items()})

    def terms(want):  # softmax does not see a key's bias: its gradient, a sum over ten tokens, is zero but for rounding
        biases = [k for k in want if "attn.k.bias" in k]
        return {k: 10 * float(abs(want[k.replace("attn.k.", "attn.q.")]).max()) for k in biases}

    measured(f"family {family}", agree(results, params, terms), dtype)


@pytest.mark.parametrize("device, family", on([("gpt2",)], [(f,) for f in FAMILIES]), indirect=["device"])
def test_every_family_in_bfloat16_equals_numpy(device, family, measured):
    """The base's bits are NumPy's. What is computed differs where an activation near a middle goes elsewhere."""
    plain = tiny.model(family, np.float32)
    params = on_numpy(lambda: {k: np.array(v) for k, v in tiny.model(family, np.float32).params.items()})

    def results(params, dtype):
        model = Model(plain.arch, params, plain.names).astype(dtype)
        out = Adapted(model).forward(tiny.example(model))
        return {"logits": out.logits, "loss": out.loss}

    def half(params):
        return results(params, "bfloat16")

    got = computed(half, params)
    want, cond = on_numpy(lambda: (computed(half, params), conditions(lambda p: results(p, np.float32), params)))
    for k, w in want.items():
        ratio = float(abs(got[k] - w).max()) / (UNIT * cond[k])
        assert got[k].dtype == np.float32 and ratio <= laws.K, (k, ratio)
        measured(f"family {family}, base in bfloat16", ratio, np.float32)
    digests = [tiny.model(family, "bfloat16").digest(), on_numpy(lambda: tiny.model(family, "bfloat16").digest())]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("device, name", on([(n,) for n in FEW], [(n,) for n in SHIPPED], every=3), indirect=["device"])
def test_every_method_over_a_base_in_bfloat16(device, name, measured):
    """Loss and gradients are those over the same numbers in float32 but for roundings of products, and laws hold."""
    family = "bert" if name == "bitfit" else "llama"
    there = laws.case(small(METHODS[name], tiny.arch(family)), family, "bfloat16")
    assert there is not None and there.u == UNIT
    for law in ("identity", "frozen", "forward", "merge", "dtype"):
        laws.LAWS[law](there)
    rng, half = np.random.default_rng(3), 2.0**-12
    theta, wide = there.moved.theta, there.model.astype(np.float32)

    def nudged(x):
        return x * to_device(1 + half * rng.choice([-1.0, 1.0], x.shape).astype(np.float32))

    def found(model, theta):
        loss, grads = replace(there.moved, model=model).value_and_grad(there.batch, theta)
        return {k: to_host(v) for k, v in {"loss": loss, **grads}.items()}

    got, want = found(there.model, theta), found(wide, theta)
    cond = {k: float(abs(w).max(initial=0)) for k, w in want.items()}
    for _ in range(3):
        params = {k: v if hasattr(v, "dequantize") else nudged(v) for k, v in wide.params.items()}
        moved = found(replace(wide, params=params), {k: nudged(v) for k, v in theta.items()})
        cond = {k: max(c, float(abs(moved[k] - want[k]).max(initial=0)) / half) for k, c in cond.items()}
    off = {k: float(abs(got[k] - w).max(initial=0)) / (UNIT * cond[k]) if cond[k] else 0.0 for k, w in want.items()}
    worst = max(off, key=lambda k: off[k])
    assert off[worst] <= laws.K, (worst, off[worst])
    assert (off["loss"] == 0) == (name == "full"), "nothing was rounded"  # it trains every matrix, in float32
    measured("methods, base in bfloat16", off[worst], np.float32)


@pytest.mark.parametrize("device, name", on([(n,) for n in FEW], [(n,) for n in SHIPPED]), indirect=["device"])
def test_initial_values_and_digests_are_numpys(device, name, tmp_path):
    def start():
        family = "llama" if name == "cpt" else "bert"  # which is for causal language models alone
        there = laws.case(small(METHODS[name], tiny.arch(family)), family)
        assert there is not None
        return there.model.digest(), digest({} if name in MEASURED else there.adapter.arrays), there

    got, want = start(), on_numpy(start)
    assert got[:2] == want[:2]
    save_adapter(got[2].moved, tmp_path / "adapter")  # written on a device, read on the host
    again = on_numpy(lambda: load_adapter(Adapted(want[2].model), tmp_path / "adapter"))
    assert digest(again.adapters[0].arrays) == digest(got[2].moved.adapters[0].arrays)
    back = load_adapter(Adapted(got[2].model), tmp_path / "adapter")
    assert digest(back.adapters[0].arrays) == digest(got[2].moved.adapters[0].arrays)


# --- a step ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fetching_once_a_step(device, monkeypatch):
    """Lets `fit` fetch the loss, and nothing else wait for the device; the list has what was fetched."""
    fetched = []
    if backend.name() != "cupy":
        device.traffic.clear()
        yield fetched
        fetched += [None] * device.traffic.to_host
        return
    import cupyx

    def fetch(x):
        fetched.append(x)
        with cupyx.allow_synchronize(True):
            return to_host(x)

    for file in (minipeft.train.loop, minipeft.train.state):
        monkeypatch.setattr(file, "to_host", fetch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # CuPy has nothing to take its place yet
        with cupyx.allow_synchronize(False):
            yield fetched


FITS = [(n, "bert" if n == "bitfit" else "llama") for n in SHIPPED] + [("lora", f) for f in FAMILIES[1:]]
LIGHT = [(n, f) for n, f in FITS if n in (*FEW, "lora")]


@pytest.mark.parametrize("device, name, family", on(LIGHT, FITS), indirect=["device"])
def test_a_step_waits_once(device, name, family, monkeypatch):
    """For the loss, and once at the end for what became of the arrays; and after the first step, which moves constants, nothing but drawn numbers goes to the device."""
    there = laws.case(small(METHODS[name], tiny.arch(family)), family)
    assert there is not None
    fit(there.start, [there.batch], steps=1, clip=1.0)
    with fetching_once_a_step(device, monkeypatch) as fetched:
        done = fit(there.start, [there.batch], steps=3, optimiser=AdamW(lr=0.01), clip=1.0, warmup=1)
    fetches = 1 + (not isinstance(there.start.penalty(), float))  # at the end
    assert len(done.losses) == 3 and len(fetched) == 3 + fetches
    if backend.name() == "strict" and name != "poly":
        assert device.traffic.to_device == 0


@pytest.mark.parametrize(
    "device, optimiser", on([(SGD(momentum=0.9),), (Adafactor(),)], [(SGD(),), (Adafactor(),)]), indirect=["device"]
)
def test_other_optimisers_and_micro_batches(device, optimiser, monkeypatch):
    model = tiny.model()
    adapted = attach(model, LoRA(r=2, dropout=0.5))
    batches = [tiny.example(model, seed=s) for s in (1, 2)]
    fit(adapted, lambda t: batches, steps=1, optimiser=optimiser)
    with fetching_once_a_step(device, monkeypatch) as fetched:
        fit(adapted, lambda t: batches, steps=3, optimiser=optimiser, clip=0.1)
    assert len(fetched) == 3 + 1


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_a_training_goes_on_where_it_was_killed(device, tmp_path):
    model = tiny.model()
    adapted, batches = attach(model, "lora"), [tiny.example(model, seed=s) for s in (1, 2)]
    whole = fit(adapted, batches, steps=4, schedule="constant")
    with pytest.raises(KeyboardInterrupt):

        def killed(t, *rest):
            if t == 2:
                raise KeyboardInterrupt

        fit(adapted, batches, steps=4, checkpoint=tmp_path / "c", every=1, progress=killed)
    again = fit(adapted, batches, steps=4, checkpoint=tmp_path / "c", every=1)
    np.testing.assert_allclose(again.losses, whole.losses, rtol=1e-12)


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_ranks_pass_through_the_host_and_layers_are_computed_again(device):
    adapted = attach(tiny.model(), LoRA(r=2, dropout=0.5))
    data = [tiny.example(adapted.model, rows=3)]
    whole = fit(adapted, in_turn(data, 2), steps=3, clip=1.0)
    for done in (
        *together(2, adapted, data, steps=3, clip=1.0),
        fit(adapted, in_turn(data, 2), steps=3, clip=1.0, recompute=True),
    ):
        np.testing.assert_allclose(done.losses, whole.losses, rtol=1e-12)
        for k, x in done.adapted.theta.items():
            assert type(x) is type(whole.adapted.theta[k])
            np.testing.assert_allclose(to_host(x), to_host(whole.adapted.theta[k]), rtol=1e-9, atol=1e-14)
    with pytest.raises(Bad, match=r"workers: expected 1, found 2: on .* a training is one process"):
        fit(adapted, data, steps=1, workers=2)


# --- the rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, family", on([("gpt2",), ("t5",)], [("llama",), ("gpt2",), ("t5",)]), indirect=["device"]
)
@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_generation_equals_numpys(device, family, method, use_cache):
    def words():
        model = tiny.model(family)
        adapted = laws.moved(attach(model, method))
        batch = tiny.example(model, padding="left")
        return generate(
            adapted, batch.having(labels=None, task_ids=None), 5, use_cache=use_cache, temperature=0.7, top_k=9
        )

    got = words()
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, on_numpy(words))


# a gradient through what the device decomposes otherwise
OTHERWISE = {"bert-cls/lora-bias-all", "llama/deft-wide", "llama/frod-regularized"}
LESS = recorded.COARSE.keys() | recorded.ANEW | OTHERWISE


@pytest.mark.parametrize(
    "device, case", on([("llama/dora",), ("gpt2/prefix-tuning",)], [(c,) for c in RECORDED]), indirect=["device"]
)
def test_recorded_cases_of_peft_agree(device, case, measured):
    base, _, _ = case.partition("/")
    report = replay(load(DATA / base / "base", np.float64), DATA / case)
    assert report.agrees(strict=case not in LESS), report
    measured(
        "recorded with PEFT",
        max([t.ratio for t in report.tensors if t.ratio is not None and case not in LESS] or [0.0]),
    )


@pytest.mark.parametrize(
    "device, method", on([(m,) for m in ("dora", "x_lora", "qlora")], [(m,) for m in SHIPPED]), indirect=["device"]
)
def test_recorded_cases_of_the_package_pass(device, method, measured):
    for case in files.load(methods=[method]):
        result = result_of(Own(), case)
        assert result.outcome == "PASS", (case.id, result.reason)
        if case.tolerance == "COND" and result.ratio is not None:
            measured("recorded cases", result.ratio)


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_a_merged_model_and_other_types(device):
    model = tiny.model("gpt2").astype(np.float32)
    adapted = laws.moved(attach(model, LoRA(targets="embed.tokens.weight|all-linear")))
    merged = merge(adapted)
    assert {W.dtype for W in merged.params.values()} == {np.dtype(np.float32)}
    assert len(with_head(merged, "classify", 3).digest()) == 64
    assert type(value(Adapted(merged).logits(tiny.example(merged)))) is backend.xp.ndarray


@pytest.mark.parametrize("device, names", on([], [(["lora", "ia3", "prefix_tuning"],)]), indirect=["device"])
def test_compare(device, names, record_property):
    found = compare(names, seeds=[0], steps=3, held_out=100)
    assert list(found) == ["majority", "frozen", *names]
    assert all(o.base_unchanged and not o.note and np.isfinite(o.losses).all() for (o,) in found.values())
    if backend.name() == "strict":
        return
    want = on_numpy(lambda: compare(names, seeds=[0], steps=3, held_out=100, jobs=1))
    loss = lambda outcomes: outcomes[0].losses.mean()
    off = max(abs(loss(found[m]) - loss(want[m])) / loss(want[m]) for m in found)
    record_property(
        "`compare` after 3 steps, largest relative difference of the held-out loss from NumPy's", f"{off:.1e}"
    )


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_arrays_of_another_backend_are_named(device):
    chosen = backend.name()
    model = on_numpy(tiny.model)
    with pytest.raises(Bad, match=rf"the model is an array of numpy, and the backend is {chosen}: choose the backend"):
        Adapted(model).logits(tiny.example(tiny.model()))
    batch = on_numpy(lambda: tiny.example(tiny.model()))
    with pytest.raises(Bad, match=rf"input_ids is an array of numpy, and the backend is {chosen}"):
        Adapted(tiny.model()).logits(batch)
    adapted = attach(tiny.model(), "lora")
    use("numpy")
    with pytest.raises(Bad, match=rf"the model is an array of {chosen}, and the backend is numpy"):
        adapted.run()


@pytest.mark.parametrize("device", on([], [()]), indirect=True)
def test_memory_that_is_not_there_is_one_line(device):
    if backend.name() != "cupy":
        pytest.skip("the stand-in has the host's memory")
    with (
        pytest.raises(Bad, match=r"the GPU has no memory left: .*MiB are free.*use fewer rows") as told,
        backend.explained(),
    ):
        backend.xp.zeros(10**13)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("device, size", on([], [("M",), ("L",)]), indirect=["device"])
def test_how_long_a_step_takes(device, size, record_property):
    """Nothing is demanded of the time: it is for the page."""
    from minipeft.bench import our_step

    step = our_step(size, "lora")
    step(), step()
    begun = time.perf_counter()
    times = [begun]
    for _ in range(10):
        assert np.isfinite(step())
        times.append(time.perf_counter())
    fastest = min(np.diff(times))
    record_property(f"the fastest of 10 steps of LoRA at size {size} of `minipeft bench`", f"{1000 * fastest:.1f} ms")
