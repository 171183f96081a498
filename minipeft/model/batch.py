"""The inputs of one forward pass, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.engine.backend import library, refuse_others, to_device, to_host
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.shown import described

IGNORE = -100  # a label that does not count


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

    __repr__ = described

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

    def part(self, rows: Any) -> Batch:
        """These rows alone: indices, or a slice."""
        return self.having(**{k: self.host(k)[rows] for k in self.arrays})

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
        two_stacks = bool(arch.encoder_layers)
        sizes: dict[str, int] = {}
        axes: dict[str, tuple[Any, ...]] = {  # those that say how many there are come first
            "input_ids": ("rows", "tokens"),
            "inputs_embeds": ("rows", "tokens", arch.d),
            "pixel_values": ("rows", arch.channels, arch.image, arch.image),
            "decoder_input_ids": ("rows", "decoder tokens"),
            "decoder_inputs_embeds": ("rows", "decoder tokens", arch.d),
            "labels": ("rows", "decoder tokens" if two_stacks else "tokens")
            if arch.per_token
            else self._label_axes(arch),
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
            classes = arch.vocab if arch.predicts_tokens else arch.labels
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
