"""n ranks give bit for bit what one process gives with n micro-batches: every method, its hooks and what it draws included."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import sampled
from ranks import bits, cut, in_turn, together

from minipeft.arrays import needs, settings_of
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import small
from minipeft.train import SGD, Adafactor, AdamW, accumulated, fit
from minipeft.train.exchange import Failure, Packed, refuse_failures, shares

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))


def begun(name, rows=5):
    """A method that drops what it can, and two batches of which the second has rows of fewer labels."""
    for family in ("llama", "bert"):
        model = tiny.model(family, layers=1)
        method = small(METHODS[name], model.arch)
        method = dataclasses.replace(
            method, **{k: 0.3 for k, x in settings_of(method).items() if "dropout" in k and x == 0}
        )
        tasks = getattr(method, "n_tasks", 1)
        data = [
            tiny.example(model, rows=rows, seed=1, tasks=tasks),
            tiny.example(model, rows=3, t=9, seed=2, tasks=tasks),
        ]
        try:
            return attach(model, method, data=data if needs(method) else (), seed=3), data
        except Unfit:
            continue
    raise AssertionError(f"{name} fits nowhere")


@pytest.mark.parametrize("name", sampled.in_turn(SHIPPED, every=3))
def test_two_ranks_are_one_process_with_two_micro_batches(name):
    """Two steps: the second sees what hooks made of the first, and what they keep. Five rows and three: uneven parts."""
    adapted, data = begun(name)
    how = dict(steps=2, optimiser=AdamW(lr=0.01, weight_decay=0.1), schedule="linear", clip=1.0, seed=4)
    ranks = together(2, adapted, data, **how)
    assert bits(ranks[0]) == bits(ranks[1]) == bits(fit(adapted, in_turn(data, 2), **how))


def started(method=None, family="llama", **options):
    return attach(tiny.model(family), method or LoRA(r=2, dropout=0.3), **options)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("optimiser", [SGD(lr=0.1, momentum=0.9), Adafactor(lr=0.01)], ids=lambda o: type(o).__name__)
def test_batches_of_any_number_of_rows(n, optimiser):
    """More than ranks or fewer: then some ranks have nothing to do, and go on with the others."""
    adapted = started()
    data = [tiny.example(adapted.model, rows=rows, t=8, seed=rows) for rows in (1, 2, 5, 4)]
    ranks = together(n, adapted, data, steps=5, optimiser=optimiser, clip=0.5)
    expected = bits(fit(adapted, in_turn(data, n), steps=5, optimiser=optimiser, clip=0.5))
    assert all(bits(r) == expected for r in ranks)


@pytest.mark.parametrize("family", ["t5", "vit", "bert"])
def test_other_families(family):
    adapted = started(family=family)
    data = [tiny.example(adapted.model, rows=4)]
    assert bits(together(2, adapted, data, steps=2)[1]) == bits(fit(adapted, in_turn(data, 2), steps=2))


def test_rows_without_labels_count_for_nothing_and_the_mean_is_over_the_batch():
    adapted = started(LoRA(r=2))
    whole = tiny.example(adapted.model, rows=4)
    labels = whole.labels.copy()
    labels[0, 3:], labels[2:] = -100, -100  # the second part has none at all
    whole = whole.having(labels=labels)
    one, two = fit(adapted, [whole], steps=2), together(2, adapted, [whole], steps=2)[0]
    assert bits(two) == bits(fit(adapted, in_turn([whole], 2), steps=2))
    assert np.allclose(one.losses, two.losses, rtol=1e-13, atol=0)


@dataclass(frozen=True)
class Pulled(LoRA, register=False):
    def penalty(self, arrays):
        return 3.0 * sum((own["A"] * own["A"]).sum() for own in arrays.values() if "A" in own)


@pytest.mark.parametrize("rows", [(4,), (3, 5)])
def test_a_penalty_counts_once(rows):
    adapted = started(Pulled(r=2))
    data = [tiny.example(adapted.model, rows=n, seed=n) for n in rows]
    task = fit(started(LoRA(r=2)), lambda t: data, steps=1).losses[0]
    for done in (fit(adapted, lambda t: data, steps=1), *together(3, adapted, lambda t: data, steps=1)):
        assert done.losses[0] - task == pytest.approx(done.penalties[0], rel=1e-11) and done.penalties[0] > 1


def test_with_several_micro_batches_the_parts_are_what_is_added_up():
    """So that a rank sends the gradients of a step once, however many micro-batches it has."""
    adapted = started()
    data = [tiny.example(adapted.model, rows=n, seed=n) for n in (3, 4)]
    theta = {k: x + 0.1 for k, x in adapted.theta.items()}
    _, got = accumulated(adapted, data, theta, seed=(1, 1), parts=2)
    cuts, total = [cut(b, 2) for b in data], sum(int((b.labels[:, 1:] != -100).sum()) for b in data)
    for k in theta:
        parts = []
        for p in range(2):
            gs = []
            for i, pieces in enumerate(cuts):
                piece = pieces[p]
                rng = np.random.default_rng([1, 1, 2 * i + p])
                share = int((piece.labels[:, 1:] != -100).sum()) / total
                gs.append(adapted.value_and_grad(piece, theta, train=True, rng=rng)[1][k] * share)
            parts.append(gs[0] + gs[1])
        assert np.array_equal(got[k], parts[0] + parts[1])
    ranks = together(2, adapted, lambda t: data, steps=2, optimiser=SGD())
    assert bits(ranks[0]) == bits(ranks[1]) and ranks[0].sent == Packed(adapted.theta).nbytes


def test_parts_are_shared_out_evenly_and_in_order():
    for ranks in range(1, 6):
        for count in range(1, 12):
            found = shares(ranks, count)
            assert [p for s in found for p in s] == list(range(count))
            assert max(map(len, found)) - min(map(len, found)) <= 1


# --- what travels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "each"), [(np.float64, 8), (np.float32, 4)])
def test_gradients_of_adapters_travel_and_nothing_else(dtype, each):
    adapted = attach(tiny.model("llama", dtype), LoRA(r=2))
    data = [tiny.example(adapted.model, rows=4)]
    for n in (1, 2, 4):
        done = together(n, adapted, data, steps=3)[0] if n > 1 else fit(adapted, data, steps=3)
        assert done.ranks == n and done.sent == each * adapted.adapters[0].size * 2 * (n - 1) / n


def test_a_matrix_scaled_by_vectors_sends_a_fiftieth_of_two_factors():
    """LoRA trains 2 r d numbers of a (d, d) matrix; VeRA of rank R d + R, the rest being drawn and frozen: of d = 64, r = 32
    and R = 16 that is 4096 to 80."""
    arch = dataclasses.replace(tiny.ARCHS["llama"], d=64, heads=4, kv_heads=4, layers=1)
    from minipeft.model.base import Model
    from minipeft.model.parts import shapes

    rng = np.random.default_rng(0)
    model = Model(arch, {k: 0.1 * rng.standard_normal(shape) for k, shape in shapes(arch).items()})
    sent = {}
    for name, r in (("lora", 32), ("vera", 16)):
        adapted = attach(model, METHODS[name](r=r), targets="*.attn.q.weight")
        sent[name] = together(2, adapted, [tiny.example(model, rows=2)], steps=1)[0].sent
    assert sent == {"lora": 8 * 2 * 32 * 64, "vera": 8 * (64 + 16)} and 50 < sent["lora"] / sent["vera"] < 52


# --- what is told ------------------------------------------------------------------------------------------------------


def test_ranks_that_are_given_different_batches_are_told():
    adapted, calls = started(), iter(range(100))
    example = lambda t: [tiny.example(adapted.model, seed=next(calls))]
    with pytest.raises(Bad, match="rank 1: was given other batches than rank 0"):
        together(2, adapted, example, steps=2)


def test_ranks_that_drift_apart_are_told_before_anything_is_written(tmp_path):
    """By a library whose products depend on the processor, say."""

    turns = iter([0.0, 1e-9] * 50)

    @dataclass(frozen=True)
    class Odd(LoRA, register=False):
        def after_step(self, step):
            by = 1 + next(turns)
            step.theta = {s: {n: x * by for n, x in own.items()} for s, own in step.theta.items()}

    with pytest.raises(Bad, match="rank 1: has other arrays after step 1 than rank 0"):
        together(2, started(Odd(r=2)), [tiny.example(tiny.model(), rows=2)], steps=2, every=1)


def test_who_fails_is_named():
    with pytest.raises(Bad, match=r"^rank 2: no memory$"):
        refuse_failures([1, 2, Failure("no memory")])
    with pytest.raises(Bad, match=r"^no memory$"):
        refuse_failures([Failure("no memory"), Failure("that neither")])


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        (0, "workers: expected 1 to 1024, auto or mpi, found 0"),
        ("atuo", r"workers: expected 1 to 1024, auto or mpi, found 'atuo' \(did you mean auto"),
        (2.0, "workers: expected 1 to 1024, auto or mpi, found 2.0"),
        (5000, "expected 1 to 1024"),
        (None, "expected 1 to 1024"),
    ],
)
def test_what_is_no_number_of_workers(workers, says):
    with pytest.raises(Bad, match=says):
        fit(started(), [tiny.example(tiny.model())], steps=1, workers=workers)
