"""What is known of PEFT's tuners for docs/peft.md: their fields, what is written of each, and the recorded adapters.

What is written is found by writing: every method with each of its settings varied, and every recorded adapter once it is read.
PEFT's tuners, and the words that a field may be, stand in `tuners.toml` as PEFT has them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tempfile
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance.places import ARCH
from minipeft.errors import Bad
from minipeft.interop.peft.fields import COMMON, Config, Field
from minipeft.interop.peft.keys import TOKENS
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.registry import specs
from minipeft.interop.peft.spec import Spec
from minipeft.interop.peft.writing import save_peft
from minipeft.method import method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.settings import choices, part_of, small
from minipeft.targets import sites

TUNERS = Path(__file__).parent / "tuners.toml"
VERSION = "0.21.2"
NORM = "the last norm"
OTHER_BASES = (
    dataclasses.replace(ARCH, family="gpt2", norm="layer"),
    dataclasses.replace(ARCH, d=12, layers=2, heads=2, kv_heads=1, head_dim=6),
    dataclasses.replace(ARCH, family="t5", encoder_layers=1),
)
Words = Mapping[str, Mapping[str, Sequence[str]]]  # by tuner and field


def tuners_of_peft() -> dict[str, dict[str, list[str]]]:
    """Every tuner of PEFT: the words that a field may be; of tuners that are not read here, every field."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    ours, out = {spec.peft_type for spec in specs().values()}, {}
    for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        hints = typing.get_type_hints(cls)
        words = {f.name: list(_words(hints[f.name])) for f in dataclasses.fields(cls) if f.name not in COMMON}
        out[kind.value] = {k: w for k, w in words.items() if w or kind.value not in ours}
    return out


def _words(hint: Any) -> Iterator[str]:
    if typing.get_origin(hint) is typing.Literal:
        yield from filter(lambda v: isinstance(v, str), typing.get_args(hint))
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield from (member.value for member in hint)
    else:
        for part in typing.get_args(hint):
            yield from _words(part)


def known_tuners() -> Words:
    """The same as it is recorded."""
    found = tomllib.loads(TUNERS.read_text(encoding="utf-8"))
    assert found.pop("version") == VERSION
    return found


def as_toml(tuners: Words) -> str:
    lines = ["# PEFT's tuners: python -m minipeft.interop.peft.page, with PEFT installed", f'version = "{VERSION}"']
    for kind, words in tuners.items():
        lines += ["", f"[{kind}]", *(f"{name} = {json.dumps(own)}" for name, own in words.items())]
    return "\n".join(lines) + "\n"


# --- what is written --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A configuration that was written: by which method, and which setting was varied."""

    method: str
    varied: str
    config: Config


def _others(setting: Any, options: Sequence[str], value: Any, arch: Any) -> Iterator[Any]:
    """Other values of a setting, some of which may not fit it."""
    if options:
        yield from options
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value * 2, value - 1, value / 2, 0.25, 1, 2, 0)
    elif isinstance(value, tuple):
        yield from ((*value, *value[:1]), value[::-1], value[:-1])
    elif value is None:
        yield from (1, 0.5, (1, 2))
    yield from setting.metadata.get("also", ())
    usual = setting.metadata.get("tried")
    yield usual(arch) if callable(usual) else usual


def _written(name: str, spec: Spec) -> Iterator[Written]:
    """What a method writes, as it is and with each of its settings varied."""
    cls: Any = method_class(name)
    for made in _small(cls, spec, ARCH):
        if not (usual := _config(spec, made, ARCH)):
            continue
        yield Written(name, "", usual)
        for arch in OTHER_BASES:
            if config := _config(spec, made, arch):
                yield Written(name, "the base", config)
        for f in dataclasses.fields(cls):
            options = choices(cls)[f.name].options if f.name in choices(cls) else ()
            for value in _others(f, options, getattr(made, f.name), ARCH):
                if (config := _config(spec, made, ARCH, **{f.name: value})) and config != usual:
                    yield Written(name, f"`{f.name}`", config)
        return


def _small(cls: Any, spec: Spec, arch: Arch) -> Iterator[Any]:
    """A small method, else as PEFT computes it, else with all its parts alike, as some can be written only."""
    yield small(cls, arch)
    yield (read := dataclasses.replace(small(cls, arch), **spec.readings))
    if part := part_of(cls):
        own = getattr(read, part[0])
        yield dataclasses.replace(read, **{part[0]: own[:1] * len(own)})


def _beside(name: str, spec: Spec, models: Mapping[str, Model], there: str) -> Iterator[Config]:
    """What is written of a small adapter with biases, tokens or a norm trained beside it, on the first base that fits."""
    cls, rows = method_class(name), method_class(TOKENS)
    for more in (dict(bias="all"), dict(bias="adapted"), dict(beside=[rows(tokens=(1, 2))]), dict(train_whole=NORM)):  # type: ignore[call-arg]
        tries = (_attached(model, m, more) for model in models.values() for m in _small(cls, spec, model.arch))
        yield from itertools.islice(filter(None, (_saved(adapted, there) for adapted in tries if adapted)), 1)


def _attached(model: Model, method: Any, more: Any) -> Adapted | None:
    """A model with a method and something beside it, None where that cannot be."""
    if more.get("train_whole") == NORM:
        more = dict(train_whole=[n for n in sites(model) if n.endswith("norm.weight")][-1:])
    try:
        return attach(model, method, **more)
    except Bad:
        return None


def _saved(adapted: Adapted, there: str) -> Config | None:
    """What is written of an adapter, None where that cannot be."""
    try:
        save_peft(adapted, there)
        return dict(json.loads((Path(there) / "adapter_config.json").read_text(encoding="utf-8")))
    except Bad:
        return None


def _config(spec: Spec, made: Any, arch: Arch, **other: Any) -> Config | None:
    """What a method is written as, None where that cannot be."""
    try:
        return spec.write(dataclasses.replace(made, **other), arch)
    except (Bad, TypeError):
        return None


@dataclass(frozen=True)
class Tuner:
    """What is known of one tuner of PEFT."""

    methods: Mapping[str, Spec]
    known: Mapping[str, Sequence[tuple[str, Field]]]  # every field, as methods have it that differ in it
    recorded: Mapping[str, Config]  # base/case: its configuration
    again: Sequence[Config]  # of adapters that were saved: the recorded ones, once read, and some with more beside them
    written: tuple[Written, ...]

    def default(self, name: str) -> Any:
        """What PEFT takes for a field that is absent; of a field in a dictionary there is none."""
        return None if "." in name else self.known[name][0][1].default

    def cases(self, name: str) -> list[str]:
        """The recorded adapters in which a field is not as usual."""
        return [c for c, config in self.recorded.items() if value_at(config, name) not in (None, self.default(name))]


def value_at(config: Config, name: str) -> Any:
    """The value of a field, which may be one of a dictionary's."""
    head, _, rest = name.partition(".")
    value = config.get(head)
    return (value.get(rest) if isinstance(value, dict) else None) if rest else value


def is_given(usual: Any, value: Any) -> bool:
    """Whether a value is another than the usual one."""
    return value is not None and value != usual


def is_word(word: Any, value: Any) -> bool:
    """Whether a value is this word; a part of it in brackets stands for a number."""
    if isinstance(word, str) and "[" in word:
        return isinstance(value, str) and re.fullmatch(re.sub(r"\[.*\]", r"\\d+", word), value) is not None
    return type(value) is type(word) and bool(value == word)


def tuners_of(tests: Path | None) -> dict[str, Tuner]:
    """Every tuner that is read here, with the adapters that are recorded there."""
    recorded: dict[str, dict[str, Config]] = {}
    again: dict[str, Config] = {}
    bases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as there:
        for file in sorted(tests.glob("data/peft/*/*/adapter/adapter_config.json")) if tests else ():
            base, case = file.parts[-4:-2]
            config = json.loads(file.read_text(encoding="utf-8"))
            recorded.setdefault(config["peft_type"], {})[f"{base}/{case}"] = config
            if base not in bases:
                bases[base] = load(file.parents[2] / "base", np.float64)
            if config := _saved(load_peft(bases[base], file.parent), there):
                again[f"{base}/{case}"] = config
        saved = {n: tuple(_beside(n, s, bases, there)) for n, s in specs().items()}
        out = {}
        for kind in {spec.peft_type: None for spec in specs().values()}:
            methods = {name: spec for name, spec in specs().items() if spec.peft_type == kind}
            cases = dict(sorted(recorded.get(kind, {}).items(), key=first_on_llama))
            both = [again[c] for c in cases if c in again] + [c for name in methods for c in saved[name]]
            out[kind] = Tuner(
                methods, _known(methods), cases, [c for c in both if c["peft_type"] == kind],  # not what is written as another's
                tuple(w for name, spec in methods.items() for w in _written(name, spec)),
            )  # fmt: skip
    return out


def first_on_llama(item: tuple[str, Any]) -> tuple[Any, ...]:
    """Adapters on llama first, and of those the shortest name."""
    base, case = item[0].split("/")
    return base != "llama", len(case), case, base


def _known(methods: Mapping[str, Spec]) -> dict[str, list[tuple[str, Field]]]:
    out: dict[str, list[tuple[str, Field]]] = {}
    for method, spec in methods.items():
        for name, field in spec.known.items():
            own = out.setdefault(name, [])
            if all((f.fate, f.why) != (field.fate, field.why) for _, f in own):
                own.append((method, field))
    return out
