"""Attaching a method to a model: where it goes, what it measures first, the arrays it begins with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minipeft.adapted import SHARED, Adapted, Adapter
from minipeft.arrays import declared, needs
from minipeft.drawing import Facts, demand, draw, draw_all
from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.engine.weight import quantised
from minipeft.errors import Bad, near
from minipeft.method import Method, Site, is_weight, method_class, refuse_unfit, ties, whole_method
from minipeft.model.base import Model
from minipeft.model.batch import IGNORE, Batch
from minipeft.model.parts import tied
from minipeft.targets import inside, named, select, sites


def attach(
    model: Model | Adapted,
    method: Method | str,
    *,
    name: str = "default",
    targets: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    layers: Iterable[int] | None = None,
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
    train_whole: Sequence[str] = (),
    bias: str = "none",
    tie: bool = False,
    beside: Sequence[Method] = (),
    data: Sequence[Batch] = (),
    seed: int = 0,
    **settings: Any,
) -> Adapted:
    """Attach a method to a model and draw its initial arrays. The base is never written to.

    `settings` are the method's, where they are not as it has them, but for such as have a name of these arguments.
    `targets`, `exclude` and `layers` say where (see `select` and `named`; default: the method's own; (): nowhere, as an adapter may be
    that only brings what is beside it). `patterns` maps a target to
    fields that differ there, `{"layers.0.*": {"r": 4}}`, the first that matches counting. `train_whole` names modules or
    parameters trained in full instead, `bias` "none", "adapted" (of the targeted linears) or "all"; with `tie` the
    change of the token table is that of a head tied to it too, where a method leaves it as it was; `beside` are further
    methods of the same adapter, each at its own targets. `data` are batches for methods that measure inputs or gradients
    first. `seed` fixes the initial values.
    Raises `Bad` where something matches nothing, is unknown, or does not fit.
    """
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    model = adapted.model
    if isinstance(method, str):
        method = method_class(method)(**settings)
    elif settings:  # else it is the same one, with what is given to it
        method = dataclasses.replace(method, **settings)
    if any(a.name == name for a in adapted.adapters):
        raise Bad(f"an adapter named {name!r} is attached already; give this one another name")
    if not re.fullmatch(r"[\w.-]+", name):
        raise Bad(f"adapter name {name!r}: expected letters, digits, '_', '-' and '.'")
    layers = None if layers is None else tuple(layers)
    chosen = []
    if targets != ():
        chosen = select(model, method.targets if targets is None else targets, exclude=exclude, layers=layers)
    differ = {p: named(model, sites(model), p) for p in patterns or {}}
    for p, meant in differ.items():
        if not any(site.name in meant for site in chosen):
            raise Bad(f"pattern {p!r} matches none of the targets{near(p, [s.name for s in chosen])}")
    whole = {s.name for _, where in _whole(model, [], train_whole, "none") for s in where}
    chosen = [s for s in chosen if s.name not in whole]  # trained whole is trained whole
    if tie and not (is_weight(method) and {s.name for s in chosen} & set(tied(model.arch).values())):
        raise Bad("tie: expected a change of the token table, and a head that is tied to it")
    if tie or ties(method):  # what is tied to a target follows it
        names = {s.name for s in chosen}
        chosen = [s for s in chosen if tied(model.arch).get(s.name) not in names]
    at: dict[str, Method] = {}
    for site in chosen:
        fits = [fields for p, fields in (patterns or {}).items() if site.name in differ[p]]
        try:
            at[site.name] = dataclasses.replace(method, **fits[0]) if fits and fits[0] else method
        except TypeError as why:
            raise Bad(f"patterns for {site.name}: {why}") from None
        refuse_unfit(at[site.name], site)
    adapted = holding(adapted, at)
    model = adapted.model
    if needs(method):
        if not data:
            raise Bad(
                f"{method.name} measures {' and '.join(needs(method))} before it starts; give `data`, a list of batches"
            )
        chosen = measure(adapted, chosen, data, needs(method))
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    trained: set[str] = set()

    def take(site: str, found: Mapping[str, tuple[Any, bool]]) -> None:
        for key, (a, is_trained) in found.items():
            plain = np.asarray(to_host(a))
            numbers = plain.dtype.kind == "f" or is_trained  # what is stored may be an index
            placed = to_device(plain.astype(model.dtype) if numbers else plain)
            arrays[f"{site}:{key}"] = placed if is_trained else read_only(placed)
            trained.update({f"{site}:{key}"} if is_trained else ())

    if chosen:
        demand(first := at[chosen[0].name], Facts(first, chosen[0], rng, chosen))
        take(SHARED, draw(Facts(method, chosen[0], rng, chosen), shared=True))
    drawn = draw_all(method, chosen, rng, at=dict(at))
    for site in chosen:
        if site.name in drawn:
            at[site.name], found = drawn[site.name]
            take(site.name, found)
        else:
            del at[site.name]  # a start gave this site up
    others = [(m, select(model, m.targets)) for m in beside] + _whole(model, chosen, train_whole, bias)
    for extra, where in others:
        for site in where:
            if site.name in at:
                raise Bad(
                    f"{site.name} is targeted by {method.name} and by {extra.name}; one adapter has one method at a site"
                )
            at[site.name] = extra
            take(site.name, draw(Facts(extra, site, rng)))
    options = dict(train_whole=list(train_whole), bias=bias) | (dict(tied=True) if tie else {})
    adapter = Adapter(name, method, at, arrays, frozenset(trained), options)
    return dataclasses.replace(adapted, adapters=(*adapted.adapters, adapter))


def holding(adapted: Adapted, at: Mapping[str, Method]) -> Adapted:
    """The same over the base as the methods at these sites hold it: quantised, perhaps.

    What is held in another form already stays so, as does a tied head, which is no parameter of its own.
    """
    every, held = sites(adapted.model), {}
    for name, method in at.items():
        made, W = declared(type(method)).held, adapted.model.params.get(name)
        if made is None or W is None or quantised(W):
            continue
        if (other := made.make(method, Facts(method, every[name]))) is not None:
            held[name] = other
    if not held:
        return adapted
    return dataclasses.replace(
        adapted, model=dataclasses.replace(adapted.model, params={**adapted.model.params, **held})
    )


def _whole(model: Model, chosen: list[Site], train_whole: Sequence[str], bias: str) -> list[tuple[Method, list[Site]]]:
    """Modules trained whole and biases, as full fine-tuning of just those parameters."""
    full = whole_method()
    out = []
    every = sites(model)
    for target in train_whole:
        meant = inside(model, every, target)
        found = [s for s in every.values() if s.name in meant]
        if not found:
            known = {n for s in every for n in (model.names.theirs(s.rpartition(".")[0]) or "").split(".")}
            raise Bad(f"train_whole {target!r} matches no module{near(target, known | every.keys())}")
        out.append((full, found))
    if bias not in ("none", "adapted", "all"):
        raise Bad(f"bias {bias!r}: expected none, adapted or all{near(bias, ('none', 'adapted', 'all'))}")
    if bias != "none":
        whole = {s.name for _, where in out for s in where}
        targeted = {s.name.removesuffix(".weight") + ".bias" for s in chosen}
        found = [
            s
            for s in every.values()
            if s.kind == "bias" and s.name not in whole and (bias == "all" or s.name in targeted)
        ]
        out.append((full, found))
    return out


def measure(adapted: Adapted, where: list[Site], data: Sequence[Batch], needs: tuple[str, ...]) -> list[Site]:
    """The sites with what a method asked to see on data: inputs of their linears, mean gradients of their weights."""
    seen: dict[str, list] = {s.name: [] for s in where}
    labelled: dict[str, list] = {s.name: [] for s in where}
    grads: dict[str, Any] = {}
    for batch in data:
        if "inputs" in needs:
            run = adapted.run()
            run.watch = seen
            run.forward(batch)
            have = _labelled(adapted.model, batch)
            for name in seen:
                for X in seen[name][len(labelled[name]) :]:
                    labelled[name].append(have if have is not None and len(have) == len(X) else np.ones(len(X), bool))
        if "grads" in needs:
            full = whole_method()
            probe = attach(Adapted(adapted.model), full, name="probe", targets=[s.name for s in where])
            _, found = probe.value_and_grad(batch)
            for key, g in found.items():
                site = key.removeprefix("probe/").rpartition(":")[0]
                grads[site] = grads.get(site, 0) + to_host(g) / len(data)
    return [
        dataclasses.replace(s, inputs=seen[s.name] or None, labelled=labelled[s.name] or None, grad=grads.get(s.name))
        for s in where
    ]


def _labelled(model: Model, batch: Batch) -> np.ndarray | None:
    """Which of a batch's real tokens have a label, one after the other; None where labels are of something else."""
    if batch.labels is None or batch.input_ids is None or model.arch.encoder_layers:
        return None
    labels, ids = batch.host("labels"), batch.host("input_ids")
    if labels.shape != ids.shape:
        return None
    return (labels != IGNORE)[batch.host("attention_mask") == 1 if batch.attention_mask is not None else ids == ids]
