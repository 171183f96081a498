"""The table of parts against what is apart from it: recorded checkpoints, the forward pass, and lists written by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.checkpoints import load, read_arch
from minipeft.conformance import tiny
from minipeft.model.arch import Arch
from minipeft.model.parts import HEAD, TABLE, activation_sites, kind_of, parts, shapes, tied
from minipeft.targets import sites

BASES = sorted(p.parent for p in (Path(__file__).parents[1] / "data" / "bases").glob("*/config.json"))
FAMILIES = list(tiny.ARCHS)


@pytest.mark.parametrize("folder", BASES, ids=lambda p: p.name)
def test_shapes_are_those_of_the_file(folder):
    model = load(folder)
    assert {n: tuple(W.shape) for n, W in model.params.items()} == shapes(model.arch)


GPT2 = Arch(
    "gpt2", d=4, layers=1, heads=2, ff=6, vocab=5, fused_qkv=True, max_positions=3, tied=True, biased=("qkv", "o")
)


def test_parameters_of_a_decoder_by_hand():
    assert shapes(GPT2) == {
        "embed.tokens.weight": (5, 4), "embed.positions.weight": (3, 4), "layers.0.attn.norm.weight": (4,), "layers.0.attn.norm.bias": (4,),
        "layers.0.attn.qkv.weight": (12, 4), "layers.0.attn.qkv.bias": (12,), "layers.0.attn.o.weight": (4, 4), "layers.0.attn.o.bias": (4,),
        "layers.0.mlp.norm.weight": (4,), "layers.0.mlp.norm.bias": (4,), "layers.0.mlp.up.weight": (6, 4), "layers.0.mlp.down.weight": (4, 6),
        "final.norm.weight": (4,), "final.norm.bias": (4,),
    }  # fmt: skip


def test_parameters_of_an_encoder_decoder_by_hand():
    arch = dataclasses.replace(tiny.arch("t5"), layers=1, encoder_layers=1, tied=False)
    attn, mlp = ("norm", "q", "k", "v", "o"), ("norm", "gate", "up", "down")
    inside = {"attn": attn, "cross": attn, "mlp": mlp}
    decoder = [f"layers.0.{part}.{m}.weight" for part in inside for m in inside[part]]
    encoder = [f"encoder.{n}" for n in decoder if ".cross." not in n]
    relative, final = "relbias.weight", "final.norm.weight"
    assert list(shapes(arch)) == [
        TABLE, f"encoder.{relative}", *encoder, f"encoder.{final}", relative, *decoder, final, HEAD
    ]  # fmt: skip
    assert shapes(arch)["relbias.weight"] == (8, 3)


def test_sites_by_hand():
    llama = dataclasses.replace(tiny.arch("llama"), layers=1)  # d 24, 6 heads of 4 over 3 of keys, ff 40, vocab 50
    ends = {f"layers.0.{part}.{end}": (24,) for part in ("attn", "mlp") for end in ("in", "out", "res", "norm.out")}
    assert activation_sites(llama) == ends | {
        "embed.tokens.out": (24,), "embed.out": (24,), "layers.0": (24,), "layers.0.in": (24,), "layers.0.out": (24,),
        "layers.0.attn.q.out": (24,), "layers.0.attn.k.out": (12,), "layers.0.attn.v.out": (12,), "layers.0.attn.o.out": (24,),
        "layers.0.attn.kv": (3, 4), "layers.0.attn.heads": (24,), "layers.0.mlp.up.out": (40,), "layers.0.mlp.hidden": (40,),
        "layers.0.mlp.down.out": (24,), "layers.0.mlp.gate.out": (40,), "final.norm.out": (24,), "final.out": (24,),
        "head.in": (24,), "head.out": (50,),
    }  # fmt: skip


class Watched:
    """A run that writes down every site that the forward pass visits, every parameter it reads, and their shapes."""

    def __init__(self, model):
        self.run, self.sites, self.read = Adapted(model).run(), {}, set()
        at, around, base, held = self.run.at, self.run.around, self.run.base, self.run.held

        def seen_at(site, h, **facts):
            x = h[0] if isinstance(h, tuple) else h
            # keys and values are (b, g, t, e): their heads and the width of one
            self.sites[site] = (x.shape[1], x.shape[3]) if isinstance(h, tuple) else (x.shape[-1],)
            return at(site, h, **facts)

        def seen_around(site, f, h):
            self.sites[site] = (h.shape[-1],)
            return around(site, f, h)

        def read(name, of):
            W = of(name)
            self.read |= {name} if W is not None else set()
            return W

        self.run.at, self.run.around = seen_at, seen_around
        self.run.base, self.run.held = (lambda n: read(n, base)), (lambda n: read(n, held))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_visits_what_is_declared(family):
    model = tiny.model(family)
    watched = Watched(model)
    watched.run.forward(tiny.example(model))
    declared = activation_sites(model.arch)
    if not model.arch.pre_norm:  # its layers end in a norm: there is none behind them
        declared.pop("final.norm.out")
    assert {n: watched.sites.get(n) for n in declared} == declared
    beyond = {"embed.norm.out", "head.norm.out"} | {f"{m}.out" for m in ("embed.patch", "pooler", "score.dense")}
    assert watched.sites.keys() - declared.keys() <= beyond


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_reads_every_parameter(family):
    model = tiny.model(family)
    watched = Watched(model)
    watched.run.forward(tiny.example(model))
    assert watched.read == shapes(model.arch).keys() | tied(model.arch).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_name_is_declared_twice(family):
    every = list(parts(tiny.arch(family)))
    names = [n for part in every for n in (*part.params, *part.sites)]
    assert len(names) == len(set(names))


def test_kinds_by_hand():
    kinds = {
        "linear": (
            "layers.0.attn.q.weight",
            "embed.patch.weight",
            "head.weight",
            "score.dense.weight",
            "pooler.weight",
        ),
        "bias": ("layers.0.attn.q.bias", "layers.0.attn.norm.bias", "embed.patch.bias", "head.bias"),
        "norm": ("layers.0.mlp.norm.weight", "embed.norm.weight", "encoder.final.norm.weight", "head.norm.weight"),
        "embedding": ("embed.tokens.weight", "embed.positions.weight", "embed.types.weight"),
        "table": ("relbias.weight", "encoder.relbias.weight", "embed.cls"),
    }
    for kind, names in kinds.items():
        for name in names:
            assert kind_of(name, (1, 1, 4) if name == "embed.cls" else (4, 4)) == kind, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_is_a_site_that_is_the_table(family):
    model = tiny.model(family)
    follow = {HEAD: TABLE} if family in ("gpt2", "t5") else {}
    assert tied(model.arch) == follow
    every = sites(model)
    assert every.keys() == shapes(model.arch).keys() | activation_sites(model.arch).keys() | follow.keys()
    for head, table in follow.items():
        assert every[head].kind == "linear" and every[head].W is every[table].W
        assert (np.asarray(Adapted(model).run().param(head)) == np.asarray(model.params[table])).all()


def test_only_a_head_that_has_a_matrix_is_tied():
    assert tied(dataclasses.replace(GPT2, head="mlm")) and not tied(dataclasses.replace(GPT2, head="classify"))
    assert not tied(dataclasses.replace(GPT2, tied=False))


@pytest.mark.parametrize("folder", BASES, ids=lambda p: p.name)
def test_the_parts_of_a_layer_are_alike_in_every_layer(folder):
    arch = read_arch(json.loads((folder / "config.json").read_text()))
    for named in (shapes(arch), activation_sites(arch)):
        for n in range(arch.layers):
            own = {k.removeprefix(f"layers.{n}"): v for k, v in named.items() if f"{k}.".startswith(f"layers.{n}.")}
            first = {k.removeprefix("layers.0"): v for k, v in named.items() if f"{k}.".startswith("layers.0.")}
            assert own == first
