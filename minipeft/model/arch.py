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
    transform: bool = False  # BERT: a dense layer, the activation and a norm in front of the head
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
    """A dtype, or "bfloat16" as it is. Raises `Bad` for what is no floating-point type."""
    if str(dtype) == "bfloat16":
        return "bfloat16"
    known = ("float16", "float32", "float64", "bfloat16")
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
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
        """Raise `Bad`, in one line, for what cannot be computed: nothing given, empty, ids or labels out of range, shapes
        apart, arrays of another backend."""
        refuse_others(self.arrays)
        given = [x for x in (self.inputs_embeds, self.input_ids, self.pixel_values) if x is not None]
        if not given:
            raise Bad("batch: expected input_ids, inputs_embeds or pixel_values, found none of them")
        if 0 in given[0].shape:
            raise Bad(f"batch: expected at least one row and one token, found shape {tuple(given[0].shape)}")
        for name in ("input_ids", "decoder_input_ids"):
            if getattr(self, name) is not None:
                ids = self.host(name)
                lo, hi = int(ids.min()), int(ids.max())
                if lo < 0 or hi >= arch.vocab:
                    raise Bad(f"{name}: expected token ids 0 … {arch.vocab - 1}, found {lo if lo < 0 else hi}")
        classes = arch.vocab if arch.head in ("lm", "mlm") else arch.labels
        one_of = self.labels is not None and arch.problem_of(self.labels.dtype.kind) in (
            "",
            "single_label_classification",
        )
        if self.labels is not None and one_of and classes and self.labels.size:
            labels = self.host("labels")
            y = labels[:, 1:] if arch.head == "lm" and not arch.encoder_layers and labels.ndim == 2 else labels
            if not ((y >= 0) & (y < classes) | (y == IGNORE)).all():
                raise Bad(f"labels must lie in 0 … {classes - 1} or be {IGNORE}, found {int(y.min())} … {int(y.max())}")
        if self.pixel_values is None:
            shape = tuple(given[0].shape[:2])
            covered = shape if arch.encoder_layers else (shape[0], past + shape[1])
            for name, expected in {"attention_mask": covered, "token_type_ids": shape, "position_ids": shape}.items():
                x = getattr(self, name)
                if x is not None and tuple(x.shape) != expected:
                    raise Bad(f"{name}: expected shape {expected} like the tokens, found {tuple(x.shape)}")
        if self.task_ids is not None and len(self.task_ids) != self.rows:
            raise Bad(f"task_ids: expected one for each of {self.rows} rows, found {len(self.task_ids)}")


INPUTS = tuple(f.name for f in dataclasses.fields(Batch) if f.name != "made_of")


def batch(**arrays: Any) -> Batch:
    """A `Batch` of lists or arrays of the host, moved to the backend's device once. Tensors stay what they are."""
    given = {k: v for k, v in arrays.items() if v is not None}
    hosts = {k: np.asarray(v) for k, v in given.items() if library(v) in ("", "numpy") and not hasattr(v, "node")}
    placed = {k: v if hasattr(v, "node") else to_device(hosts.get(k, v)) for k, v in given.items()}
    kept = {k: (placed[k], v) for k, v in hosts.items() if v.dtype.kind != "f"}  # what is checked and counted
    return Batch(**placed, made_of=kept)
