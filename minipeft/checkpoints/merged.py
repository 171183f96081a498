"""Merging into files: what is written is read back and compared with the adapted model before it gets its place.

A merge can be right in memory and wrong in its file: a bias that config.json does not announce, a head that transformers
ties again, a type that rounds. So the checkpoint is written beside its place, read again, and must hold the merged
numbers bit for bit as rounded and compute, on a probe batch, what the adapted model computes, within K·u·cond of its type.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.checkpoints import _ours, _theirs, load
from minipeft.checkpoints.files import place_folder, read_file, refuse_read, write_bytes
from minipeft.checkpoints.saving import TYPES, file_type, main_type, stored_types, types_of, write_model
from minipeft.engine.backend import to_host
from minipeft.engine.bfloat16 import UNIT
from minipeft.engine.tensor import value
from minipeft.engine.weight import form, widened
from minipeft.errors import Bad, note
from minipeft.limits import JSON_BYTES
from minipeft.merging import merge
from minipeft.model.base import Model
from minipeft.model.batch import Batch, batch
from minipeft.model.replicated import original
from minipeft.model.sensitivity import sensitivity

K = 32.0  # four times that of one computation: the adapter's way, the fold, its rounding, and the merged model's way
CARRIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe")  # tokenizers, templates, generation
OWN = ("config.json", "adapter.json", "adapter_config.json", "trainer_state.json")  # not of those


@dataclass(frozen=True)
class Merged:
    """What was written, and what it costs: largest and mean differences of logits on the probe batch."""

    model: Model
    dtype: str
    largest: float
    mean: float
    unrounded: float  # largest difference of the fold before it was rounded to the type of the files
    scale: float  # the largest of the adapted model's logits
    quantised: tuple[float, float] | None = None  # of the base alone, in four bits and as its files hold it

    def __str__(self) -> str:
        said = f"{self.model.size:,} parameters, {self.dtype}; on a probe batch logits up to {self.scale:.3g} differ by at most "
        if self.unrounded < self.largest / 4:
            said += (
                f"{self.largest:.2g} (mean {self.mean:.2g}) once rounded to {self.dtype}, {self.unrounded:.2g} before"
            )
        else:
            said += f"{self.largest:.2g} (mean {self.mean:.2g})"
        if self.quantised:
            said += "; four bits cost the base {:.2g} (mean {:.2g})".format(*self.quantised)
        return said


def save_merged(
    adapted: Adapted, base: str | Path, out: str | Path, *, dtype: Any = None, spared: Sequence[str | Path] = ()
) -> Merged:
    """Fold the adapters in use into their base and write the checkpoint folder `out`, which transformers loads as well.

    `base` is the folder the base was loaded from: each tensor is written in the type it has there, or in `dtype` ("bfloat16" as
    in `Model.astype`), and tokenizer, generation settings and templates are carried along, as are tensors of other heads.
    Raises `Bad`, and leaves nothing behind, for what does not merge or has no place in a checkpoint of the family, for a
    checkpoint that would not compute what the adapted model does, and for an `out` that is one of the folders read from
    (`base` and `spared`) or holds other files.
    """
    base, out = Path(base), Path(out)
    place = Path(os.path.realpath(out))  # what a link stands for, without ".."
    _refuse_place(base, out, place, [base, *spared, *filter(None, [adapted.model.folder])])
    wide = _at_least(adapted, dtype)
    folded = merge(wide)
    classes = next((c for a in adapted.in_use if (c := a.options.get("classes"))), ())
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=_standing(place.parent)))
    try:
        folder.chmod(0o755)
        try:
            folded = _padded(folded, base)
            types = types_of(folded, dtype) if dtype else _stored(base, folded, adapted.model)
            written = write_model(folded, folder, types, classes)
        except Bad as why:
            biased = {a.name for a in adapted.in_use if any(getattr(m, "lora_bias", False) for m in a.at.values())}
            names = ", ".join(
                f"{a.name!r} ({a.method.name}{', lora_bias=True' if a.name in biased else ''})" for a in adapted.in_use
            )
            raise Bad(f"{out}: the merge of {names} cannot be written: {why}") from None
        found = _compared(wide, folded, written, folder, out)
        if wide.model.forms:
            found = dataclasses.replace(found, quantised=_lost(wide, base))
        for name, data in carried(base).items():
            write_bytes(folder / name, data)
        place_folder(folder, place)
        _tell_unwritten(adapted)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


# --- places -----------------------------------------------------------------------------------------------------------


def _standing(path: Path) -> Path:
    """The path or the nearest folder above that is there."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _refuse_place(base: Path, out: Path, place: Path, read: Sequence[str | Path]) -> None:
    refuse_read(place, *read)
    if not _standing(place).is_dir():
        raise Bad(f"{out}: cannot be written: {_standing(place)} is a file")
    if place.exists():
        mine = {"config.json", "model.safetensors", *carried(base)}
        if strange := sorted(p.name for p in place.iterdir() if p.name not in mine or p.is_dir()):
            raise Bad(f"{out}: holds {strange[0]}, which is no part of the merged checkpoint; give a new folder")


def carried(base: Path) -> dict[str, bytes]:
    """The other files of a checkpoint folder that belong to it, by name: tokenizers of every kind, generation settings, templates."""
    wanted = [p for p in sorted(base.iterdir()) if p.suffix in CARRIED or p.name.startswith(("LICENSE", "NOTICE"))]
    names = [p.name for p in wanted if p.is_file() and p.name not in OWN and not p.name.endswith(".index.json")]
    return {name: bytes(read_file(base / name, JSON_BYTES)) for name in names if not name.startswith(".")}


# --- types ------------------------------------------------------------------------------------------------------------


def _at_least(adapted: Adapted, dtype: Any) -> Adapted:
    """The same numbers in the type that the fold is computed in: what is held in bfloat16 is widened, and in float64 for float64."""
    model = adapted.model
    wanted = np.dtype(np.float64) if dtype is not None and file_type(dtype) == "float64" else model.dtype

    def cast(v: Any) -> Any:
        return v.astype(wanted) if v.dtype.kind == "f" else v

    adapters = tuple(dataclasses.replace(a, arrays={k: cast(v) for k, v in a.arrays.items()}) for a in adapted.adapters)
    return dataclasses.replace(adapted, model=model.astype(wanted), adapters=adapters)


def _padded(folded: Model, base: Path) -> Model:
    """The model with a padding token: transformers' classifier over a decoder cannot tell a row's last token without one."""
    arch = folded.arch
    if arch.head != "classify" or not arch.causal or arch.pad_id is not None:
        return folded
    from minipeft.text import load_tokenizer

    try:
        pad: int | None = load_tokenizer(base).pad_id
    except Bad:
        pad = None
    if pad is None or pad >= arch.vocab:
        pad = next(iter(arch.eos_ids), None)
    return dataclasses.replace(folded, arch=dataclasses.replace(arch, pad_id=pad))


def _stored(base: Path, folded: Model, held: Model) -> dict[str, str]:
    """The types of the files' tensors, those of layers that were repeated for each of them."""
    types = stored_types(base, folded)
    return types | {k: types[old] for k in folded.params if (old := original(held, k)) in types}


# --- comparing --------------------------------------------------------------------------------------------------------


def probe(model: Model, rows: Sequence[int] = (), seed: int = 0) -> Batch:
    """A batch that fits a model: random tokens, the ids `rows` among them, rows padded left and right; or random images."""
    arch, rng = model.arch, np.random.default_rng(seed)
    if arch.patch:
        return batch(pixel_values=rng.standard_normal((3, arch.channels, arch.image, arch.image)).astype(model.dtype))
    t = min(16, (arch.max_positions - arch.first_position) or 16)
    ids = rng.integers(0, arch.vocab, (4, t))
    if arch.pad_id is not None:  # as a padding token it would be no token like others
        ids[ids == arch.pad_id] = (arch.pad_id + 1) % arch.vocab
    flat = ids.reshape(-1)
    flat[: len(rows)] = list(rows)[: flat.size]
    mask = np.ones_like(ids)
    mask[2, : t // 3] = 0
    mask[3, t - t // 3 :] = 0
    if arch.pad_id is not None:
        ids[mask == 0] = arch.pad_id
    given: dict[str, Any] = dict(input_ids=ids, attention_mask=mask)
    if arch.types > 1:
        given["token_type_ids"] = (np.arange(t)[None] >= t // 2) * mask
    if arch.encoder_layers:
        given["decoder_input_ids"] = rng.integers(0, arch.vocab, (4, t))
    return batch(**given)


def _computed(adapted: Adapted, given: Batch) -> Any:
    """Logits, or hidden states without a head, at the tokens that the mask shows, on the host."""
    out = adapted.forward(given)
    y = to_host(value(out.hidden if out.logits is None else out.logits))
    if given.attention_mask is None or adapted.model.arch.encoder_layers or y.ndim < 3:
        return y
    return y[given.host("attention_mask") == 1]


def _compared(wide: Adapted, folded: Model, written: Mapping[str, Any], folder: Path, out: Path) -> Merged:
    """What the checkpoint in `folder` computes beside the adapted model. Raises `Bad` unless they are the same."""
    try:
        read = load(folder, wide.model.dtype)
    except Bad as why:
        said = str(why).replace(str(folder), str(out))
        raise Bad(f"{out}: not written, since it could not be read back: {said}") from None
    for name, W in written.items():
        held = widened(W).astype(wide.model.dtype)
        if name not in read.params or not np.array_equal(to_host(read.params[name]), held):
            raise Bad(f"{out}: not written, since {name} would not be read back as it is")
    changed = []
    if "embed.tokens.weight" in folded.params:
        moved = to_host(folded.params["embed.tokens.weight"]) != to_host(
            widened(wide.model.params["embed.tokens.weight"])
        )
        changed = np.flatnonzero(moved.any(axis=1)).tolist() if moved.mean() < 0.5 else []
    given = probe(folded, changed)
    want = _computed(wide, given)
    before, after = (abs(_computed(Adapted(m), given) - want) for m in (folded, read))
    cond = sensitivity(lambda m, _: _computed(Adapted(m), given), folded, {})
    own = float(np.finfo(wide.model.dtype).eps) / 2
    kinds = [form(W) or W.dtype.name for W in written.values()]
    u = max(own, *(UNIT if k == "bfloat16" else float(np.finfo(k).eps) / 2 for k in kinds if k in TYPES.values()))
    for what, off, unit in (("the fold", before, own), ("the checkpoint", after, u)):
        if not off.max() <= K * unit * cond:
            raise Bad(
                f"{out}: not written, since {what} would not compute what the adapted model does: logits differ by "
                f"{off.max():.3g} on a probe batch, expected at most {K * unit * cond:.3g}"
            )
    kind = main_type(written)
    return Merged(read, kind, float(after.max()), float(after.mean()), float(before.max()), float(abs(want).max()))


def _tell_unwritten(adapted: Adapted) -> None:
    """Notes changes of a part that the checkpoint has and no head here computes: it is written as the base has it."""
    model = adapted.model
    held = {_ours(model.names, k, model.arch) for k in model.spare}
    for a in adapted.in_use:
        sites = {_ours(model.names, f"{module}.weight", model.arch) for module in a.options.get("idle", {})}
        if lost := sorted(site for site in sites & held if site):
            told = _theirs(model.names, lost[0])
            note(f"{a.name!r} also changes {told}, which nothing here computes: the merged file has the base's")


def _lost(wide: Adapted, base: Path) -> tuple[float, float] | None:
    """What four bits cost the base: differences of logits, adapters off, None if the base's files hold no more."""
    plain = load(base, wide.model.dtype)
    held = {k: original(wide.model, k) for k, W in wide.model.params.items() if form(W)}
    full = {k: plain.params[old] for k, old in held.items() if old in plain.params}
    if any(map(form, full.values())):
        return None
    given = probe(wide.model)
    other = dataclasses.replace(wide.model, params={**wide.model.params, **full})
    off = abs(_computed(Adapted(wide.model), given) - _computed(Adapted(other), given))
    return float(off.max()), float(off.mean())
