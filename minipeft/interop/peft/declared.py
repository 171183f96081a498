"""What a configuration of PEFT declares and its file must therefore hold: modules saved whole, biases, trained tokens, layers.

PEFT loads a file without them, some with a warning: what was trained is then replaced by what the base has. Here it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from minipeft.errors import Bad, near
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.keys import HEAD, TABLE, Parts, body_of
from minipeft.interop.peft.names import STACKS, Naming
from minipeft.interop.peft.spec import Spec
from minipeft.method import Site
from minipeft.model.arch import Arch
from minipeft.targets import sites

HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def refuse_absent(
    where: Any, spec: Spec, config: Config, naming: Naming, found: Mapping[str, Mapping[str, Any]], parts: Parts
) -> None:
    """Raises `Bad` for the first thing that a configuration declares and its file has not.

    `found` are the method's arrays by our site, `parts` all that the file has.
    """
    every = sites(naming.model)
    own = {s: key for s in every if every[s].kind != "activation" and naming.has(s) and (key := naming.parameter(s))}
    whole = {*parts.whole, *parts.idle_sites(naming, "whole"), *([HEAD] if parts.head is not None else [])}
    lost = [
        *_modules(spec, config, own, whole, parts.spare, naming.model.arch),
        *_biases(config, own, found, whole),
        *_tokens(config, every, own, parts.rows),
        *spec.absent(config, every, own, found),
    ]
    lost = list(dict.fromkeys(lost))
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise Bad(f"{where}: adapter_model.safetensors lacks {lost[0]}{more}")


def _ends(module: str, name: str) -> bool:
    """As PEFT asks: the plain end of the module's name, or of a module around it."""
    parts = module.split(".")
    return any(".".join(parts[: n + 1]).endswith(name) for n in range(len(parts)))


def _modules(
    spec: Spec, config: Config, own: Mapping[str, str], whole: Collection[str], spare: Collection[str], arch: Arch
) -> Iterator[str]:
    """modules_to_save, and the classifier that a task brings for every kind that can save modules."""
    if "modules_to_save" not in spec.known:
        return
    task = HEADS.get(config.get("task_type") or "", ())
    heads = []
    for name in dict.fromkeys([*(config.get("modules_to_save") or ()), *task]):
        inside = {site: key for site, key in own.items() if _ends(key.rpartition(".")[0], name)}
        if arch.encoder_layers and any(_ends(stack, name) for stack in STACKS):
            inside[TABLE] = own[TABLE]  # each stack has the table by a name of its own
        heads += [*inside] if name in task else []
        elsewhere = any(_ends(body_of(key, spec.root).rpartition(".")[0], name) for key in spare)
        if not inside and not elsewhere and name not in ("classifier", "score", "qa_outputs"):
            known = {part for key in own.values() for part in key.split(".")[:-1]}
            yield f"the module {name!r} of modules_to_save, and so does this base{near(name, known)}"
        yield from (f"{key}, of the modules that are saved whole" for site, key in inside.items() if site not in whole)
    if task and not heads:
        yield f"the {' or '.join(task)} that task_type {config['task_type']!r} declares, and so does this base"


def _biases(config: Config, own: Mapping[str, str], found: Collection[str], whole: Collection[str]) -> Iterator[str]:
    """All biases of the base, or those of the targeted modules."""
    option = config.get("bias") or "none"
    if option == "none":
        return
    near_by = {s.removesuffix("weight") + "bias" for s in found if s.endswith(".weight")}
    for site, key in own.items():
        if site.endswith(".bias") and site not in whole and (option == "all" or site in near_by):
            yield f"{key}, of bias={option!r}"


def _tokens(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], tokens: Collection[str]
) -> Iterator[str]:
    """The trained rows of each table that trainable_token_indices names; a list means the input embeddings."""
    given = config.get("trainable_token_indices")
    if given is None:
        return
    tables = {site: key.rpartition(".")[0] for site, key in own.items() if every[site].kind in ("embedding", "linear")}
    tied = every[TABLE].arch.shares_table
    for name in given if isinstance(given, dict) else [tables[TABLE]]:
        named = [site for site, module in tables.items() if module.endswith(name)] or [TABLE]
        for site in named:  # a tied head may have the table's rows, and so has what goes by a name that is none of ours
            if site not in tokens and not (tied and site == HEAD and TABLE in tokens):
                yield f"the rows of {name!r} that trainable_token_indices declares"
