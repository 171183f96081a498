"""Lily in PEFT: what modules share is in the file once for each; who shares follows from target_modules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.arrays import held_for
from minipeft.errors import Bad
from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    EXCLUDED,
    INIT,
    LAYERED,
    NUMBER,
    TARGETS,
    WHOLE,
    Config,
    needed,
    whole,
)
from minipeft.interop.peft.names import Naming, targeted
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.method import method_class
from minipeft.model.base import Model
from minipeft.targets import sites

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | INIT | {
    "r": needed(COUNT, 32),
    "stride_A": needed(COUNT, 1),
    "num_B": needed(whole(2), 2),
    "scaling": needed(NUMBER, 1.0),
}  # fmt: skip
Shapes = Mapping[str, tuple[int, int]]


def _groups(targets: Any, modules: Mapping[str, str], shapes: Shapes) -> dict[str, str]:
    """PEFT's group of each site: the longest entry that its module's name ends with, and its shape."""
    entries = [targets] if isinstance(targets, str) else sorted(targets or (), key=len)
    plain = not isinstance(targets, str)
    named = {s: [t for t in entries if not plain or m.endswith(t)][-1:] for s, m in modules.items()}
    return {s: f"{''.join(t)} {shapes[s][0]}x{shapes[s][1]}" for s, t in named.items()}


def _sharing(at: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return held_for(next(iter(at.values())), at)


def _at_sites(config: Config, modules: Mapping[str, str], arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Config]:
    """The groups, where they are not the usual ones."""
    if not all({"A", "B"} <= own.keys() for own in arrays.values()):
        return {}  # which is told where all tensors are asked for
    groups = _groups(
        config.get("target_modules"), modules, {s: (a["B"].shape[-1], a["A"].shape[-1]) for s, a in arrays.items()}
    )
    cls: Any = method_class("lily")
    usual, theirs = ({s: cls(group=g) for s, g in own.items()} for own in (dict.fromkeys(groups, ""), groups))
    if not usual or _sharing(usual) == _sharing(theirs):
        return {}
    return {site: dict(group=g) for site, g in groups.items()}


def _end(modules: Iterable[str]) -> str:
    """The longest end after a dot that these names have in common."""
    turned = [m.split(".")[::-1] for m in modules]
    same = 0
    while all(len(t) > same and t[same] == turned[0][same] for t in turned):
        same += 1
    return ".".join(turned[0][:same][::-1])


def _named(model: Model, adapter: Adapter, modules: Mapping[str, str]) -> Config:
    """target_modules that give PEFT the same groups. Raises `Bad` where none do."""
    every, naming = sites(model), Naming(model, model.arch.head == "none")
    at: dict[str, Any] = {s: adapter.at[s] for s in modules}
    shapes: Any = {s: every[s].shape for s in at}
    groups_of: dict[str, list[str]] = {}
    for site, holder in _sharing(at)["B"].items():
        groups_of.setdefault(holder, []).append(modules[site])
    layers = sorted({int(n) for m in modules.values() for n in re.findall(r"\.(\d+)\.", m)[:1]})
    ends = dict(target_modules=sorted(map(_end, groups_of.values())))
    alone, names = dict(target_modules=sorted(modules.values())), "|".join(map(re.escape, sorted(modules.values())))
    left = sorted(n for n, s in naming.modules().items() if s not in at and n.endswith(tuple(ends["target_modules"])))
    tries: tuple[Config, ...] = (
        alone, ends, ends | dict(layers_to_transform=layers), dict(target_modules=names), ends | dict(exclude_modules=left)
    )  # fmt: skip
    for config in tries:
        if not all(config["target_modules"]) or targeted(config, naming) != set(at):
            continue
        groups = _groups(config["target_modules"], modules, shapes)
        if _sharing({s: dataclasses.replace(m, group=groups[s]) for s, m in at.items()}) == _sharing(at):
            return config
    raise Bad(
        "lily: no target_modules make PEFT share as this does; expected groups by a name's end, or of all of a shape"
    )


SPEC = Spec(
    "LILY",
    KNOWN,
    keys={
        "A": Key("lily_A.weight", size="(r, in)"),
        "B": Key("lily_B.weight", size="(experts r, out)"),
        "R": Key("lily_router.weight", size="(experts, r)"),
    },
    settings=dict(r="r", stride="stride_A", experts="num_B", s="scaling"),
    at_sites=_at_sites,
    named=_named,
    trials=(
        Trial("llama", dict(r=3, experts=3, s=1.5)),
        Trial("llama", dict(r=3, stride=2), dict(targets="q_proj down_proj"), name="stride"),
        Trial("llama", dict(r=3, stride=2, group="all"), dict(targets="q_proj o_proj"), name="one group"),
        Trial("t5", dict(r=2, stride=2, group="q"), dict(targets="attn.q.weight"), name="stacks"),
    ),
)  # fmt: skip
