"""The record of a pass: held against the pass itself, run without a recorder and counted in other ways."""

import gc
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from numpy.lib import tracemalloc_domain

from minipeft import attach
from minipeft.arrays import needs
from minipeft.conformance import tiny
from minipeft.engine import Tensor
from minipeft.engine.tensor import Node
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods, method_class
from minipeft.model.parts import shapes
from minipeft.settings import small
from minipeft.tape import example, record
from minipeft.tape.examples import by_layer

load_methods()


def made(name, family="llama"):
    """(adapted, batch): a method on a tiny model."""
    model = tiny.model(family, np.float32)
    method = small(method_class(name), model.arch)
    batch = tiny.example(model, 2, 16, tasks=getattr(method, "n_tasks", 1))
    return attach(model, method, data=[batch] if needs(method) else ()), batch


def loss_of(adapted, batch):
    """The loss as it is without a recorder, on a tape."""
    leaves = {k: Tensor(v) for k, v in adapted.theta.items()}
    return adapted.loss(leaves, batch, train=True, rng=np.random.default_rng(0)), leaves


def nodes_of(root):
    found, stack = {}, [root]
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            stack += node.parents
    return list(found.values())


def bytes_freed_with_the_tape(adapted, batch):
    """What NumPy gives back when the loss is dropped, by the interpreter's own books."""

    def held():
        gc.collect()
        found = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, tracemalloc_domain)])
        return sum(trace.size for trace in found.traces)

    tracemalloc.start()
    try:
        node = loss_of(adapted, batch)[0].node
        before = held()
        del node
        return before - held()
    finally:
        tracemalloc.stop()


SOME = ["full", "dora", "x_lora"]
REST = sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft.") and n not in SOME)
EVERY = [(n, "llama") for n in SOME] + [("lora", "t5")]
LATER = [(n, "gpt2" if n == "bitfit" else "llama") for n in REST] + [("lora", "bert"), ("lora", "vit")]


@pytest.mark.parametrize(("name", "family"), [*EVERY, *(pytest.param(*x, marks=pytest.mark.slow) for x in LATER)])
def test_the_record_is_what_the_pass_does(name, family):
    """Ops, leaves, gradients and the loss, and the bytes that the tape alone keeps."""
    adapted, batch = made(name, family)
    tape = record(adapted, batch)
    loss, leaves = loss_of(adapted, batch)
    nodes = nodes_of(loss.node)
    assert Counter(op.name for op in tape.taped) == Counter(n.name for n in nodes if n.parents)
    reached = {k for k, t in leaves.items() if t.node in nodes}
    assert {a.key for a in tape.arrays if a.gradient is not None} == reached
    assert {n for n in nodes if not n.parents} == {leaves[k].node for k in reached}  # nothing frozen is a leaf
    assert {x for op in tape.ops for x in op.came_from if isinstance(x, str)} == reached
    assert tape.loss == float(loss.value)
    _, grads = adapted.value_and_grad(batch, train=True, rng=np.random.default_rng(0))
    for a in tape.arrays:
        assert (a.gradient or 0.0) == float(abs(grads[a.key]).max())
    del nodes, loss, leaves, grads
    assert tape.kept == bytes_freed_with_the_tape(adapted, batch)


def test_every_op_that_is_given_a_tensor_is_seen(monkeypatch):
    adapted, batch = made("dora")
    count, plain = [], Node.__init__
    monkeypatch.setattr(Node, "__init__", lambda self, *given: (count.append(given), plain(self, *given))[1])
    loss_of(adapted, batch)
    monkeypatch.undo()
    tape = record(adapted, batch)
    computed = [g for g in count if len(g) > 4]
    assert len(computed) == sum(op.state != "frozen" for op in tape.ops) > len(tape.taped)


@pytest.mark.parametrize("fast", [True, False])
def test_ops_belong_to_the_parts_that_compute_them(fast):
    from minipeft.engine.fast import text

    adapted, batch = made("full")
    if fast:
        tape = record(adapted, batch)
    else:
        with text():
            tape = record(adapted, batch)
    names = {n.removesuffix(".weight") for n, s in shapes(adapted.model.arch).items() if len(s) == 2}
    names -= {"embed.tokens"}
    assert Counter(op.part for op in tape.ops if op.name == "linear") == Counter(names)
    assert {op.part for op in tape.ops if op.name == "rms_norm"} == {
        "layers.0.attn.norm", "layers.0.mlp.norm", "layers.1.attn.norm", "layers.1.mlp.norm", "final.norm",
    }  # fmt: skip
    where = {op.name: op.part for op in tape.ops}
    assert where["take"] == "embed.tokens" and where["attention"] == "layers.1.attn.heads"
    assert (
        where["rope"] == "layers.1.attn.kv" and where["add"] == "layers.1.mlp.res" and where["cross_entropy"] == "loss"
    )
    assert where["silu_mul" if fast else "silu"] == "layers.1.mlp.hidden" and ("silu_mul" in where) is fast
    assert all(
        op.methods == (("full",) if op.part in names | {"embed.tokens"} or "norm" in op.part else ())
        for op in tape.ops
        if op.name in ("linear", "take", "attention")
    )


def test_an_op_says_what_it_came_from():
    tape = example("full")
    last = tape.ops[-1]
    assert last.name == "cross_entropy" and last.shape == ()
    (head,) = (tape.ops[i] for i in last.came_from)
    assert (head.name, head.part) == ("linear", "head")
    assert [x for x in head.came_from if isinstance(x, str)] == ["default/head.weight:W1"]


def test_the_gradient_ends_where_the_method_begins():
    below, tape = by_layer("lora")
    assert {p.layer for p in tape.parts if p.state == "taped"} == {1, None}
    assert {op.part for op in tape.taped if "layers" not in op.part} == {"final.norm", "head", "loss"}
    assert tape.end.name == "layers.1.attn.q" and all(a.part.startswith("layers.1.") for a in tape.arrays)
    assert {p.state for p in tape.parts[: tape.parts.index(tape.end)]} == {"frozen"}
    assert below.end.name == "layers.0.attn.q" and below.kept > tape.kept > 0


def test_a_ladder_leaves_the_backbone_off_the_tape():
    tape = example("ladder_side")
    own = {op.part for op in tape.taped if op.methods}
    assert own == {"embed.out", "layers.0.out", "layers.1.out", "final.out"}
    assert {op.part for op in tape.taped} == own | {"head", "loss"}
    assert {op.methods for op in tape.ops if op.part in own} == {("ladder_side",)}


def test_a_stop_is_seen_and_what_it_cuts():
    tape = example("dora")
    sites = {"layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q", "layers.1.attn.v"}
    assert {s.part for s in tape.stops} == sites and len(tape.stops) == 4
    for stop in tape.stops:
        (cut,) = stop.cut
        assert stop.of == cut and tape.ops[cut].name == "norm" and tape.ops[cut].state == "dropped"
        assert tape.ops[cut].part == stop.part and tape.ops[cut].kept == 0
    flowing = example("dora", given={"grad": "full"})
    assert not flowing.stops and len(flowing.taped) == len(tape.taped) + 4
    assert sum(op.name == "norm" and op.state == "taped" for op in flowing.ops) == 4


def test_a_stop_may_cut_a_trained_array_itself():
    stops = example("velora").stops
    assert {s.of for s in stops if isinstance(s.of, str)} >= {"default/layers.0.attn.q.weight:A"}


def test_passes_are_told_apart():
    tape = example("x_lora")
    assert {op.run for op in tape.ops} == {1, 2}
    assert {op.state for op in tape.ops if op.run == 1} == {"frozen"} and tape.end.name == "before the pass"
    gates = [op for op in tape.ops if op.part == "before the pass"]
    assert [op.name for op in gates] == ["linear", "div", "softmax"] and {op.run for op in gates} == {2}
    assert {op.methods for op in gates} == {("x_lora",)} and [a.name for a in tape.elsewhere] == ["V0", "v0"]
    first, second = ([p.name for p in tape.parts if p.run == run] for run in (1, 2))
    assert set(second) - set(first) == {
        "before the pass",
        *(f"layers.{n}.{part}.res" for n in (0, 1) for part in ("attn", "mlp")),
    }


def test_nothing_trained_leaves_nothing_on_the_tape():
    adapted, batch = made("lora")
    tape = record(adapted.using(), batch)
    assert not tape.taped and not tape.arrays and tape.end is None and tape.kept == 0 and tape.ops


def test_a_record_is_plain_data():
    tape = example("dora")
    said = json.loads(json.dumps(tape.to_json()))
    trained = sum(int(np.prod(a["shape"])) for a in said["arrays"])
    totals = dict(taped=len(tape.taped), ops=len(tape.ops), kept=sum(op["kept"] for op in said["ops"]), trained=trained)
    assert said["totals"] == totals | dict(end="layers.0.attn.q") and totals["kept"] == tape.kept
    assert [part["name"] for part in said["parts"]] == [p.name for p in tape.parts]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(method="lroa"), "did you mean lora"),
        (dict(method="lora", family="lama"), "did you mean llama"),
        (dict(method="lora", layers=0), "layers: expected 1 … 64"),
        (dict(method="lora", top=3), "layers: expected 1 … 64"),
        (dict(method="bitfit", family="llama"), "it has no biases"),
    ],
)
def test_mistakes_are_one_line(given, says):
    with pytest.raises(Bad, match=says):
        example(**given)
