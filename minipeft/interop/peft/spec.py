"""What a method's file in this folder declares of Hugging Face PEFT: its `SPEC`.

It tells the `peft_type`, the configuration, and which of our arrays is which of its keys. Reading, writing, the harness, the recorded
cases, the live tests and docs/format.md go by it. What a method needs beyond the rule is a function in its own file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config, Field
from minipeft.interop.peft.names import Naming, by_pattern
from minipeft.method import Method, Site
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.model.parts import PATCHES

ROOT = "base_model.model."  # in front of a module's name in their files, but for prompts


def _same(a: Any, arch: Arch) -> Any:
    return a


def turned(a: Any, arch: Arch) -> Any:
    """Transposed: either way."""
    return a.T


def vector(a: Any, arch: Arch) -> Any:
    """All numbers in a row."""
    return a.reshape(-1)


def int32(a: Any, arch: Arch) -> Any:
    """Integers of 32 bits."""
    return a.astype(np.int32)


def column(a: Any, arch: Arch) -> Any:
    """The numbers below each other."""
    return a.reshape(-1, 1)


def row(a: Any, arch: Arch) -> Any:
    """The numbers beside each other, in a matrix of one row."""
    return a.reshape(1, -1)


@dataclass(frozen=True)
class Key:
    """Where one of our arrays stands in their file: the end of its key, and how the layouts differ."""

    suffix: str
    ours: Callable[[Any, Arch], Any] = _same  # their layout -> ours
    theirs: Callable[[Any, Arch], Any] = _same  # ours -> theirs; linear, so it serves gradients too
    shape: tuple[int | str | None, ...] | None = (
        None  # of theirs, where ours does not tell: fields of `Arch`; None: any length
    )
    row: int | None = None  # ours is this row of theirs, which is of integers and has one of ours in each
    whole: bool = False  # theirs is of integers
    numbered: bool = False  # theirs are the rows of ours, each with its number behind the key
    holds: Callable[[Any, Site], bool] = lambda a, site: (
        True
    )  # of two of ours that have one key: whether theirs is this one
    float32: bool = False  # a file has theirs in 32 bits, as PEFT reads no others
    empty: bool = False  # theirs may be without numbers
    size: str = ""  # of theirs in symbols, for docs/format.md

    def expects(self, arch: Arch) -> tuple[int | None, ...] | None:
        """The shape of an array of their file, None where ours tells it."""
        if self.shape is None:
            return None
        return tuple(getattr(arch, n) if isinstance(n, str) else n for n in self.shape)

    def fits(self, a: Any, arch: Arch) -> bool:
        """Whether an array of their file has this shape."""
        shape = self.expects(arch)
        return shape is None or (
            a.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, a.shape, strict=True))
        )

    def read(self, a: Any, arch: Arch) -> Any:
        """Our array, out of theirs."""
        return self.ours(a if self.row is None else a[self.row], arch)


Keys = Mapping[str, Key]


def shared_to_theirs(keys: Keys, arrays: Mapping[str, Any], arch: Arch) -> dict[str, np.ndarray]:
    """Our arrays that sites share in their layout, by their keys."""
    out: dict[str, np.ndarray] = {}
    for name, key in keys.items():
        if name in arrays:
            a = np.ascontiguousarray(key.theirs(arrays[name], arch))
            theirs = {f"{key.suffix}.{n}": row for n, row in enumerate(a)} if key.numbered else {key.suffix: a}
            out |= {
                k: out[k] + v if k in out else v for k, v in theirs.items()
            }  # of several with one key each has 0 for the others
    return out


def shared_to_ours(keys: Keys, found: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """Their arrays that sites share, by their keys, in our layout by our names; rows up to the first that is not there."""
    out = {}
    for name, key in keys.items():
        rows: list[Any] = []
        while (
            key.numbered
            and (own := f"{key.suffix}.{len(rows)}") in found
            and found[own].shape == found[f"{key.suffix}.0"].shape
        ):
            rows.append(found[own])
        if rows or (key.suffix in found and not key.numbered):
            out[name] = key.ours(np.stack(rows) if rows else found[key.suffix], arch)
    return out


def to_theirs(keys: Keys, arrays: Mapping[str, Any], arch: Arch) -> dict[str, np.ndarray]:
    """Our arrays of one site in their layout, by the ends of their keys; those without a key PEFT makes again."""
    out: dict[str, np.ndarray] = {}
    rows: dict[str, dict[int, np.ndarray]] = {}
    for name, key in keys.items():
        if name not in arrays:
            continue
        a = np.ascontiguousarray(key.theirs(arrays[name], arch))
        if key.row is None:
            out[key.suffix] = a
        else:
            rows.setdefault(key.suffix, {})[key.row] = a
    return out | {s: np.stack([own[n] for n in sorted(own)]).astype(np.int32) for s, own in rows.items()}


def to_ours(keys: Keys, found: Mapping[str, Any], site: Site, arch: Arch) -> dict[str, Any]:
    """Their arrays of one site, by the ends of their keys, in our layout by our names."""
    given = {name: (key, found[key.suffix]) for name, key in keys.items() if key.suffix in found}
    return {name: key.read(a, arch) for name, (key, a) in given.items() if key.holds(a, site)}


Arrays = Mapping[str, Any]
LEFT = "left"  # marks a configuration whose base is read as PEFT leaves it, and not as it is


@dataclass(frozen=True)
class Packing:
    """Arrays of ours that their file has in parts, as other arrays of the same site tell: `beside`, by our names.

    The parts have keys like arrays. `ours` makes arrays of all that a file has of a site, `theirs` parts of arrays or their gradients.
    In reading, `beside` has the base's W too.
    """

    of: tuple[str, ...]  # these arrays
    ours: Callable[[Arrays, Arrays], Arrays]  # (parts, beside)
    theirs: Callable[[Arrays, Arrays], Arrays]  # (arrays, beside)


@dataclass(frozen=True)
class Common:
    """Tensors that their file has once for several modules, as if it had them for each: to `ours`, and back to `theirs`, by keys."""

    ours: Callable[[Arrays], Arrays] = lambda tensors: tensors
    theirs: Callable[[Arrays], Arrays] = lambda tensors: tensors


@dataclass(frozen=True)
class Trial:
    """An adapter that PEFT must read and compute the same with: on a recorded base, with these settings, attached so."""

    base: str
    settings: Config = field(default_factory=dict)
    attached: Config = field(default_factory=dict)
    name: str = ""
    inexact: str = ""  # why PEFT reaches float32's precision only
    layers: tuple[tuple[int, int], ...] = ()  # ranges of its layers, repeated


DECOMPOSED = "PEFT decomposes the base in float32 when it loads"
NARROW = "PEFT reads a prompt into float32"


@dataclass(frozen=True)
class Spec:
    """How one method is written by PEFT."""

    peft_type: str
    known: Mapping[str, Field]  # every field of its configuration
    keys: Keys = field(default_factory=dict)  # our array at a site -> its key
    embedding_keys: Keys | None = None  # at a token table, if they differ
    patches: Keys | str = (
        "PEFT has none for convolutions"  # at ViT's patches, or why not (`minipeft.interop.peft.kernels`)
    )
    parameters: Mapping[str, Keys] = field(
        default_factory=dict
    )  # at sites that a configuration names as parameters, not as modules (`minipeft.interop.peft.parameters`)
    root_keys: Keys = field(
        default_factory=dict
    )  # shared arrays, whose keys name no module; parts of one tensor may have one key
    idle: tuple[str, ...] = ()  # how keys begin of what PEFT trains and no output depends on
    copied: bool = False  # these stand once more under every module; one is enough

    packing: Packing | None = None  # what is in parts there
    common: Common = Common()  # what is there once for several modules
    unsaved: Mapping[str, str] = field(default_factory=dict)  # our array that no file has -> its dictionary in a layer

    # the configuration
    settings: Mapping[str, str] = field(default_factory=dict)  # our setting -> their field of the same value
    reads: Callable[[Config, Arch], Config] = lambda config, arch: {}  # our further settings
    writes: Callable[[Any, Arch], Config] = lambda m, arch: {}  # their further fields
    patterns: Mapping[str, str] = field(
        default_factory=dict
    )  # their dictionary of what differs by module -> our setting
    at_site: Callable[[Config, Mapping[str, Any]], Config] = lambda config, arrays: {}  # settings that our arrays tell
    at_module: Callable[[Config, str], Config] = lambda config, module: {}  # settings that a module's name tells
    at_sites: Callable[[Config, Mapping[str, str], Mapping[str, Mapping[str, Any]]], Mapping[str, Config]] = (
        lambda config, modules, arrays: {}
    )  # settings that differ by site, at their modules with these arrays of ours
    of_adapter: Callable[[Adapter, Mapping[str, str], Any], Config] = (
        lambda adapter, modules, folder: {}
    )  # their fields that tell of a whole adapter, whose sites are their modules, written to a folder
    named: Callable[[Model, Adapter, Mapping[str, str]], Config] = (
        lambda model, adapter, modules: {}
    )  # target_modules and what goes with them, where the names of the adapter's modules are not enough
    told: Callable[[Config, Arch, Arrays], Config] = (
        lambda config, arch, shared: {}
    )  # settings that arrays of ours tell which sites share
    settled: Callable[[Config, Arch], Config] = (
        lambda config, arch: {}
    )  # fields of this class that a configuration changes

    # which files it reads
    claims: Callable[[Config], bool] | None = None  # of its peft_type; None: what no other method claims
    read_as: str = ""  # the method that its files are read as, if another
    examine: Callable[[Config], None] = lambda config: None  # raises `Bad`, or warns, for what a configuration tells
    seen: Callable[[Config, Naming, Arrays], Config] = lambda config, naming, tensors: (
        config
    )  # a configuration of its peft_type as PEFT takes it on these modules and with these tensors
    takes: Callable[[Config], bool] = lambda config: False  # whether PEFT takes something out of the base at first
    leaves: Callable[[Config, np.ndarray, Any, Site, bool], np.ndarray] | None = (
        None  # of a weight as it is stored, under our method at a site; whether that is a module whose weight is (in, out)
    )
    takes_last: bool = False  # out of what others leave
    holds: Callable[[Config, Naming], bool] = lambda config, naming: (
        False
    )  # whether our method has all that is taken beside the base
    begins: tuple[str, ...] = ()  # its fields that say how it began
    parts: Callable[[Config], bool] = lambda config: False  # whether a tied head has arrays of its own all the same
    rejoins: Callable[[Config], bool] = lambda config: (
        False
    )  # whether it had, and PEFT reads them into those of its table
    vague: Callable[[Any, np.ndarray], str] | None = None  # why PEFT may find others of what it finds again in a weight
    absent: Callable[
        [Config, Mapping[str, Site], Mapping[str, str], Mapping[str, Mapping[str, Any]]], Iterable[str]
    ] = lambda config, every, own, found: ()  # what a configuration declares and its file has not

    left_out: Callable[[Config], bool] = lambda config: False  # whether PEFT leaves its arrays out in every pass
    keeps: Callable[[Config], bool] = lambda config: (
        False
    )  # whether what its sites share must be in the file, trained or not

    passes: Callable[[Naming, Site], bool] = lambda naming, site: False  # targets that PEFT passes over without a word

    # oddities
    on_blocks: bool = (
        False  # keys name attention blocks, not linears: our sites attn.heads, and attn.o.out without arrays
    )
    on_layers: bool = False  # keys name whole layers: our sites layers.N
    also: tuple[str, ...] = ()  # our sites without arrays that an adapter has beside those that have some
    tasked: bool = False  # PEFT reads it with a task_type only
    embeds: bool = False  # PEFT looks tokens up itself, in the base's own table (`minipeft.interop.peft.keys.OUTSIDE`)
    plain: Callable[[Model, Adapter], Adapter] = lambda model, adapter: adapter  # what PEFT can hold of an adapter
    fixed: tuple[str, ...] = ()  # arrays that PEFT does not train
    load: Callable[..., Adapted] | None = None  # reads a folder, in place of the general way
    save: Callable[[Adapted, Adapter, Any], None] = lambda adapted, adapter, folder: (
        None
    )  # writes what is in sub-folders

    # the harness, the recorded cases and the live tests: PEFT on one module named `layer`, and on whole models
    on_layer: bool = True  # whether PEFT can be put there
    layer: Config = field(default_factory=dict)  # its further fields there
    called: Callable[[Any, Mapping[str, Any]], Config] = lambda model, inputs: {}  # what it is called with beside x
    unasked: Callable[[Any], str] = lambda m: ""  # why PEFT cannot be asked for a method with these settings
    readings: Mapping[str, str] = field(default_factory=dict)  # PEFT's, where paper and practice split
    wide: tuple[str, ...] = ()  # PEFT's modules that cast to float32 inside
    buffers: Mapping[str, str] = field(default_factory=dict)  # ours that PEFT makes itself -> where its layer keeps it
    traced: Mapping[str, str] = field(default_factory=dict)  # an intermediate -> the module of the layer that gives it
    combined: bool = False  # libraries also put it on tables, sum it, and merge it into weights of half precision
    variants: Callable[[Config], Mapping[str, Config]] = lambda config: {}  # other configurations of the same files
    trials: tuple[Trial, ...] = ()  # on whole models: the live tests
    notes: str = ""  # of its keys, for docs/format.md

    def of(self, config: Config, arch: Arch) -> Spec:
        """The same as this configuration has it."""
        return dataclasses.replace(self, **self.settled(config, arch))

    @property
    def root(self) -> str:
        """What stands in front of every module's name in its files."""
        return "base_model." if self.is_prompt else ROOT

    @property
    def is_prompt(self) -> bool:
        """Whether the adapter is one tensor of virtual tokens."""
        return any(k.suffix == "prompt_embeddings" for k in self.root_keys.values())

    def keys_of(self, site: Site) -> Keys:
        """The keys of its arrays at a site. Raises `Bad` for patches where there are none."""
        if site.name in self.parameters:
            return self.parameters[site.name]
        if site.name != PATCHES:
            return self.embedding_keys if site.kind == "embedding" and self.embedding_keys else self.keys
        if isinstance(self.patches, str):
            raise Bad(f"{self.peft_type} at {site.name}, which is a convolution there: {self.patches}")
        return self.patches

    @property
    def every_key(self) -> list[Key]:
        """All keys of arrays at sites, whatever these are."""
        patches = {} if isinstance(self.patches, str) else self.patches
        return [*self.keys.values(), *(self.embedding_keys or {}).values(), *patches.values()]

    def read(self, config: Config, arch: Arch) -> Config:
        """Our settings, of their configuration. Raises `KeyError` for a field that is not there."""
        same = {ours: self.known[theirs].kind.of(config[theirs]) for ours, theirs in self.settings.items()}
        return {k: v for k, v in same.items() if v is not None} | self.reads(config, arch)

    def read_at(
        self, config: Config, modules: Mapping[str, str], arrays: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Config]:
        """Our settings that differ from site to site, at their modules with these arrays of ours."""
        out: dict[str, Config] = {site: {} for site in modules}
        names = self.named_as(modules)
        for theirs, ours in self.patterns.items():
            if self.known[theirs].fate == "read":
                values = by_pattern(config, theirs, names.values(), config[self.settings[ours]])
                for site, name in names.items():
                    out[site][ours] = self.known[self.settings[ours]].kind.of(values[name])
        every = self.at_sites(config, modules, arrays)
        return {
            site: own
            | self.at_module(config, modules[site])
            | self.at_site(self._there(config, own), arrays[site])
            | every.get(site, {})
            for site, own in out.items()
        }

    def _there(self, config: Config, own: Config) -> Config:
        """A configuration with what its patterns say of one site."""
        return config | {self.settings[ours]: value for ours, value in own.items()}

    def named_as(self, modules: Mapping[str, str]) -> dict[str, str]:
        """What a configuration calls our sites at these modules: the module, or its parameter."""
        return {site: f"{m}.weight" if site in self.parameters else m for site, m in modules.items()}

    def write(self, method: Any, arch: Arch) -> Config:
        """Their configuration, of a method of ours."""
        same = {theirs: getattr(method, ours) for ours, theirs in self.settings.items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in same.items()} | self.writes(method, arch)


def transposed(arch: Arch) -> Config:
    """What PEFT writes of how the base stores its weights."""
    return dict(fan_in_fan_out=arch.family == "gpt2")


def never(config: Config) -> bool:
    """Claims no file: PEFT does not tell it from another method of its peft_type."""
    return False


def remade(adapter: Adapter, method: Method, at: Mapping[str, Method], arrays: Mapping[str, Any]) -> Adapter:
    """The adapter with another method, which trains these arrays; what stands beside it stays."""

    def beside(site: str) -> bool:
        return adapter.at.get(site, adapter.method).name != adapter.method.name

    rest = {k: v for k, v in adapter.arrays.items() if beside(k.rpartition(":")[0])}
    trained = frozenset(arrays) | (adapter.trained & rest.keys())
    return dataclasses.replace(
        adapter, method=method, at={**adapter.at, **at}, arrays={**arrays, **rest}, trained=trained
    )
