"""What runs as graphs equals what runs without: training, generation and a forward pass.

On the stand-in for CuPy in the default suite, whose graphs call the function again and see that nothing crosses; with `-m gpu` as
CUDA graphs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from both import FEW, computed, conditions, on
from ranks import in_turn, together

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import laws, tiny
from minipeft.conformance.laws import K
from minipeft.engine import backend, xp
from minipeft.engine.backend import once, to_device, to_host
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.orthogonal.oft import OFT
from minipeft.methods.structured.loha import LoHa
from minipeft.model import generate as generation
from minipeft.model import graph as graphs
from minipeft.model.batch import batch
from minipeft.model.generate import generate
from minipeft.settings import small
from minipeft.train import SGD, Adafactor, AdamW, fit

load_methods()


@pytest.fixture
def made(monkeypatch, device):
    """The graphs that a test records, each with the number of its replays."""
    found = []

    class Counted(graphs.recorder().Graph):
        def __init__(self, *args):
            super().__init__(*args)
            self.runs = 0
            found.append(self)

        def __call__(self):
            self.runs += 1
            super().__call__()

    monkeypatch.setattr(graphs.recorder(), "Graph", Counted)
    return found


def equal_without(f, adapted):
    """The largest err/(u·cond) of f(theta, graph=True) against f(theta, graph=False), asserted to be at most K."""
    theta, worst = {k: to_host(x) for k, x in adapted.theta.items()}, 0.0
    got = computed(lambda theta: f(theta, True), theta)
    eager = lambda theta: f(theta, False)
    want, cond = computed(eager, theta), conditions(eager, theta)
    for k, w in want.items():
        ratio = abs(got[k] - w).max() / (2.0**-53 * cond[k])
        assert ratio <= K, (k, ratio)
        worst = max(worst, ratio)
    return worst


# --- training ---------------------------------------------------------------------------------------------------------

ALL, STEPS = "all-linear", 6
TRAININGS = {
    "llama": ("llama", LoRA(r=2, targets=ALL), AdamW(lr=1e-2, weight_decay=0.1)),
    "gpt2": ("gpt2", LoRA(r=2, targets=ALL), AdamW(lr=1e-2)),
    "bert": ("bert", LoRA(r=2, targets=ALL), AdamW(lr=1e-2)),
    "t5": ("t5", LoRA(r=2, targets=ALL), AdamW(lr=1e-2)),
    "dropout": ("llama", LoRA(r=2, targets=ALL, dropout=0.3), AdamW(lr=1e-2)),
    "dropout of rows": ("llama", LoHa(r=2, rank_dropout=0.4), AdamW(lr=1e-2)),
    "drawn skills": ("llama", small(METHODS["poly"], tiny.arch("llama")), AdamW(lr=1e-2)),
    "adalora": ("llama", METHODS["adalora"](r=4, target_r=2, tinit=1, tfinal=1, deltaT=1), AdamW(lr=1e-2)),
    "osf": ("llama", METHODS["osf"](), AdamW(lr=1e-3)),
    "loreft": ("llama", METHODS["loreft"](r=2, dropout=0.2), AdamW(lr=1e-2)),
    "oft projected": ("gpt2", OFT(block=4, coft=True, eps=1e-3), AdamW(lr=1e-2)),
    "sgd": ("llama", LoRA(r=2, targets=ALL), SGD(lr=0.1)),
    "sgd with momentum": ("gpt2", LoRA(r=2, targets=ALL, dropout=0.1), SGD(lr=0.1, momentum=0.9)),
    "adafactor": ("llama", LoRA(r=2, targets=ALL), Adafactor()),
    "micro-batches": ("llama", LoRA(r=2, targets=ALL, dropout=0.3), AdamW(lr=1e-2)),
}
PLAIN = {
    "llama",
    "gpt2",
    "bert",
    "t5",
    "dropout",
    "dropout of rows",
    "drawn skills",
    "osf",
}  # one graph holds all of a step


@pytest.mark.parametrize(
    "device, name", on([(n,) for n in [*TRAININGS][::2]], [(n,) for n in TRAININGS], every=2), indirect=["device"]
)
def test_training_by_a_graph_is_training(device, name, made, measured):
    family, method, optimiser = TRAININGS[name]
    start = laws.moved(attach(tiny.model(family), method))
    batches = [tiny.example(start.model, seed=i, tasks=1) for i in range(3)]
    if name == "micro-batches":  # one of them now and then, which AdamW's graph takes
        give = lambda t: batches[:1] if t % 3 == 0 else batches[t % 2 : t % 2 + 2]
    else:
        give = lambda t: [batches[t % 3]]
    options = dict(steps=STEPS, optimiser=optimiser, schedule="linear", warmup=2, clip=1.0, seed=3)

    def trained(theta, graph):
        done = fit(start.replace(theta), give, **options, graph=graph)
        return {"losses": np.array(done.losses), **done.adapted.theta}

    before = start.model.digest(), {k: to_host(x) for k, x in start.theta.items()}
    measured("training by a graph", equal_without(trained, start))
    single, several, every = (
        STEPS // 3,
        STEPS - STEPS // 3,
        STEPS + 2,
    )  # of two micro-batches, then what their sum makes
    assert sorted(g.runs for g in made) == ([single, several, every] if name == "micro-batches" else [STEPS])
    losses_and_gradients = [isinstance(g.result, tuple) for g in made]
    assert losses_and_gradients == ([True, False, False] if name == "micro-batches" else [name not in PLAIN])
    assert start.model.digest() == before[0]
    for k, x in start.theta.items():  # what was given is not what is written to
        np.testing.assert_array_equal(to_host(x), before[1][k])


@pytest.mark.parametrize(
    "device, name", on([("llama",), ("adalora",)], [("llama",), ("adalora",)]), indirect=["device"]
)
def test_ranks_by_graphs_are_one_process_with_micro_batches(device, name, made):
    """The graphs stay whole up to the exchange: the gradients of a part are one, what their sum makes another."""
    family, method, optimiser = TRAININGS[name]
    start = laws.moved(attach(tiny.model(family), method))
    data = [tiny.example(start.model, rows=rows, seed=rows) for rows in (6, 2, 4)]
    how = dict(steps=4, optimiser=optimiser, clip=1.0, seed=3, graph=True)
    ranks = together(2, start, data, one_at_a_time=True, **how)
    runs = sum(g.runs for g in made)
    one = fit(start, in_turn(data, 2), **how)
    for done in ranks:
        assert done.losses == one.losses
        for k, x in one.adapted.theta.items():
            assert to_host(x).tobytes() == to_host(done.adapted.theta[k]).tobytes(), k
    assert runs == sum(g.runs for g in made) - runs + (4 if name in PLAIN else 0)  # each rank makes its own of the sum


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_training_by_a_graph_over_a_base_in_bfloat16(device, family, made):
    model = tiny.model(family, "bfloat16")
    start = attach(model, LoRA(r=2, targets=ALL))
    batches = [tiny.example(model, seed=i) for i in range(3)]
    options = dict(steps=STEPS, optimiser=AdamW(lr=1e-2), schedule="linear", warmup=2, clip=1.0)
    eager, graph = fit(start, batches, **options), fit(start, batches, **options, graph=True)
    allowed = K * 2.0**-8  # sums in another order: some of what is rounded to bfloat16 then goes to its other side
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=allowed)
    assert len(set(graph.losses)) == STEPS and [g.runs for g in made] == [STEPS]
    first, last, other = ({k: to_host(x) for k, x in a.theta.items()} for a in (start, eager.adapted, graph.adapted))
    gone, off = (sum(float(((a[k] - last[k]) ** 2).sum()) for k in last) ** 0.5 for a in (first, other))
    assert off <= allowed * gone
    assert graph.adapted.model.digest() == model.digest()


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_a_micro_batch_without_labels_overwrites_no_gradient(device):
    model = tiny.model()
    adapted, given = attach(model, LoRA(r=2)), tiny.example(model)
    empty = given.having(labels=np.full(given.labels.shape, -100))
    one, two = fit(adapted, [given], steps=3), fit(adapted, lambda t: [given, empty], steps=3, graph=True)
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-12)


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_batches_that_look_alike_share_a_graph(device, made):
    """Positions within the table, padding here or there: a graph serves them all; other shapes are recorded apart."""
    model = tiny.model("gpt2")
    adapted, rng = attach(model, LoRA(r=2)), np.random.default_rng(0)

    def example(t, first=0, pads=1):
        ids, mask = rng.integers(2, 50, (2, t)), np.ones((2, t), int)
        mask[0, :pads] = 0
        return batch(input_ids=ids, labels=ids, attention_mask=mask, position_ids=np.arange(first, first + t)[None].repeat(2, 0))  # fmt: skip

    data = [example(5), example(5, first=3), example(5, pads=2), example(7), example(5, pads=0), example(7)]
    eager, graph = fit(adapted, data, steps=6), fit(adapted, data, steps=6, graph=True)
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=1e-12)
    assert [g.runs for g in made] == [3, 2, 1]
    with pytest.raises(Bad, match="position_ids: expected 0 … 39, found 40"):
        fit(adapted, [example(5), example(5, first=36)], steps=2, graph=True)
    with pytest.raises(Bad, match="input_ids: expected token ids 0 … 49, found 50"):
        fit(adapted, [example(5), example(5).having(input_ids=np.full((2, 5), 50))], steps=2, graph=True)
    with pytest.raises(Bad, match="batches of more than 16 shapes or masks; pad them alike"):
        fit(adapted, [example(t) for t in range(2, 20)], steps=18, graph=True)


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_a_training_goes_on_by_graph_where_it_was_killed(device, tmp_path):
    model = tiny.model()
    adapted, batches = attach(model, LoRA(r=2, dropout=0.2)), [tiny.example(model, seed=s) for s in (1, 2)]
    whole = fit(adapted, batches, steps=5, graph=True)
    with pytest.raises(KeyboardInterrupt):

        def killed(t, *rest):
            if t == 3:
                raise KeyboardInterrupt

        fit(adapted, batches, steps=5, checkpoint=tmp_path / "c", every=1, progress=killed, graph=True)
    again = fit(adapted, batches, steps=5, checkpoint=tmp_path / "c", every=1, graph=True)
    np.testing.assert_allclose(again.losses, whole.losses, rtol=1e-12)


# --- generation -------------------------------------------------------------------------------------------------------

WITH = ["base", "lora", "dora", "prefix_tuning", "prompt_tuning", "cartridge", "p_tuning", "ia3", "houlsby", "llama_adapter", "loreft"]  # fmt: skip
GENERATED = [(f, m) for f in ("llama", "gpt2", "t5") for m in WITH]


@pytest.mark.parametrize("device, family, method", on(GENERATED[::2], GENERATED, every=3), indirect=["device"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_generation_by_a_graph_is_generation(device, family, method, padding, made):
    model = tiny.model(family)
    model = dataclasses.replace(model, arch=dataclasses.replace(model.arch, eos_ids=()))  # all tokens are made
    adapted = Adapted(model) if method == "base" else laws.moved(attach(model, small(METHODS[method], model.arch)))
    prompt = tiny.example(model, padding=padding).having(labels=None, task_ids=None)
    for asked in (dict(), dict(temperature=0.7, top_k=9)):
        got = generate(adapted, prompt, 7, **asked, graph=True)
        np.testing.assert_array_equal(got, generate(adapted, prompt, 7, **asked))
    assert got.shape == (3, 7) and [g.runs for g in made] == [6, 6]


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_generation_by_a_graph_with_a_window_an_end_and_a_table_that_ends(device, made):
    model = tiny.model("llama")
    near = dataclasses.replace(model, arch=dataclasses.replace(model.arch, window=3))
    prompt = tiny.example(model, padding="left").having(labels=None)
    got = generate(Adapted(near), prompt, 9, graph=True)
    np.testing.assert_array_equal(got, generate(Adapted(near), prompt, 9))
    assert not np.array_equal(got, generate(Adapted(model), prompt, got.shape[1], graph=True))

    first = int(generate(Adapted(model), prompt, 3)[0, 2])
    ends = dataclasses.replace(model, arch=dataclasses.replace(model.arch, eos_ids=(first,)))
    one = prompt.having(input_ids=prompt.host("input_ids")[:1], attention_mask=prompt.host("attention_mask")[:1], task_ids=None)  # fmt: skip
    got = generate(Adapted(ends), one, 9, graph=True)
    assert got[0, -1] == first and got.shape[1] <= 3

    adapted = attach(tiny.model("gpt2"), METHODS["prompt_tuning"](p=30))
    asked = batch(input_ids=np.array([[5, 9, 3, 8]]))
    np.testing.assert_array_equal(generate(adapted, asked, 6, graph=True), generate(adapted, asked, 6))
    with pytest.raises(Bad, match="position_ids: expected 0 … 39, found 40"):
        generate(adapted, asked, 12, graph=True)
    assert generate(adapted, asked, 0, graph=True).shape == (1, 0)
    with pytest.raises(Bad, match="keeps keys and values, and use_cache=False does not"):
        generate(adapted, asked, 3, use_cache=False, graph=True)
    mixed = attach(tiny.model("llama"), small(METHODS["x_lora"], tiny.arch("llama")))
    with pytest.raises(Bad, match="keeps keys and values, and x_lora does not"):
        generate(mixed, asked, 3, graph=True)


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
@pytest.mark.parametrize("graph", [False, True], ids=["without", "graph"])
def test_a_token_waits_once_for_its_logits(device, graph, monkeypatch):
    fetched = []
    monkeypatch.setattr(generation, "to_host", lambda x: fetched.append(x.shape) or to_host(x))
    model = tiny.model("gpt2")
    prompt = tiny.example(model, padding="left").having(labels=None)
    made = generate(attach(model, "prefix_tuning"), prompt, 5, graph=graph)
    assert fetched == [(3, 50)] * made.shape[1]


# --- a forward pass ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device, family", on([(f,) for f in tiny.ARCHS], [(f,) for f in tiny.ARCHS]), indirect=["device"])  # fmt: skip
def test_a_forward_pass_by_a_graph(device, family, made):
    adapted = laws.moved(attach(tiny.model(family), LoRA(r=2, targets=ALL)))
    replayed = graphs.forward(adapted)
    kept = None
    for seed in range(3):
        given = tiny.example(adapted.model, seed=seed)
        (logits, loss), want = replayed(given), adapted.forward(given)
        for x, w in ((logits, want.logits), (loss, want.loss)):
            w = to_host(w)
            assert abs(to_host(x) - w).max() <= K * 2.0**-53 * 4 * abs(w).max()
        assert kept is None or logits is kept  # in place
        kept = logits
    assert [g.runs for g in made] == [3]
    logits, loss = replayed(given.having(labels=None, decoder_input_ids=given.host("labels") % 2 if family == "t5" else None))  # fmt: skip
    assert loss is None and logits.shape == kept.shape and len(made) == 2


SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))


UNRECORDED = ("boft", "para", "psoft", "velora")  # of cuBLAS and cuSOLVER what no graph of CuPy's can hold


@pytest.mark.parametrize("device, name", on([(n,) for n in FEW], [(n,) for n in SHIPPED], every=3), indirect=["device"])
def test_every_method_by_a_graph(device, name, made):
    """Its forward pass, where nothing is differentiated, and its training; one that decomposes or averages in every pass is told."""
    family = "bert" if name == "bitfit" else "llama"
    there = laws.case(small(METHODS[name], tiny.arch(family)), family)
    if name in UNRECORDED and backend.name() == "cupy":
        with pytest.raises(Bad, match=r"graph: something here .* captur") as told:
            fit(there.moved, [tiny.example(there.model, tasks=1)], steps=1, graph=True)
        assert "\n" not in str(told.value)
        return
    given = tiny.example(there.model, tasks=1)

    def computed_by(theta, graph):
        losses = fit(there.moved.replace(theta), [given], steps=3, graph=graph).losses
        adapted = there.moved.replace(theta)
        logits = graphs.forward(adapted)(given)[0] if graph else adapted.logits(given)
        return {"losses": np.array(losses), "logits": logits}

    equal_without(computed_by, there.moved)
    assert [g.runs for g in made] == [3, 1]


# --- what cannot be recorded ------------------------------------------------------------------------------------------


def anything(model):
    return tiny.example(model, seed=1)


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_what_a_graph_cannot_hold_is_one_line(device):
    model = tiny.model()
    data = [anything(model)]
    decided = attach(model, LoHa(r=2, module_dropout=0.4))
    for optimiser in (AdamW(), SGD()):
        with pytest.raises(Bad, match="a number is drawn for the host to decide by") as told:
            fit(decided, data, steps=1, optimiser=optimiser, graph=True)
        assert "\n" not in str(told.value)

    waiting = {
        "fetches": lambda batch, rng: to_device(to_host(batch.input_ids) + 1),
        "decides": lambda batch, rng: batch.input_ids + (1 if float(batch.input_ids.sum()) > 0 else 2),
        "moves": lambda batch, rng: batch.input_ids + to_device(np.arange(7)),
    }
    for f in waiting.values():
        with pytest.raises(Bad, match=r"graph: something here waits .* captur"):
            graphs.Replay(model.arch, f)(data[0])
    with pytest.raises(Bad, match=r"rng\.normal is drawn from"):
        graphs.Replay(model.arch, lambda batch, rng: rng.normal(3))(data[0])
    doubled = graphs.Replay(model.arch, lambda batch, rng: 2 * batch.input_ids)  # and the device goes on
    np.testing.assert_array_equal(to_host(doubled(data[0])), 2 * data[0].host("input_ids"))


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_a_rehearsal_leaves_what_changes(device):
    model = tiny.model()
    total = xp.zeros((), int)

    def f(batch, rng):
        total[...] = total + batch.input_ids.sum()
        return total

    replayed, sums = graphs.Replay(model.arch, f, changes=[total]), 0
    for seed in range(3):
        given = tiny.example(model, seed=seed)
        sums += given.host("input_ids").sum()
        assert int(to_host(replayed(given))) == sums


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
def test_constants_outlive_the_memory_of_graphs(device):
    """A constant first asked for by a later graph does not lie where an earlier one computes."""
    table = once(lambda n: np.arange(n, dtype=np.float64))
    model = tiny.model()

    def f(batch, rng):
        n = 1000 * batch.input_ids.shape[1]
        return sum((xp.full(n, 7.0) * i for i in range(9)), xp.zeros(n)) + table(n)

    replayed, (short, long) = graphs.Replay(model.arch, f), (tiny.example(model, t=t) for t in (9, 6))
    for given in (short, long, short, long):
        n = 1000 * given.input_ids.shape[1]
        np.testing.assert_array_equal(to_host(replayed(given)), 7.0 * 36 + np.arange(n))


LOST = {
    "OutOfMemoryError": ((MemoryError,), r"the GPU has no memory left: allocating 9 bytes.*fewer rows"),
    "CUDARuntimeError": ((RuntimeError,), r"the GPU or its driver failed: allocating 9 bytes; start"),
}


@pytest.mark.parametrize("device", on([()], [()]), indirect=True)
@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("when", ["recording", "replay"])
def test_a_device_that_fails_is_one_line(device, kind, when, monkeypatch):
    bases, line = LOST[kind]
    error = type(kind, bases, {"__module__": "cupy.cuda"})("allocating\n9 bytes")

    def lost(*args):
        raise error

    monkeypatch.setattr(graphs.recorder().Graph, "__init__" if when == "recording" else "__call__", lost)
    model = tiny.model()
    adapted, given = attach(model, "lora"), anything(model)
    for run in (
        lambda: graphs.forward(adapted)(given),
        lambda: generate(adapted, given.having(labels=None, attention_mask=None), 3, graph=True),
        lambda: fit(adapted, [given], steps=1, graph=True),
        lambda: fit(adapted, [given], steps=1, graph=True, optimiser=SGD()),
    ):
        with pytest.raises(Bad, match=line) as told:
            run()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("device", on([], [()]), indirect=True)
def test_memory_that_a_recording_lacks_is_one_line(device):
    if backend.name() != "cupy":
        pytest.skip("the stand-in has the host's memory")
    model = tiny.model()
    with pytest.raises(Bad, match="the GPU has no memory left"):
        graphs.Replay(model.arch, lambda batch, rng: xp.zeros(10**13))(anything(model))


def test_a_graph_needs_a_device():
    for run in (lambda m: graphs.forward(Adapted(m)), lambda m: generate(Adapted(m), anything(m), 2, graph=True)):
        with pytest.raises(Bad, match="graphs are recorded on the backend cupy alone, found numpy"):
            run(tiny.model())
