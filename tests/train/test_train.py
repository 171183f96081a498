import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints.files import write_tensors
from minipeft.conformance import tiny
from minipeft.declare import keeps
from minipeft.errors import Bad
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.lowrank.lora_plus import LoRAPlus
from minipeft.train import OPTIMISERS, SGD, Adafactor, AdamW, accumulated, clipped, fit, global_norm, progress_bar, rate

# --- optimisers, against the papers' formulae on plain Python numbers --------------------------------------------------


def sgd(o, xs, gs, steps, lr):
    vs = [0.0] * len(xs)
    for t in range(steps):
        for i, g in enumerate(gs[t]):
            vs[i] = o.momentum * vs[i] + g
            xs[i] -= lr * (vs[i] + o.weight_decay * xs[i])
    return xs


def adamw(o, xs, gs, steps, lr):
    ms, vs = [0.0] * len(xs), [0.0] * len(xs)
    for t in range(1, steps + 1):
        for i, g in enumerate(gs[t - 1]):
            ms[i] = o.beta1 * ms[i] + (1 - o.beta1) * g
            vs[i] = o.beta2 * vs[i] + (1 - o.beta2) * g**2
            m, v = ms[i] / (1 - o.beta1**t), vs[i] / (1 - o.beta2**t)
            xs[i] -= lr * (m / (math.sqrt(v) + o.eps) + o.weight_decay * xs[i])
    return xs


def adafactor(o, X, Gs, steps, lr):
    """Algorithm 4: the second moments are R Cᵀ / (1ᵀ R), of row sums R and column sums C."""
    n, m = len(X), len(X[0])
    R, C = [0.0] * n, [0.0] * m
    for t in range(1, steps + 1):
        beta, G = 1 - t ** (-o.decay), Gs[t - 1]
        S = [[g**2 + o.eps1 for g in row] for row in G]
        R = [beta * r + (1 - beta) * sum(S[i]) for i, r in enumerate(R)]
        C = [beta * c + (1 - beta) * sum(row[j] for row in S) for j, c in enumerate(C)]
        U = [[G[i][j] / math.sqrt(R[i] * C[j] / sum(R)) for j in range(m)] for i in range(n)]
        rms = lambda A: math.sqrt(sum(a * a for row in A for a in row) / (n * m))
        step = lr * (max(o.eps2, rms(X)) if o.relative else 1.0) / max(1.0, rms(U) / o.clip)
        X = [[X[i][j] - step * U[i][j] - lr * o.weight_decay * X[i][j] for j in range(m)] for i in range(n)]
    return X


def walk(optimiser, x, grads, lr):
    theta, state = {"a/s:x": x}, optimiser.init({"a/s:x": x})
    for t, g in enumerate(grads, 1):
        theta, state = optimiser.step(theta, {"a/s:x": g}, state, t, {"a/s:x": lr})
    return theta["a/s:x"]


unit, rates = st.floats(0, 0.99), st.floats(1e-4, 0.5)
draws = st.integers(0, 2**32 - 1), st.integers(1, 5)


def numbers(seed, steps, *shape):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal((steps, *shape))


@given(*draws, rates, unit, st.floats(0, 0.5))
def test_sgd_is_the_formula(seed, steps, lr, momentum, decay):
    x, grads = numbers(seed, steps, 4)
    o = SGD(momentum=momentum, weight_decay=decay)
    expected = sgd(o, x.tolist(), grads.tolist(), steps, lr)
    assert np.allclose(walk(o, x, grads, lr), expected, rtol=1e-12, atol=1e-13)


@given(*draws, rates, unit, unit, st.floats(0, 0.5))
def test_adamw_is_the_formula(seed, steps, lr, beta1, beta2, decay):
    x, grads = numbers(seed, steps, 4)
    o = AdamW(beta1=beta1, beta2=beta2, eps=1e-6, weight_decay=decay)
    expected = adamw(o, x.tolist(), grads.tolist(), steps, lr)
    # the paper divides by √(v/(1−β₂ᵗ)) + ε and so do we, in another order of operations
    assert np.allclose(walk(o, x, grads, lr), expected, rtol=1e-9, atol=1e-10)


@given(*draws, rates, st.booleans(), st.floats(0, 0.5), st.floats(0.2, 2))
def test_adafactor_is_the_formula(seed, steps, lr, relative, decay, clip):
    x, grads = numbers(seed, steps, 3, 4)
    o = Adafactor(relative=relative, weight_decay=decay, clip=clip)
    expected = adafactor(o, x.tolist(), grads.tolist(), steps, lr)
    assert np.allclose(walk(o, x, grads, lr), expected, rtol=1e-11, atol=1e-12)


def test_adafactor_keeps_all_second_moments_of_a_vector():
    x, grads = numbers(0, 2, 3)
    o = Adafactor(relative=False, clip=1e9)
    got = walk(o, x, grads, 0.1)
    v1, beta = grads[0] ** 2, 1 - 2**-0.8
    v2 = beta * v1 + (1 - beta) * grads[1] ** 2
    assert np.allclose(got, x - 0.1 * np.sign(grads[0]) - 0.1 * grads[1] / np.sqrt(v2), rtol=1e-12)


@pytest.mark.parametrize("o", [SGD(momentum=0.9, weight_decay=0.1), AdamW(weight_decay=0.1), Adafactor()], ids=repr)
def test_optimisers_write_to_nothing_they_are_given_and_keep_float32(o):
    x, grads = (a.astype(np.float32) for a in numbers(1, 3, 3, 4))
    before = x.copy(), grads.copy()
    x.flags.writeable = grads.flags.writeable = False
    assert walk(o, x, grads, 0.1).dtype == np.float32
    assert (x == before[0]).all() and (grads == before[1]).all()


@pytest.mark.hf
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD(momentum=0.9), "SGD", dict(momentum=0.9)),
        (AdamW(weight_decay=0.3), "AdamW", dict(weight_decay=0.3)),
        (AdamW(beta1=0.5, beta2=0.8, eps=1e-3), "AdamW", dict(betas=(0.5, 0.8), eps=1e-3, weight_decay=0)),
        (Adafactor(), "Adafactor", dict(eps=(1e-30, 1e-3))),
    ],
)
def test_torch_takes_the_same_steps(ours, theirs, options):
    import torch

    x, grads = numbers(2, 6, 3, 4)
    p = torch.nn.Parameter(torch.tensor(x))
    optimiser = getattr(torch.optim, theirs)([p], lr=0.1, **options)
    for g in grads:
        p.grad = torch.tensor(g)
        optimiser.step()
    assert np.allclose(walk(ours, x, grads, 0.1), p.detach().numpy(), rtol=1e-10, atol=1e-12)


# --- schedules and clipping -------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 59), st.data())
def test_schedules_are_their_closed_forms(total, warmup, data):
    t, warmup = data.draw(st.integers(1, total)), min(warmup, total - 1)
    rest = (t - 1 - warmup) / (total - warmup)  # what part of the steps after the warm-up lies behind step t
    rising = t <= warmup
    assert rate("constant", t, total, warmup) == (t / warmup if rising else 1)
    assert rate("linear", t, total, warmup) == pytest.approx(t / warmup if rising else 1 - rest)
    expected = t / warmup if rising else math.cos(math.pi * rest / 2) ** 2
    assert rate("cosine", t, total, warmup) == pytest.approx(expected)


def test_an_unknown_schedule():
    with pytest.raises(Bad, match=r"schedule 'cosin': expected one of constant, linear, cosine \(did you mean cosine"):
        rate("cosin", 1, 2)


@given(st.integers(0, 99), st.floats(0.01, 20))
def test_clipping(seed, limit):
    a, b = np.random.default_rng(seed).standard_normal((2, 3))
    norm = math.sqrt(sum(x * x for x in [*a, *b]))
    assert global_norm({"a": a, "b": b}) == pytest.approx(norm)
    out = clipped({"a": a, "b": b}, limit)
    factor = min(1.0, limit / norm)
    assert np.allclose(out["a"], factor * a) and np.allclose(out["b"], factor * b)


# --- fit --------------------------------------------------------------------------------------------------------------


def start(method=None, family="llama", **options):
    return attach(tiny.model(family), method or LoRA(r=2), **options)


def test_fit_is_the_loop_written_out():
    adapted, batches = start(), [tiny.example(tiny.model(), seed=s) for s in (1, 2)]
    done = fit(adapted, batches, steps=5, optimiser=SGD(lr=0.5), schedule="linear", warmup=2, clip=0.3)
    theta, losses = adapted.theta, []
    for t, factor in enumerate([1 / 2, 1, 1, 2 / 3, 1 / 3]):
        loss, grads = adapted.value_and_grad(batches[t % 2], theta)
        shrink = min(1.0, 0.3 / math.sqrt(sum((g**2).sum() for g in grads.values())))
        theta = {k: x - 0.5 * factor * shrink * grads[k] for k, x in theta.items()}
        losses.append(float(loss))
    assert np.allclose(done.losses, losses, rtol=1e-12)
    assert all(np.allclose(done.adapted.theta[k], theta[k], rtol=1e-12, atol=1e-15) for k in theta)
    assert done.losses[0] > done.losses[4] and done.tokens == sum(int(batches[t % 2].attention_mask.sum()) for t in range(5))  # fmt: skip
    assert adapted.theta.keys() == done.adapted.theta.keys() and adapted.theta is not theta


def rows(batch, part):
    return dataclasses.replace(batch, **{k: v[part] for k, v in batch.arrays.items()})


@settings(max_examples=10)
@given(st.sampled_from(["llama", "gpt2", "bert", "t5", "vit"]), st.integers(0, 99), st.data())
def test_accumulated_micro_batches_are_one_batch(family, seed, data):
    adapted = start(family=family, seed=seed)
    whole = tiny.example(adapted.model, rows=4, seed=seed, tasks=1)
    if whole.labels.ndim == 2:  # rows with any number of counted labels, perhaps none
        labels = whole.labels.copy()
        for row in labels:
            row[data.draw(st.integers(0, len(row))) :] = -100
        labels[0, :2] = 3
        whole = dataclasses.replace(whole, labels=labels)
    cut = data.draw(st.integers(1, 3))
    theta = {k: x + 0.1 for k, x in adapted.theta.items()}
    loss, grads = accumulated(adapted, [rows(whole, slice(None, cut)), rows(whole, slice(cut, None))], theta)
    expected, expected_grads = adapted.value_and_grad(whole, theta)
    assert loss == pytest.approx(float(expected), rel=1e-11)
    for k, g in expected_grads.items():
        assert np.allclose(grads[k], g, rtol=1e-9, atol=1e-12)


def test_fit_accumulates_what_a_function_gives():
    adapted = start()
    whole = tiny.example(adapted.model, rows=4)
    parts = [rows(whole, slice(0, 3)), rows(whole, slice(3, 4))]
    once = fit(adapted, [whole], steps=3, optimiser=SGD(lr=0.3)).adapted.theta
    asked = []
    split = fit(adapted, lambda t: asked.append(t) or parts, steps=3, optimiser=SGD(lr=0.3)).adapted.theta
    assert asked == [1, 2, 3] and all(np.allclose(once[k], split[k], rtol=1e-10, atol=1e-13) for k in once)


def test_lora_plus_moves_b_faster_and_a_whole_module_at_the_plain_rate():
    adapted = start(LoRAPlus(r=2, ratio=16.0), train_whole=["lm_head"])
    batch = tiny.example(adapted.model)
    theta = {k: x + 0.01 for k, x in adapted.theta.items()}
    adapted = adapted.replace(theta)
    _, grads = adapted.value_and_grad(batch)
    after = fit(adapted, [batch], steps=1, optimiser=SGD(lr=0.01)).adapted.theta
    factor = {"A": 1, "B": 16, "W1": 1}
    for k, g in grads.items():
        assert g.any() and np.allclose(after[k], theta[k] - 0.01 * factor[k.rpartition(":")[2]] * g, rtol=1e-12)


def test_dropout_comes_from_the_seed():
    adapted = start(LoRA(r=2, dropout=0.5))
    batch = tiny.example(adapted.model)
    adapted = adapted.replace({k: x + 0.1 for k, x in adapted.theta.items()})
    one, again, other = (fit(adapted, [batch], steps=3, seed=s).losses for s in (0, 0, 1))
    assert one == again and one != other
    assert len({*fit(adapted, [batch], steps=3, seed=0, optimiser=SGD(lr=0.0)).losses}) == 3  # each step draws anew
    plain = start(LoRA(r=2))
    assert fit(plain, [batch], steps=3, seed=0).losses == fit(plain, [batch], steps=3, seed=1).losses


@dataclass(frozen=True)
class Shrinking(LoRA, register=False):
    def penalty(self, arrays):
        return 3.0 * sum((own["A"] * own["A"]).sum() for own in arrays.values() if "A" in own)


def test_penalties_are_in_the_loss_and_the_gradient():
    plain, pulled = start(LoRA(r=2)), start(Shrinking(r=2))
    batch = tiny.example(plain.model)
    loss, grads = plain.value_and_grad(batch)
    more, more_grads = pulled.value_and_grad(batch)
    A = {k: x for k, x in plain.theta.items() if k.endswith(":A")}
    assert float(more - loss) == pytest.approx(3 * sum((x**2).sum() for x in A.values()))
    assert all(np.allclose(more_grads[k] - grads[k], 6 * A[k] if k in A else 0) for k in grads)
    assert fit(pulled, [batch], steps=1).losses[0] == pytest.approx(float(more))


def test_hooks_change_gradients_and_arrays():
    @dataclass(frozen=True)
    class Held(LoRA, register=False):
        def after_backward(self, step):
            step.grads = {s: g | dict(B=0 * g["B"]) for s, g in step.grads.items()}

        def after_step(self, step):
            step.theta = {s: x | dict(A=0 * x["A"] + step.t + step.total / 10) for s, x in step.theta.items()}

    theta = fit(start(Held(r=2)), [tiny.example(tiny.model())], steps=2).adapted.theta
    assert all((x == (2.2 if k.endswith(":A") else 0)).all() for k, x in theta.items())


def test_progress_is_told_after_every_step():
    seen = []
    done = fit(start(), [tiny.example(tiny.model())], steps=3, progress=lambda *a: seen.append(a))
    each = int(tiny.example(tiny.model()).attention_mask.sum())
    assert seen == [(t, 3, done.losses[t - 1], each * t) for t in (1, 2, 3)]


@pytest.mark.parametrize(
    ("adapted", "options", "says"),
    [
        (lambda: Adapted(tiny.model()), {}, "nothing to train"),
        (lambda: start().using(), {}, "nothing to train"),
        (
            lambda: start(targets="lm_head"),
            dict(optimiser=SGD(lr=1e9, weight_decay=1e9), steps=40),
            r"step \d+: the loss is (nan|inf)",
        ),
        (start, dict(schedule="step"), "schedule 'step'"),
        (start, dict(schedule=None), "schedule None"),
        (start, dict(steps=0), "fit: steps must be at least 1, found 0"),
        (start, dict(steps=2.5), "fit: steps must be an integer, found 2.5"),
        (start, dict(warmup=-1), "fit: warmup must be at least 0, found -1"),
        (start, dict(clip=0.0), "fit: clip must be positive, found 0.0"),
        (start, dict(clip=float("nan")), "fit: clip must be a number of at most .* or None, found nan"),
        (start, dict(optimiser="adamw"), "fit: optimiser must have lr, init and step, as AdamW.. has, found 'adamw'"),
        (start, dict(batches=[]), "fit: expected one batch or more, found none"),
        (start, dict(seed=-1), "fit: seed must be at least 0, found -1"),
        (start, dict(every=0), "fit: every must be at least 1, found 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_trained(adapted, options, says):
    with pytest.raises(Bad, match=says):
        fit(adapted(), **dict(steps=4, batches=[tiny.example(tiny.model())]) | options)


@pytest.mark.parametrize("optimiser", OPTIMISERS.values())
def test_optimisers_refuse_what_makes_nan(optimiser):
    for x in (-1.0, math.nan, math.inf, "0.1", True):
        with pytest.raises(Bad, match=f"{optimiser.__name__}: lr must be"):
            optimiser(lr=x)
    for field in ("eps", "eps1"):  # 0 in float32: 0/0 where a gradient is 0
        if field in {f.name for f in dataclasses.fields(optimiser)}:
            with pytest.raises(Bad, match=rf"{field} must lie in \[1e-30, 1\], found 1e-50"):
                optimiser(**{field: 1e-50})


def test_the_last_step_has_no_loss_after_it():
    @dataclass(frozen=True)
    class Lost(LoRA, register=False):
        def after_step(self, step):
            step.theta = {s: {n: x * math.inf for n, x in own.items()} for s, own in step.theta.items()}

    with pytest.raises(Bad, match=r"step 1: default/layers.0.*:A is no longer finite; lower the learning rate"):
        fit(start(Lost(r=2)), [tiny.example(tiny.model())], steps=1)


def test_no_labels():
    unlabelled = dataclasses.replace(tiny.example(tiny.model()), labels=None)
    with pytest.raises(Bad, match="training needs labels"):
        fit(start(), [unlabelled], steps=1)


# --- checkpoints ------------------------------------------------------------------------------------------------------

STEPS, LAST = 40, 38  # a training to be killed waits after step LAST


class Counted(LoRA, register=False):
    """With a state of its own, as AdaLoRA has."""

    seen = keeps("1")

    def after_step(self, step):
        step.state["seen"] = step.state.get("seen", np.zeros(1)) + step.t


def train(checkpoint, every=1, progress=None, **changes):
    """The training that is killed: dropout, momentum, a method's own state, a schedule, two batches in turn."""
    settings = dict(r=2, dropout=0.2, seed=3, data=(1, 2), optimiser=AdamW(lr=0.01), schedule="cosine", steps=STEPS)
    s = settings | changes
    adapted = start(Counted(r=s["r"], dropout=s["dropout"]), seed=s["seed"])
    batches = [tiny.example(adapted.model, seed=d) for d in s["data"]]
    return fit(
        adapted, batches, steps=s["steps"], optimiser=s["optimiser"], schedule=s["schedule"], warmup=3, clip=1.0,
        seed=5, checkpoint=checkpoint, every=every, progress=progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "training.safetensors"
    train(path)
    return path.read_bytes()


@pytest.mark.parametrize("every", [1, pytest.param(7, marks=pytest.mark.wide)])
def test_a_killed_training_ends_with_the_same_bytes(every, undisturbed, tmp_path):
    path = tmp_path / "training.safetensors"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    moment = random.Random(every)
    for _ in range(2):  # killed twice, wherever it happens to be, then left to end
        command = [sys.executable, __file__, str(path), str(every)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            for line in process.stdout:
                if int(line) == LAST or (int(line) >= 10 and moment.random() < 0.15):
                    break
            time.sleep(0.01 * moment.random())
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and path.read_bytes() != undisturbed
    steps = []
    done = train(path, every, progress=lambda t, *_: steps.append(t))
    assert path.read_bytes() == undisturbed and steps[0] > 1 and steps[-1] == STEPS == len(done.losses)


def test_a_finished_training_does_nothing_more(undisturbed, tmp_path):
    path = tmp_path / "training.safetensors"
    path.write_bytes(undisturbed)
    again, whole = train(path), train(None)
    assert again.losses == whole.losses and again.tokens == 0 and path.read_bytes() == undisturbed
    assert all(np.array_equal(again.adapted.theta[k], x) for k, x in whole.adapted.theta.items())


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        (dict(optimiser=AdamW(lr=0.02)), "optimiser"),
        (dict(optimiser=SGD()), "optimiser"),
        (dict(r=3), "adapters"),
        (dict(dropout=0.1), "adapters"),
        (dict(seed=4), "start"),
        (dict(schedule="linear"), "settings"),
        (dict(steps=STEPS + 1), "settings"),
        (dict(data=(1, 3)), "data"),
    ],
    ids=repr,
)
def test_the_checkpoint_of_another_training(changes, differs, undisturbed, tmp_path):
    path = tmp_path / "training.safetensors"
    path.write_bytes(undisturbed)
    with pytest.raises(Bad, match=f"this checkpoint is of another training: its {differs} differs"):
        train(path, **changes)
    assert path.read_bytes() == undisturbed


def test_a_file_that_is_no_checkpoint(undisturbed, tmp_path):
    path = tmp_path / "training.safetensors"
    for metadata in (
        None,
        {"format": "pt"},
        {"training": "{"},
        {"training": "[]"},
        {"training": '"ab"'},
        {"training": json.dumps({})},
    ):
        write_tensors(path, {"x": np.zeros(2)}, metadata)
        with pytest.raises(Bad, match=r"training\.safetensors: "):
            train(path)
    path.write_bytes(undisturbed[:-1])
    with pytest.raises(Bad, match="truncated"):
        train(path)


def test_the_progress_bar_needs_a_terminal(capfd):
    bar, update = progress_bar("training")
    with bar:
        update(1, 2, 0.5, 10)
        update(2, 2, 0.4, 20)
    assert capfd.readouterr() == ("", "")
    assert bar.tasks[0].completed == 2 and bar.tasks[0].fields["loss"] == 0.4


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), progress=lambda t, *_: print(t, flush=True) or time.sleep(600 * (t == LAST)))


def test_a_graph_needs_a_gpu():
    model = tiny.model()
    with pytest.raises(Bad, match="graphs are recorded on the backend cupy alone, found numpy"):
        fit(attach(model, LoRA(r=2)), [tiny.example(model)], steps=1, graph=True)
