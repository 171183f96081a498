"""Which modules a configuration of PEFT names: PEFT's rules, on the module names that PEFT saw.

These are not our targets (`minipeft.targets`). A list is compared with whole names and with their ends after a dot, a text is a
regular expression for the whole name, a pattern's key one for a name's end. The names are those of the model that the adapter
was trained on: the checkpoint's, or those of its bare model, which has no head and whose names lack a prefix.
Source: PEFT 0.21, tuners/tuners_utils.py (check_target_module_exists, _maybe_include_all_linear_layers) and utils/other.py
(get_pattern_key, _set_trainable).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.errors import Bad
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.model.names import Names
from minipeft.model.parts import HEAD, PATCHES
from minipeft.patterns import first_ending, matches, matching
from minipeft.run import is_layer
from minipeft.targets import sites

Config = Mapping[str, Any]
HERE = "adapter_config.json"
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of torch, around a module
CLASSIFIERS = ("classifier", "score")  # which PEFT saves whole for these tasks, named or not
CLASSIFYING = ("SEQ_CLS", "TOKEN_CLS")
STACKS = ("encoder.embed_tokens", "decoder.embed_tokens")  # T5's stacks look up tables of their own, tied to `shared`


def unwrapped(name: str) -> str:
    """A module's name without the wrappers that torch puts around modules."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def prefix_of(arch: Arch) -> str:
    """What the family's module names begin with, and those of its bare model do not."""
    from minipeft.checkpoints import _family

    return getattr(_family(arch.family), "PREFIX", {}).get(arch.family, "")


@dataclass(frozen=True)
class Naming:
    """The names that an adapter has for the modules of a base."""

    model: Model
    bare: bool  # those of the bare model
    older: bool = False  # those that a former version of transformers had, where files keep them

    @classmethod
    def of(cls, model: Model, keys: Iterable[str]) -> Naming:
        """The naming in which these names of modules, and of what is in them, were written; the base's own if they do not tell."""
        prefix, keys = prefix_of(model.arch), list(keys)

        def former(name: str) -> bool:
            parts = name.split(".")
            modules = [start + ".".join(parts[:n]) for n in range(1, len(parts) + 1) for start in ("", prefix)]
            return any((o := model.names.ours(m)) and m not in (o, model.names.theirs(o)) for m in modules)

        def known(name: str) -> bool:
            parts = name.split(".")
            return any(model.names.ours(".".join(parts[:n])) is not None for n in range(1, len(parts) + 1))

        tell = [k.startswith(prefix) for k in keys if prefix and (k.startswith(prefix) or known(prefix + k))]
        return cls(model, not all(tell) if tell else model.arch.head == "none", any(map(former, keys)))

    @property
    def _names(self) -> list[Names]:
        """The names of this head, and those of the body alone, which may have a pooler that this head has not."""
        from minipeft.checkpoints import family_names

        return [self.model.names, family_names(dataclasses.replace(self.model.arch, head="none"))]

    def ours(self, module: str) -> str | None:
        """Our name of their module, None if this family has none."""
        prefix = prefix_of(self.model.arch)
        own, body = (names.ours(prefix + module) or names.ours(module) for names in self._names)
        return own or (body if body == "pooler" else None)

    def theirs(self, module: str) -> str:
        """Their name of our module. Raises `Bad` if it has none."""
        named = Names.stored if self.older else Names.theirs
        found = next((f for names in self._names if (f := named(names, module))), None)
        if found is None:
            raise Bad(f"{module} has no name in a {self.model.arch.family} checkpoint")
        return found.removeprefix(prefix_of(self.model.arch)) if self.bare else found

    def parameter(self, site: str) -> str | None:
        """Their name of our parameter, None for what has none there."""
        module, _, leaf = site.rpartition(".")
        if self.model.names.theirs(site) is not None:
            return self.theirs(site)
        return (
            f"{self.theirs(module)}.{leaf}" if self.model.names.theirs(module) and leaf in ("weight", "bias") else None
        )

    def has(self, name: str) -> bool:
        """Whether a parameter of ours is in the model that the adapter was trained on: a bare one has no head."""
        names = self.model.names
        theirs = names.theirs(name) or names.theirs(name.rpartition(".")[0]) or ""
        return not self.bare or theirs.startswith(prefix_of(self.model.arch))

    def is_unread(self, parameter: str) -> bool:
        """Whether their parameter is one that files of this family have and no output here depends on."""
        from minipeft.checkpoints import _family

        known = getattr(_family(self.model.arch.family), "UNREAD", ())
        return any(
            f"{start}{parameter}.".startswith(f"{u}.") for u in known for start in ("", prefix_of(self.model.arch))
        )

    def layer(self, site: str) -> str:
        """Their name of our layer: up to its number."""
        return re.sub(r"(\.\d+)\..*", r"\1", self.theirs(f"{site}.attn.norm"))

    def layers(self) -> dict[str, str]:
        """{their name: our site} of every layer, in the base's order."""
        return {self.layer(site): site for site in sites(self.model) if is_layer(site)}

    def modules(self) -> dict[str, str]:
        """{their name: our site} of every linear and table that PEFT could adapt, in the base's order."""
        out = {}
        for name, site in sites(self.model).items():
            theirs = self.model.names.theirs(name.removesuffix(".weight"))
            if site.kind not in ("linear", "embedding") or theirs is None:
                continue
            if not self.bare or theirs.startswith(prefix_of(self.model.arch)):
                out[self.theirs(name.removesuffix(".weight"))] = name
        return out


def targeted(config: Config, naming: Naming, layers: bool = False) -> set[str] | None:
    """Our sites that target_modules names, less what is excluded or saved whole; None if it names none at all.

    They are linears and tables, or whole `layers`.
    """
    targets, without = config.get("target_modules"), config.get("exclude_modules") or ()
    if not targets:
        return None
    modules = naming.layers() if layers else naming.modules()
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = _all_linear(config, naming, modules)

    left = _named(without, modules, "exclude_modules") | _saved(config, modules)
    wanted = _named(targets, modules, "target_modules")
    if not isinstance(targets, str):
        wanted &= set(map(unwrapped, targets)) | _in_layers(config, modules)
    return {site for name, site in modules.items() if name in wanted - left}


def _all_linear(config: Config, naming: Naming, modules: Mapping[str, str]) -> list[str]:
    """Every linear but the output matrix, or a classifier of sequences that is one linear."""
    every = sites(naming.model)
    heads = CLASSIFIERS if config.get("task_type") == "SEQ_CLS" else ()
    left = (HEAD, PATCHES)
    return [n for n, s in modules.items() if every[s].kind == "linear" and s not in left and n not in heads]


def _named(wanted: str | Iterable[str], names: Iterable[str], what: str) -> set[str]:
    """The names that a regular expression is all of, or that one of a list is or ends after a dot."""
    if isinstance(wanted, str):
        return matching(wanted, names, f"{HERE}: {what}:")
    given = set(map(unwrapped, wanted))
    return {name for name in names if not given.isdisjoint(_ends(name))}


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[n:]) for n in range(len(parts))]


def _in_layers(config: Config, names: Iterable[str]) -> set[str]:
    """The names whose first number, or the first after a layers_pattern, is in layers_to_transform."""
    only = config.get("layers_to_transform")
    if only is None or only == []:
        return set(names)
    layers = {only} if isinstance(only, int) else set(only)
    patterns = config.get("layers_pattern") or ()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    starts = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found: dict[str, str | None] = {}
    for one in matches(starts, names, f"{HERE}: layers_pattern:", "match"):
        found = {**one, **found}
    if strange := [n for n in found.values() if n is None or not n.isdecimal()]:
        raise Bad(f"{HERE}: layers_pattern: expected no group of its own, found one that is {strange[0]!r}")
    return {name for name, n in found.items() if int(str(n)) in layers}


def _whole(config: Config) -> list[str]:
    """The modules that are saved whole, those of a classifying task among them."""
    own = CLASSIFIERS if config.get("task_type") in CLASSIFYING else ()
    return list(dict.fromkeys([*map(unwrapped, config.get("modules_to_save") or ()), *own]))


def _saved(config: Config, names: Iterable[str]) -> set[str]:
    """The modules that are, or are in, one that modules_to_save names: they are not adapted."""
    plain = {m for m in _whole(config) if m.isidentifier()}  # a part of a name between dots; others are patterns
    own = [rf"(?:^|.*\.){m}(?:$|\..*)" for m in _whole(config) if m not in plain]
    found = matches(own, names, f"{HERE}: modules_to_save:", "match")
    return {n for n in names if not plain.isdisjoint(n.split("."))}.union(*found)


def is_whole(config: Config, name: str) -> bool:
    """Whether a parameter is in a module that is saved whole. PEFT asks here for the end of a name, dot or no dot."""
    parts = name.split(".")
    above = [".".join(parts[:n]) for n in range(1, len(parts))]
    return any(module.endswith(m) for module in above for m in _whole(config))


def by_pattern(config: Config, which: str, modules: Iterable[str], default: Any) -> dict[str, Any]:
    """rank_pattern, alpha_pattern or their like for each module: that of the first key that ends its name, as a regular

    expression; else the default.
    """
    given = config.get(which) or {}
    modules = tuple(modules)
    first = first_ending(list(given), modules, f"{HERE}: {which}:")
    return {m: given[first[m]] if m in first else default for m in modules}
