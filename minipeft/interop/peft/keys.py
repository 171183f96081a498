"""What the tensors of a PEFT adapter are to us, by their keys. In which order a file has them does not matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints import our_layout
from minipeft.engine.backend import to_host
from minipeft.engine.weight import widened
from minipeft.errors import Bad, near
from minipeft.interop.peft.names import STACKS, Config, Naming, is_whole, unwrapped
from minipeft.interop.peft.spec import ROOT, Key, Spec, shared_to_ours
from minipeft.model.base import Model
from minipeft.targets import sites

TABLE, HEAD = "embed.tokens.weight", "head.weight"
WRAPPER = re.compile(r"\.(token_adapter\.base_layer|original_module|base_layer|modules_to_save)(?=\.)")  # PEFT's
SAVED = re.compile(r"\.(modules_to_save(\.[^.]+)?|original_module)\.(?=[^.]+$)")  # around a module of what sites share
TOKENS_KEY = "token_adapter.trainable_tokens_delta"
OUTSIDE = "word_embeddings"  # where a prompt's model has the base's table beside the base; what is trained within is not looked up
WHOLE, TOKENS = "full", "trainable_tokens"  # our methods of what PEFT trains beside another


@dataclass
class Parts:
    """The tensors of a file, by what they are to us."""

    at: dict[str, dict[str, Any]] = field(default_factory=dict)  # our site -> our arrays there
    shared: dict[str, Any] = field(default_factory=dict)  # arrays of no one site
    whole: dict[str, Any] = field(default_factory=dict)  # parameters that were trained whole
    head: Any = None  # the copy of a token table trained whole that a tied head has
    tied: bool = False  # whether a tied head has the method's arrays at the table
    rows: dict[str, Any] = field(default_factory=dict)  # our site -> trained tokens beside another method
    base: dict[str, Any] = field(default_factory=dict)  # the base's own parameters, as they were in training
    spare: dict[str, Any] = field(default_factory=dict)  # their key -> what this model has no use for
    idle: dict[str, str] = field(default_factory=dict)  # their module of that -> "whole" or "adapted"

    def idle_sites(self, naming: Naming, *kinds: str) -> set[str]:
        """Our sites of what this model has no use for, where they have a name of ours."""
        return {f"{ours}.weight" for m, kind in self.idle.items() if kind in kinds and (ours := naming.ours(m))}


def body_of(key: str, root: str = ROOT) -> str:
    """A key without the root and without what torch puts around modules."""
    key = unwrapped(key)
    return key.removeprefix(root) if key.startswith(root) else key.removeprefix("base_model.")


def _split(body: str, suffixes: Iterable[str]) -> tuple[str, str] | None:
    """A key's module and which of the suffixes ends it; after a suffix's first part an adapter's name may stand."""
    body = re.sub(r"(\.lora_magnitude_vector(?:\.[^.]+)?)\.weight$", r"\1", body)
    for suffix in sorted(suffixes, key=len, reverse=True):
        first, dot, rest = suffix.partition(".")
        found = re.fullmatch(rf"(.*)\.{re.escape(first)}(\.[^.]+)?{re.escape(dot + rest)}", body)
        if found:
            return found[1], suffix
    return None


def plain_body(body: str) -> tuple[str, str]:
    """A parameter's name without PEFT's wrappers around its module, and which the outermost was, "" for none."""
    found = WRAPPER.search(body)
    return WRAPPER.sub("", body), found[1] if found else ""


def _param(naming: Naming, body: str) -> str | None:
    """Our parameter of their name, None if this family has none."""
    if (bare := naming.ours(body)) is not None:
        return bare
    module, _, leaf = body.rpartition(".")
    ours = naming.ours(module)
    return None if ours is None else f"{ours}.{leaf}"


def param_of(naming: Naming, body: str) -> tuple[str | None, str]:
    """Our parameter of a key that PEFT may have wrapped, and how; the adapter's name may stand behind modules_to_save."""
    plain, mark = plain_body(body)
    ours = _param(naming, plain)
    if ours is None and mark == "modules_to_save":
        ours = _param(naming, re.sub(r"\.modules_to_save\.[^.]+\.", ".", body))
    return ours, mark


def module_of(naming: Naming, spec: Spec, site: str) -> str:
    """Their module of our site."""
    if spec.on_blocks:
        return naming.theirs(site.removesuffix("heads") + "o").rpartition(".")[0]
    if spec.on_layers:
        return naming.layer(site)
    return naming.theirs(site.removesuffix(".weight"))


def _our_site(naming: Naming, spec: Spec, theirs: str, every: Iterable[str]) -> str | None:
    """Our site of their module, None if there is none."""
    if spec.on_blocks:
        return next((s for s in every if s.endswith("attn.heads") and module_of(naming, spec, s) == theirs), None)
    if spec.on_layers:
        return naming.layers().get(theirs)
    ours = naming.ours(theirs)
    return None if ours is None else f"{ours}.weight"


def plain_key(model: Model, key: str, root: str = ROOT) -> str:
    """The one key of what PEFT stores under several: in the base's own names, without the wrapper of a module that is

    trained whole, and with the token table's name for trained tokens of what shares it.
    """
    body = body_of(key, root)
    start = unwrapped(key).removesuffix(body)
    own = Naming(model, model.arch.head == "none")
    if ".modules_to_save." in body:
        body = body.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    parts = body.split(".")
    for n in range(len(parts), 0, -1):
        ours = own.ours(".".join(parts[:n]))
        if ours is None:
            continue
        rest = parts[n:]
        if rest[-1:] == ["trainable_tokens_delta"] and ours == "head" and model.arch.shares_table:
            ours = "embed.tokens"
        return start + ".".join([own.theirs(ours), *rest])
    if parts[-1] == "trainable_tokens_delta" and ".".join(parts[:2]) in STACKS:
        return start + ".".join([own.theirs("embed.tokens"), *parts[2:]])
    return start + body


def parameter_of(model: Model, key: str, root: str = ROOT) -> str | None:
    """Our parameter of a key, None for what is none of the base's: PEFT stores some under two names, and wrapped."""
    return param_of(Naming(model, model.arch.head == "none"), body_of(key, root))[0]


def _root(spec: Spec, key: Key) -> str:
    """The keys of what sites share, as a regular expression: a number or an adapter's name may follow, modules be named before."""
    start, dot, end = key.suffix.rpartition(".")
    modules = r"(.*\.)?" if spec.copied else ""
    return re.escape(start + dot) + modules + re.escape(end) + (r"\.\d+" if key.numbered else r"(\.[^.]+)?")


def sorted_keys(naming: Naming, spec: Spec, config: Config, tensors: Mapping[str, np.ndarray], folder: Path) -> Parts:
    """The tensors of a file by what they are. Raises `Bad` for keys that are none of this base and method, for two of the

    same meaning, and for what PEFT computes and we do not.
    """
    model = naming.model
    every = sites(model)
    parts = Parts()
    suffixes = {k.suffix for k in spec.every_key} | {TOKENS_KEY}
    meant: dict[tuple[str, str], str] = {}  # what a key means -> the key
    stacks: list[tuple[str, str, Any]] = []
    strange = []
    roots: dict[str, Any] = {}
    copied = _copied(naming, config, [body_of(key, spec.root) for key in tensors])
    left_out = spec.left_out(dict(config))
    empty = tuple(f".{k.suffix}" for k in spec.every_key if k.empty)

    def once(key: str, *what: str) -> None:
        other = meant.setdefault(what, key)  # type: ignore[arg-type]
        if other != key and not _equal(tensors[other], tensors[key]):  # some are stored twice
            raise Bad(f"{folder}: {other} and {key} are the same tensor; expected one adapter in a file")

    for key in sorted(tensors):
        a = tensors[key]
        if not a.ndim or not (a.size or key.endswith(empty)):
            raise Bad(f"{folder}: {key}: expected numbers along one axis or more, found shape {tuple(a.shape)}")
        plain = SAVED.sub(".", unwrapped(key))
        shared = [n for n, k in spec.root_keys.items() if re.fullmatch(_root(spec, k), plain)]
        if plain.startswith(spec.idle) or (shared and ".original_module." in key):
            parts.spare[key] = a
            continue
        if shared:
            name = shared[0]
            once(key, "", name, *re.findall(r"\d+$", key) if spec.root_keys[name].numbered else ())
            roots[plain if spec.root_keys[name].numbered else spec.root_keys[name].suffix] = a
            continue
        body = body_of(key, spec.root)
        body = re.sub(r"(\.\d+)\.base_layer\.", r"\1.", body, count=1) if spec.on_layers else body  # of a layer
        if found := _split(body, suffixes):
            theirs, suffix = found[0].removesuffix(".base_layer"), found[1]  # of a layer that is adapted too
            site = _our_site(naming, spec, theirs, every)
            if site is None and theirs in STACKS and model.arch.encoder_layers:
                stacks.append((key, suffix, a))
            elif _is_idle(naming, f"{theirs}.weight", site, suffix) or (
                left_out and site in every and suffix != TOKENS_KEY
            ):
                parts.spare[key] = a
                parts.idle[theirs] = "adapted"
            elif site is None or site not in every:
                known = [n for s in every if (n := model.names.theirs(s.rpartition(".")[0]))]
                raise Bad(
                    f"{folder}: {key} names a module this {model.arch.family} base has not: it belongs to another base{near(theirs, known, 1)}"
                )
            elif suffix == TOKENS_KEY:
                once(key, site, TOKENS_KEY)
                parts.rows[site] = a
            else:
                once(key, site, suffix)
                held = False
                for name, k in spec.keys_of(every[site]).items():
                    if k.suffix == suffix and not k.fits(a, model.arch):
                        shape = ", ".join("n" if n is None else str(n) for n in k.expects(model.arch) or ())
                        raise Bad(f"{folder}: {key}: expected shape ({shape}), found {tuple(a.shape)}")
                    if k.suffix == suffix and k.holds(a, every[site]):
                        parts.at.setdefault(site, {})[name], held = k.read(a, model.arch), True
                if not held:
                    parts.spare[key] = a
            continue
        if body == f"{OUTSIDE}.weight" and spec.is_prompt and is_whole(config, body):
            if spec.embeds:
                once(key, TABLE, "whole")
                parts.whole[TABLE] = a
            else:
                parts.spare[key] = a
            continue
        param, mark = param_of(naming, body)
        plain = plain_body(body)[0]
        if param is None and plain.rpartition(".")[0] in STACKS and model.arch.encoder_layers:
            stacks.append((key, "weight" if mark or not is_whole(config, plain) else "whole", a))
            continue
        kind = _kind(config, param or "", plain, mark)
        if param in copied and naming.ours(plain) == param:
            parts.spare[key] = a
        elif _is_idle(naming, plain, param, kind) or (spec.embeds and kind == "whole" and param == TABLE):
            parts.spare[key] = a
            if kind == "whole" and plain.endswith(".weight"):
                parts.idle[plain.removesuffix(".weight")] = kind
        elif param is None or param not in every:
            strange.append(key)
        else:
            a = our_layout(model.names, param, a)
            if param == HEAD and not mark and ties_whole(naming, config):
                parts.head = a
                continue
            if kind == "base" and param == HEAD and model.arch.shares_table:
                param = TABLE
            once(key, param, kind)
            if mark == "modules_to_save" and not is_whole(config, plain):
                raise Bad(f"{folder}: {key} was trained whole, and modules_to_save does not name its module")
            (parts.whole if kind == "whole" else parts.base)[param] = a
    parts.shared |= shared_to_ours(spec.root_keys, roots, model.arch)
    for name, k in spec.root_keys.items():  # rows whose numbers leave one out, or whose shapes differ
        given = [key for key in roots if k.numbered and key.startswith(f"{k.suffix}.")]
        strange += given[len(parts.shared.get(name, ())) :][:1]
    if strange:
        known = [spec.root + m for s in list(every)[:400] if (m := model.names.theirs(s.rpartition(".")[0]))]
        raise Bad(f"{folder}: unexpected key {strange[0]!r} in a {spec.peft_type} adapter{near(strange[0], known, 1)}")
    _tie(parts, model, folder)
    _tie_own(parts, naming, config, spec, folder)
    _stacks(parts, stacks, model, folder)
    return parts


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _copied(naming: Naming, config: Config, bodies: Iterable[str]) -> set[str]:
    """The parameters without a module of their own that a module saved whole has a copy of: the bias of a tied head,

    which its decoder has too. Nothing reads the first then.
    """
    plain = [plain_body(body)[0] for body in bodies]
    return {p for name in plain if naming.ours(name) is None and is_whole(config, name) and (p := _param(naming, name))}


def _kind(config: Config, param: str, plain: str, mark: str) -> str:
    """Whether a parameter was trained whole or is the base's own, by its wrapper and by what the configuration says."""
    option = config.get("bias") or "none"
    marks = ("", "base_layer") if option != "all" else ("", "base_layer", "token_adapter.base_layer")
    biased = param.endswith("bias") and option != "none" and mark in marks
    saved = mark == "modules_to_save" or (not mark and is_whole(config, plain))
    return "whole" if biased or saved else "base"


def _is_idle(naming: Naming, theirs: str, ours: str | None, what: str) -> bool:
    """Whether the model computes the same without this parameter: one that nothing reads; a change of T5's shared table,

    whose stacks look tokens up in tables of their own, but for trained tokens, which PEFT ties to those.
    """
    if ours == TABLE and naming.model.arch.encoder_layers:
        return what != "base" and not what.endswith("trainable_tokens_delta")
    return ours not in naming.model.params and naming.is_unread(theirs)


def _tokens(parts: Parts) -> dict[str, Any]:
    """Trained tokens by site, be they the adapter's method or beside it."""
    return {site: own["T"] for site, own in parts.at.items() if "T" in own} | parts.rows


def _tie(parts: Parts, model: Model, folder: Path) -> None:
    """Leaves out the copy of trained tokens that PEFT keeps for a tied head: ours follows the table."""
    tokens = _tokens(parts)
    if not (model.arch.shares_table and {TABLE, HEAD} <= tokens.keys()):
        return
    if not _equal(tokens[TABLE], tokens[HEAD]):
        raise Bad(f"{folder}: the tied head has trained tokens of its own; expected those of the table")
    for held in (parts.at, parts.rows):
        held.pop(HEAD, None)  # type: ignore[attr-defined]


def ties_whole(naming: Naming, config: Config) -> bool:
    """Whether a configuration ties a head to a token table that is trained whole."""
    arch = naming.model.arch
    if not (config.get("ensure_weight_tying") and arch.shares_table) or arch.encoder_layers:
        return False  # two stacks have tables of their own, and the shared one is idle
    return is_whole(config, naming.theirs("embed.tokens") + ".weight")


def _tie_own(parts: Parts, naming: Naming, config: Config, spec: Spec, folder: Path) -> None:
    """The same of ensure_weight_tying: PEFT has the arrays of the token table at a tied head too, and a table that is trained

    whole. Raises `Bad` where the two differ: in half precision PEFT trains them apart.
    """
    arch, where = naming.model.arch, f"{folder}: ensure_weight_tying"
    if parts.head is not None:
        if "head.bias" in naming.model.params:
            raise Bad(f"{where}: PEFT's head loses its bias when it is tied to a table that is saved whole")
        if TABLE not in parts.whole or not _equal(parts.whole[TABLE], parts.head):
            raise Bad(f"{where}: the tied head differs from the token table; expected the same weight")
    if not (config.get("ensure_weight_tying") and arch.shares_table and {TABLE, HEAD} <= parts.at.keys()):
        return
    if "." in naming.theirs("head"):
        return  # which PEFT looks for by the last part of its name, and finds none: it has arrays of its own
    table, head = parts.at[TABLE], parts.at[HEAD]
    if spec.parts(dict(config)):
        return  # of one weight, and yet arrays of their own
    if spec.rejoins(dict(config)):
        table.update({name: head[name] for name in table.keys() & head.keys()})
    if table.keys() != head.keys():
        return  # some of them are
    if apart := [name for name, a in table.items() if not _equal(a, head[name])]:
        raise Bad(
            f"{where}: {apart[0]} of the tied head is not that of the token table: PEFT lets them part in half precision; "
            "set ensure_weight_tying to false to have both as they are"
        )
    del parts.at[HEAD]
    parts.tied = True


def _stacks(parts: Parts, stacks: list[tuple[str, str, Any]], model: Model, folder: Path) -> None:
    """An encoder-decoder of transformers has a table for each stack beside the shared one; here they are one."""
    for key, suffix, a in stacks:
        if suffix.endswith("trainable_tokens_delta"):
            same = _tokens(parts).get(TABLE)
        else:
            same = parts.base.get(TABLE, to_host(widened(model.params[TABLE]))) if suffix == "weight" else None
        if same is None or not _equal(np.asarray(same), a):
            raise Bad(f"{folder}: {key} changes the table of one stack; expected one for both, shared")
