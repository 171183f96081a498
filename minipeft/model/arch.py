"""What a checkpoint is to us: an `Arch` of facts, a flat dict of read-only arrays, and the names others call them by."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.engine.backend import library, read_only, refuse_others, to_device, to_host
from minipeft.engine.bfloat16 import Bfloat16, bfloat16
from minipeft.errors import Bad, near

IGNORE = -100  # a label that does not count


@dataclass(frozen=True)
class Arch:
    """The facts in which checkpoints differ. A field exists because some checkpoint family needs it."""

    family: str  # "gpt2", "llama", …: whose names and file layout
    d: int  # width of the residual stream
    layers: int
    heads: int
    ff: int  # width of the feed-forward
    vocab: int = 0
    types: int = 0  # token types
    kv_heads: int = 0  # grouped-query attention; 0: as many as heads
    head_dim: int = 0  # 0: d / heads
    norm: str = "layer"  # "layer" | "rms"
    eps: float = 1e-5
    pre_norm: bool = True  # normalise the input of a sub-layer, or (False) the sum after it
    causal: bool = True
    act: str = "gelu_tanh"  # a name of `minipeft.model.activations`
    gated: bool = False
    fused_qkv: bool = False
    biased: tuple[str, ...] = ()  # which linears have a bias, by the end of their name: "q", "up", "score", …
    scale: float | None = None  # of the attention scores; None: head_dim**-0.5
    window: int | None = None  # each query sees this many latest keys
    full_layers: tuple[int, ...] = ()  # the layers whose queries see all keys all the same
    positions: str = "learned"  # "learned" | "rope" | "relative" | "none"
    max_positions: int = 0  # rows of the learned table; 0: no limit
    first_position: int = 0  # RoBERTa counts from padding id + 1
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()  # items of the checkpoint's scaling entry
    buckets: int = 32  # of T5's relative positions
    max_distance: int = 128
    encoder_layers: int = 0  # > 0: an encoder-decoder; `layers` then counts the decoder's
    tied: bool = False  # the head is the token table
    head: str = "lm"  # "lm" | "mlm" | "classify" | "tokens" | "none"
    transform: str = ""  # BERT: the activation of a dense layer, with a norm behind it, in front of the head
    head_scale: float = 1.0  # T5 scales the hidden state before a tied head
    pool: str = "last"  # "last" | "first" | "mean": the token a classifier reads
    labels: int = 0  # of a classifier
    problem: str = ""  # a classifier's loss, as transformers names it; "": by the number and type of the labels
    patch: int = 0  # ViT: patch and image size in pixels
    image: int = 0
    channels: int = 3
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # each ends a text
    fill_id: int | None = None  # generation goes on with it in a row that has ended
    start_id: int | None = None  # first token of a decoder

    @property
    def shares_table(self) -> bool:
        """Whether the output matrix is the token table: tied, and there is a head that has one."""
        return self.tied and self.head in ("lm", "mlm")

    def window_of(self, layer: int) -> int | None:
        """How many latest keys a query of this layer sees; None: all."""
        return None if layer in self.full_layers else self.window

    def problem_of(self, kind: str) -> str:
        """A classifier's loss for labels of this NumPy kind, by transformers' rule; "" without a classifier of rows."""
        if self.head != "classify":
            return ""
        several = "single_label_classification" if kind in "iu" else "multi_label_classification"
        return self.problem or ("regression" if self.labels == 1 else several)

    @property
    def kv(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def dh(self) -> int:
        """Width of one head."""
        return self.head_dim or self.d // self.heads

    @property
    def stacks(self) -> dict[str, int]:
        """Prefix of each stack of layers and how many layers it has."""
        return ({"encoder.": self.encoder_layers} if self.encoder_layers else {}) | {"": self.layers}


class Names:
    """A bijection between our module names and a checkpoint family's, from a table of patterns with {n} for a layer.

    `stored` has the names of those that are called otherwise in files. They are also what the modules were called when such
    a file was new, so that older adapters name them too: `ours` knows both.
    """

    def __init__(
        self, table: Mapping[str, str], transposed: tuple[str, ...] = (), stored: Mapping[str, str] | None = None
    ) -> None:
        self.table = dict(table)
        in_files = dict(stored or {})
        self._to_ours = [(self._regex(theirs), ours) for t in (self.table, in_files) for ours, theirs in t.items()]
        self._to_stored = [(self._regex(ours), theirs) for ours, theirs in (self.table | in_files).items()]
        self._to_theirs = [(self._regex(ours), theirs) for ours, theirs in self.table.items()]
        self.transposed = tuple(self._regex(t) for t in transposed)  # ours, stored (in, out) in their files

    @staticmethod
    def _regex(pattern: str) -> re.Pattern:
        return re.compile(re.escape(pattern).replace(r"\{n\}", r"(?P<n>\d+)"))

    @staticmethod
    def _swap(rules: list, module: str) -> str | None:
        for pattern, target in rules:
            if found := pattern.fullmatch(module):
                return target.format(**found.groupdict())
        return None

    def ours(self, module: str) -> str | None:
        """Our name of their module, None if it is not in the table."""
        return self._swap(self._to_ours, module)

    def theirs(self, module: str) -> str | None:
        """Their name of our module, None if it is not in the table."""
        return self._swap(self._to_theirs, module)

    def stored(self, module: str) -> str | None:
        """The name of our module in files, None if it is not in the table."""
        return self._swap(self._to_stored, module)

    def all(self, module: str) -> list[str]:
        """Their names of our module, today's first."""
        return list(dict.fromkeys(n for n in (self.theirs(module), self.stored(module)) if n))

    def is_transposed(self, module: str) -> bool:
        """Whether their file stores this module's (our name) weight as (in, out)."""
        return any(p.fullmatch(module) for p in self.transposed)


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """What sort of parameter this is, by its name and shape."""
    if name.endswith(".bias"):
        return "bias"
    if ".norm." in f".{name}":
        return "norm"
    if name.startswith("embed.") and name != "embed.patch.weight":
        return "embedding" if len(shape) == 2 and name.endswith(".weight") else "table"
    return "table" if "relbias" in name else "linear"


def float_type(dtype: Any) -> Any:
    """A dtype to compute in, or "bfloat16" as it is. Raises `Bad` for every other, float16 too: what exceeds 65504 is
    infinite there, and the ε of AdamW and of norms is 0."""
    if str(dtype) == "bfloat16":
        return "bfloat16"
    known = ("float32", "float64", "bfloat16")
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found == np.float16:
        raise Bad(
            "dtype float16: nothing is computed in it, for its numbers end at 65504; expected float32, float64 or bfloat16 "
            "(`load(folder, np.float32)`: a file in float16 is widened exactly)"
        )
    if found is None or found.name not in known:
        raise Bad(f"dtype {dtype!r}: expected one of {', '.join(known)}{near(str(dtype), known)}")
    return found


def converted(name: str, W: Any, dtype: Any) -> Any:
    """A parameter in the type that `Model.astype` says."""
    dtype = float_type(dtype)
    if str(dtype) != "bfloat16":
        return W.astype(dtype)
    if isinstance(W, Bfloat16):
        return W
    matrix = kind_of(name, tuple(W.shape)) in ("linear", "embedding") and not hasattr(W, "dequantize")  # quantised: no
    return bfloat16(W) if matrix else W.astype(np.dtype(np.float32))


def _check_parameter(name: str, W: Any) -> None:
    """Raise `Bad` for a parameter that is no array of a type to compute in."""
    if not hasattr(W, "dtype"):
        raise Bad(f"{name}: expected an array, found {type(W).__name__}")
    try:
        float_type(W.dtype)
    except Bad as why:
        raise Bad(f"{name}: {why}") from None


@dataclass(frozen=True)
class Model:
    """A base model: facts, read-only arrays by our names, and the other names of its modules.

    `config` is the checkpoint's config.json; `spare` what its file holds beyond this head, a pooler perhaps, under their
    names and in their layout. Both are empty for a model that came from no file. `drawn` are parameters that no file had,
    of a head that was put on.
    """

    arch: Arch
    params: Mapping[str, Any]
    names: Names = field(default_factory=lambda: Names({}), repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    spare: Mapping[str, Any] = field(default_factory=dict, repr=False)
    drawn: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        for k, v in self.params.items():
            if not hasattr(v, "dequantize"):
                _check_parameter(k, v)
        held = {k: v if hasattr(v, "dequantize") else read_only(v) for k, v in self.params.items()}
        object.__setattr__(self, "params", held)

    def __repr__(self) -> str:
        half = "bfloat16 and " if any(type(v) is Bfloat16 for v in self.params.values()) else ""
        return f"Model({self.arch.family}, {self.size:,} parameters, {half}{self.dtype})"

    @property
    def dtype(self) -> Any:
        """The dtype of its arrays, and of everything that is computed with it."""
        return next(v.dtype for v in self.params.values() if not hasattr(v, "dequantize"))

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return sum(int(np.prod(v.shape)) for v in self.params.values())

    def astype(self, dtype: Any) -> Model:
        """The same model in another floating-point type. What is quantised stays so.

        "bfloat16": matrices of linears and embeddings are held in bfloat16, each number rounded once; all else is
        float32, and so is everything that is computed: products with these matrices round their other factor too, and
        are summed in float32. Raises `Bad` for what is no floating-point type.
        """
        return dataclasses.replace(self, params={k: converted(k, v, dtype) for k, v in self.params.items()})

    def digest(self, without: Collection[str] = ()) -> str:
        """SHA-256 of every array's name, dtype, shape and bytes: equal if and only if the base is bit-identical.

        `without` names parameters that do not count."""
        h = hashlib.sha256()
        for name in sorted(self.params.keys() - set(without)):
            v = self.params[name]
            parts = v.to_arrays() if hasattr(v, "dequantize") else {"": v}
            for key in sorted(parts):
                a = np.ascontiguousarray(to_host(parts[key]))
                h.update(f"{name}:{key}:{a.dtype}:{a.shape}".encode())
                h.update(a.data)
        return h.hexdigest()


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, under the names the field uses. b rows, t tokens.

    Give `input_ids` (b, t), or `inputs_embeds` (b, t, d), or `pixel_values` (b, c, H, W). `attention_mask` (b, t) is 1 for
    real tokens. `labels` are (b, t) for language models and token classification, (b,) for classification, with −100
    for what is to be ignored. `decoder_input_ids` of an encoder-decoder default to the labels, shifted right.
    `task_ids` (b,) are for methods that route by task.

    Made by `minipeft.batch`, it remembers what its arrays were on the host, where ids, labels and masks are checked and
    counted: nothing waits for the device because of them.
    """

    input_ids: Any = None
    attention_mask: Any = None
    labels: Any = None
    token_type_ids: Any = None
    position_ids: Any = None
    inputs_embeds: Any = None
    pixel_values: Any = None
    decoder_input_ids: Any = None
    decoder_inputs_embeds: Any = None
    decoder_attention_mask: Any = None
    task_ids: Any = None
    made_of: Mapping[str, tuple[Any, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    # by name: the array, and what it is on the host

    @property
    def arrays(self) -> dict[str, Any]:
        """What is given, by name."""
        named = {k: getattr(self, k) for k in INPUTS}
        return {k: v for k, v in named.items() if v is not None}

    @property
    def rows(self) -> int:
        """How many examples."""
        return next(len(x) for x in (self.inputs_embeds, self.input_ids, self.pixel_values) if x is not None)

    def host(self, name: str) -> np.ndarray:
        """An array as it was given on the host; one that was not made there is fetched."""
        x = getattr(self, name)
        known, there = self.made_of.get(name, (None, None))
        return there if known is x else to_host(x)  # type: ignore[return-value]

    def ask(self, what: str, name: str, *limit: int) -> bool:
        """One fact of an array, told on the host: whether `all` of it is set, or is `below` a limit; often all that counts."""
        x = Batch.host(self, name)
        return bool(x.all()) if what == "all" else bool(x.max() < limit[0])

    def having(self, **arrays: Any) -> Batch:
        """The same with these lists or arrays of the host in place of its own; None takes one away."""
        new = batch(**arrays)
        return dataclasses.replace(
            self, **{k: getattr(new, k) for k in arrays}, made_of={**self.made_of, **new.made_of}
        )

    @property
    def tokens(self) -> int:
        """How many tokens are no padding; for images, how many numbers there are."""
        if self.attention_mask is not None:
            return int(self.host("attention_mask").sum())
        x = self.input_ids if self.input_ids is not None else self.pixel_values
        return int(x.size) if x is not None else self.rows

    def check(self, arch: Arch, past: int = 0) -> None:
        """Raise `Bad`, in one line, for what cannot be computed: too little or too much given, shapes apart, numbers of
        another type or out of range, NaN, arrays of another backend."""
        for name, x in self.arrays.items():
            if not hasattr(x, "dtype"):
                raise Bad(
                    f"{name}: expected an array, found {type(x).__name__}; `minipeft.batch` makes arrays of lists"
                )
        refuse_others(self.arrays)
        self._check_names(arch)
        self._check_shapes(arch, past)
        for name in self.arrays:
            self._check_values(arch, name)

    def _check_names(self, arch: Arch) -> None:
        """That there is one array of each sort that the architecture reads, and none that it does not read."""
        two_stacks, ids = bool(arch.encoder_layers), ("input_ids", "inputs_embeds")
        read = {
            ("pixel_values",): bool(arch.patch),
            ids: not arch.patch,
            ("attention_mask",): not arch.patch,
            ("token_type_ids",): bool(arch.types),
            ("position_ids",): arch.positions in ("learned", "rope") and not arch.patch,
            ("decoder_input_ids", "decoder_inputs_embeds"): two_stacks,
            ("decoder_attention_mask",): two_stacks,
        }
        if not any(n in self.arrays for n in (*ids, "pixel_values")):
            raise Bad("batch: expected input_ids, inputs_embeds or pixel_values, found none of them")
        for names, reads in read.items():
            found = [n for n in names if n in self.arrays]
            if found and not reads:
                allowed = ", ".join(n for names, reads in read.items() if reads for n in names)
                raise Bad(f"{found[0]}: this {arch.family} model does not read it; it reads {allowed}")
            if len(found) > 1:
                raise Bad(f"batch: expected {names[0]} or {names[1]}, found both")

    def _check_shapes(self, arch: Arch, past: int) -> None:
        per_token, two_stacks = arch.head in ("lm", "mlm", "tokens"), bool(arch.encoder_layers)
        sizes: dict[str, int] = {}
        axes: dict[str, tuple[Any, ...]] = {  # those that say how many there are come first
            "input_ids": ("rows", "tokens"),
            "inputs_embeds": ("rows", "tokens", arch.d),
            "pixel_values": ("rows", arch.channels, arch.image, arch.image),
            "decoder_input_ids": ("rows", "decoder tokens"),
            "decoder_inputs_embeds": ("rows", "decoder tokens", arch.d),
            "labels": ("rows", "decoder tokens" if two_stacks else "tokens") if per_token else self._label_axes(arch),
            "attention_mask": ("rows", "tokens" if two_stacks else "covered"),
            "decoder_attention_mask": ("rows", "covered"),
            "token_type_ids": ("rows", "tokens"),
            "position_ids": ("rows", "tokens"),
            "task_ids": ("rows",),
        }
        for name, wanted in axes.items():
            x = getattr(self, name)
            if x is None or (name == "labels" and arch.head == "none"):
                continue
            if name == "attention_mask":
                sizes["covered"] = past + sizes.get("decoder tokens" if two_stacks else "tokens", 0)
            found = tuple(x.shape)
            if len(found) == len(wanted):
                if 0 in found:
                    raise Bad(f"{name}: expected at least one row and one token, found shape {found}")
                for w, n in zip(wanted, found, strict=True):
                    sizes.setdefault(w, n) if isinstance(w, str) else None
            expected = tuple(sizes.get(w, w) for w in wanted)
            if found != expected:
                said = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
                raise Bad(f"{name}: expected shape {said}, found {found}")

    def _measured(self, arch: Arch) -> bool:
        """Whether labels are numbers to come close to, not classes."""
        kind = "i" if self.labels is None else self.labels.dtype.kind
        return arch.problem_of(kind) in ("regression", "multi_label_classification")

    def _label_axes(self, arch: Arch) -> tuple[Any, ...]:
        alone = arch.labels == 1 and self.labels is not None and self.labels.ndim == 1
        return ("rows", arch.labels) if self._measured(arch) and not alone else ("rows",)

    def _check_values(self, arch: Arch, name: str) -> None:
        """That the numbers of an array are of the right type and in range; those on a device alone are not fetched for it
        where they are floats."""
        x = getattr(self, name)
        sort, (types, says) = next((s, NUMBERS[s]) for s, names in SORTS.items() if name in names)
        if name == "labels" and self._measured(arch):
            sort, types, says = "floats", "iuf", "numbers"
        if x.dtype.kind not in types:
            raise Bad(f"{name}: expected {says}, found {x.dtype}")
        known = self.made_of.get(name, (None, None))[0] is x or library(x) == "numpy"
        if sort != "ids" and not known:
            return
        x = getattr(x, "value", x) if hasattr(x, "node") else Batch.host(self, name)
        if sort == "floats" and not np.isfinite(x).all():
            raise Bad(
                f"{name}: expected finite numbers, found {int((~np.isfinite(x)).sum())} of {x.size} NaN or infinite"
            )
        if sort == "mask" and not ((x == 0) | (x == 1)).all():
            raise Bad(f"{name}: expected 0 and 1 alone, found {x[(x != 0) & (x != 1)][0]}")
        if name == "labels" and self._measured(arch) and not (abs(x) <= 1e18).all():
            raise Bad(f"labels: expected numbers of at most 1e18, whose squares float32 holds, found {abs(x).max():g}")
        if name == "labels" and not self._measured(arch):
            classes = arch.vocab if arch.head in ("lm", "mlm") else arch.labels
            wrong = x[~((x >= 0) & (x < classes) | (x == IGNORE))]  # the first counts too, behind virtual tokens
            if classes and wrong.size:
                raise Bad(f"labels must lie in 0 … {classes - 1} or be {IGNORE}, found {int(wrong[0])}")
        if name == "position_ids" and arch.causal and self.attention_mask is None and (np.diff(x, axis=1) != 1).any():
            raise Bad(
                "position_ids: expected positions one after another, found a jump: packed texts are not kept apart here; "
                "with an attention_mask, of ones perhaps, positions are only that"
            )
        limits = {"token_type_ids": arch.types, "input_ids": arch.vocab, "decoder_input_ids": arch.vocab}
        if arch.positions == "learned":
            limits["position_ids"] = arch.max_positions or np.iinfo(np.int64).max
        if name in limits and (x.min() < 0 or x.max() >= limits[name]):
            what = "token ids " if name.endswith("input_ids") else ""
            raise Bad(
                f"{name}: expected {what}0 … {limits[name] - 1}, found {int(x.min() if x.min() < 0 else x.max())}"
            )


SORTS = {
    "floats": ("inputs_embeds", "decoder_inputs_embeds", "pixel_values"),
    "mask": ("attention_mask", "decoder_attention_mask"),
    "ids": ("input_ids", "decoder_input_ids", "labels", "token_type_ids", "position_ids", "task_ids"),
}
NUMBERS = {"floats": ("f", "floating-point numbers"), "mask": ("biuf", "0 and 1"), "ids": ("iu", "integers")}
INPUTS = tuple(f.name for f in dataclasses.fields(Batch) if f.name != "made_of")


def batch(**arrays: Any) -> Batch:
    """A `Batch` of lists or arrays of the host, moved to the backend's device once. Tensors stay what they are.

    Raises `Bad` for names that a batch does not have, and for rows of different lengths."""
    given = {k: v for k, v in arrays.items() if v is not None}
    hosts = {}
    for name, v in given.items():
        if name not in INPUTS:
            raise Bad(f"batch: {name!r} is unknown{near(name, INPUTS)}; it holds {', '.join(INPUTS)}")
        if library(v) in ("", "numpy") and not hasattr(v, "node"):
            try:
                hosts[name] = np.asarray(v)
            except ValueError:  # NumPy's word for rows of different lengths
                raise Bad(f"{name}: expected rows of one length; pad them, and say so in attention_mask") from None
            if hosts[name].dtype.kind not in "biuf":
                raise Bad(f"{name}: expected numbers, found {hosts[name].dtype}")
    placed = {k: v if hasattr(v, "node") else to_device(hosts.get(k, v)) for k, v in given.items()}
    return Batch(**placed, made_of={k: (placed[k], v) for k, v in hosts.items()})
