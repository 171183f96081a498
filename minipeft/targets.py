"""Sites, and which of them a target names.

A name is meant whole where it can be: only a target that is no whole name is taken as the end of one. So on an
encoder-decoder `layers.0.attn.q.weight` is the decoder's alone, and `attn.q.weight` is in both stacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from minipeft.errors import Bad, Unfit, near
from minipeft.limits import PATTERNS
from minipeft.method import Site
from minipeft.model.base import Model
from minipeft.model.parts import activation_sites, kind_of, tied
from minipeft.patterns import matching, refuse_long


def sites(model: Model) -> dict[str, Site]:
    """Every site of a model: its parameters by name, and the activations."""
    arch, dtype = model.arch, model.dtype
    found = {
        name: Site(name, tuple(W.shape), kind_of(name, tuple(W.shape)), arch, W, dtype, params=model.params)
        for name, W in model.params.items()
    }
    for name in tied(arch).keys() - found.keys():
        W = model.params[tied(arch)[name]]
        shape = tuple(W.shape)
        found[name] = Site(name, shape, kind_of(name, shape), arch, W, dtype, params=model.params)
    for name, shape in activation_sites(arch).items():
        found[name] = Site(name, shape, "activation", arch, None, dtype, params=model.params)
    return found


def _modules(model: Model, name: str) -> tuple[str, ...]:
    """The names of the module that a parameter is in: ours, and the checkpoint's if it has any."""
    ours = name.rpartition(".")[0]
    return ours, *model.names.all(ours)


def named(model: Model, every: Mapping[str, Site], target: str) -> set[str]:
    """The names of the sites that a target means, out of `every` site of the model; perhaps none.

    A target is a glob over our names, matching the whole name or its end after a dot (`attn.q.weight`, `layers.0.*`); or a
    module's name, ours or the checkpoint's, whole or its end after a dot (`q_proj`); or `all-linear`: every linear but
    the output head; or `re:` and a regular expression that must match the whole module name, theirs or ours. What is a
    whole name is not looked for as an end. Raises `Bad` for what is no regular expression, or takes too long.
    """
    if target in every:
        return {target}
    modules = {
        name: _modules(model, name)
        for name, site in every.items()
        if name.endswith(".weight") and site.kind in ("linear", "embedding", "norm", "table")
    }
    if target.lower() == "all-linear":
        heads = ("head", "score", "pooler", "embed.")
        return {n for n in modules if every[n].kind == "linear" and not n.startswith(heads)}
    if target.startswith("re:"):
        known = {n: (n, *modules.get(n, ())) for n in every}
        meant = matching(target[3:], dict.fromkeys(x for names in known.values() for x in names), "target", target)
        return {n for n in every if not meant.isdisjoint(known[n])}
    refuse_long(target, "target")
    whole = {n for n in every if fnmatchcase(n, target) or target in modules.get(n, ())}
    if whole:
        return whole
    end = f".{target}"
    return {n for n in every if fnmatchcase(n, f"*{end}") or any(x.endswith(end) for x in modules.get(n, ()))}


def inside(model: Model, every: Mapping[str, Site], target: str) -> set[str]:
    """The names of the parameters in the modules that a target means: a module's name, ours or the checkpoint's, whole or a

    part of it between dots (`classifier`, `layers.0`); or a glob over our names of parameters. What is a whole name is
    not looked for as a part.
    """
    refuse_long(target, "train_whole")
    own = {n: _modules(model, n) for n, site in every.items() if site.kind != "activation"}
    whole = {
        n
        for n, modules in own.items()
        if fnmatchcase(n, target) or any(f"{m}.".startswith(f"{target}.") for m in modules)
    }
    if whole:
        return whole
    return {
        n
        for n, modules in own.items()
        if fnmatchcase(n, f"*.{target}") or any(f".{target}." in f".{m}." for m in modules)
    }


def matches(model: Model, site: Site, target: str) -> bool:
    """Whether a target names a site (see `named`)."""
    return site.name in named(model, sites(model), target)


def select(
    model: Model,
    targets: str | Sequence[str],
    *,
    exclude: str | Sequence[str] = (),
    layers: Iterable[int] | None = None,
) -> list[Site]:
    """The sites that `targets` name (see `named`), in model order; alternatives separated by "|".

    Raises `Unfit`, with near misses, if nothing matches.
    """
    every = sites(model)
    wanted = None if layers is None else set(layers)

    def split(text: str | Sequence[str]) -> list[str]:
        if not isinstance(text, str):
            return list(text)
        return [text] if text.startswith("re:") else text.split()

    words = [p for option in ([targets] if isinstance(targets, str) else targets) for p in split(option)] + split(
        exclude
    )
    if (many := sum(p not in every for p in words)) > PATTERNS:
        raise Bad(f"targets: expected at most {PATTERNS:,} that are no whole names, found {many:,}")
    left = set().union(*(named(model, every, p) for p in split(exclude)))

    def chosen(patterns: list[str]) -> list[Site]:
        meant = set().union(*(named(model, every, p) for p in patterns)) - left
        return [s for s in every.values() if s.name in meant and (wanted is None or s.layer in wanted)]

    is_regex = isinstance(targets, str) and targets.startswith("re:")
    options = targets.split("|") if isinstance(targets, str) and not is_regex else [targets]
    for option in options:
        if found := chosen(split(option)):
            return found
    patterns = [p for option in options for p in split(option)]
    known = {n.rpartition(".")[2] for s in every.values() if (n := model.names.theirs(s.name.rpartition(".")[0]))}
    known |= {re.sub(r".*layers\.\d+\.", "", name) for name in every}
    hints = "".join(near(p, known) for p in patterns[:1])
    limit = f" in layers {sorted(wanted)}" if wanted is not None else ""
    if patterns and all(p.endswith("bias") for p in patterns) and not any(s.kind == "bias" for s in every.values()):
        hints = ": it has no biases"
    raise Unfit(f"targets {' '.join(patterns)!r} match nothing in this {model.arch.family} model{limit}{hints}")
