"""Replays recorded cases: an adapter that PEFT saved, and what PEFT computed with it in float64.

A case is a folder with `adapter/` and `expected.safetensors`: the inputs, `logits`, `loss`, and `grad::KEY` for every trained
tensor of the checkpoint. The base is loaded in float64, the adapter put on it, and everything computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.checkpoints.files import existing, read_tensors
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.weight import widened
from minipeft.errors import Bad
from minipeft.interop.peft.keys import parameter_of, plain_key
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.registry import spec_of
from minipeft.interop.peft.tying import added_up
from minipeft.interop.peft.writing import to_peft_tensors
from minipeft.model.base import Model
from minipeft.model.batch import INPUTS, Batch, batch

K = 8.0
U64, U32 = 2.0**-53, 2.0**-24


@dataclass(frozen=True)
class Compared:
    """One tensor: largest error, relative to the largest expected value, and in units of u·cond (None without cond)."""

    name: str
    error: float
    relative: float
    ratio: float | None

    @property
    def outcome(self) -> str:
        """ "equal" within K·u·cond of float64; "float32" within that of float32; else "differs".

        The second is what a recording reaches that rounds to float32 somewhere inside, as transformers does in RMS norms
        and rotary angles and some PEFT methods do throughout.
        """
        measure, unit = (self.ratio, 1.0) if self.ratio is not None else (self.relative, 64 * U64)
        if measure <= K * unit:
            return "equal"
        return "float32" if measure <= K * unit * (U32 / U64) else "differs"


@dataclass(frozen=True)
class Report:
    """One case: what was compared, or why it could not be."""

    case: str
    method: str
    tensors: tuple[Compared, ...] = ()
    problem: str = ""

    def agrees(self, strict: bool = False) -> bool:
        """Whether everything is equal (with `strict`, to float64's precision)."""
        fine = ("equal",) if strict else ("equal", "float32")
        return not self.problem and all(t.outcome in fine for t in self.tensors)

    def of(self, kind: str) -> list[Compared]:
        """The tensors of one kind: "logits", "loss" or "grad"."""
        return [t for t in self.tensors if t.name.split("::")[0] == kind]

    @property
    def worst(self) -> Compared | None:
        """The tensor furthest off, None if nothing was compared."""
        rank = {"equal": 0, "float32": 1, "differs": 2}
        return max(
            self.tensors, key=lambda t: (rank[t.outcome], t.ratio if t.ratio is not None else t.relative), default=None
        )

    def to_json(self, strict: bool = False) -> dict[str, Any]:
        """For machines."""
        tensors = [dataclasses.asdict(t) | {"outcome": t.outcome} for t in self.tensors]
        worst = self.worst.name if self.worst else None
        return dict(
            case=self.case,
            method=self.method,
            agrees=self.agrees(strict),
            worst=worst,
            problem=self.problem,
            tensors=tensors,
        )


def replay(base: Model, folder: str | Path) -> Report:
    """Replay one case on a base in float64. A case that cannot be computed is reported, not raised."""
    folder = Path(folder)
    method = "?"
    try:
        if (existing(folder, "case") / "adapter_config.json").exists():
            raise Bad(f"{folder}: this is an adapter; expected a case, a folder with adapter/ and expected.safetensors")
        adapted = load_peft(base, folder / "adapter")
        method = adapted.adapters[0].method.name
        return Report(folder.name, method, tuple(_compare(adapted, read_tensors(folder / "expected.safetensors"))))
    except Bad as why:
        return Report(folder.name, method, problem=str(why))
    except Exception as why:  # one case must not keep the others from being judged
        return Report(folder.name, method, problem=f"cannot be computed: {type(why).__name__}: {why}")


def _computed(adapted: Adapted, inputs: Batch, wants_grads: bool, penalty: bool = True) -> dict[str, Any]:
    """logits, loss and gradients under the names of a case file; the loss with the method's penalty or of the task alone."""
    adapter = adapted.adapters[0]
    out: dict[str, Any] = {}
    if inputs.labels is not None and wants_grads:
        loss, grads = adapted.value_and_grad(inputs, penalty=penalty)
        out["loss"] = np.asarray(to_host(loss))
        plain = {k.split("/", 1)[1]: g for k, g in grads.items()}
        out |= {f"grad::{k}": g for k, g in added_up(adapted, to_peft_tensors(adapted, adapter, plain)).items()}
    elif inputs.labels is not None:
        out["loss"] = np.asarray(to_host(adapted.loss(None, inputs, penalty=penalty)))
    return out | {"logits": to_host(adapted.logits(inputs))}


def _compare(adapted: Adapted, expected: Mapping[str, np.ndarray]) -> list[Compared]:
    wants = {k: v for k, v in expected.items() if k in ("logits", "loss") or k.startswith("grad::")}
    wants = added_up(adapted, wants, "grad::")
    if not wants:
        raise Bad("expected.safetensors holds neither logits nor loss nor gradients")
    given = {k: v for k, v in expected.items() if k in INPUTS}
    if odd := set(expected) - set(wants) - set(given):
        raise Bad(f"expected.safetensors: unexpected tensor {sorted(odd)[0]!r}")
    inputs = batch(**given)
    with_grads = any(k.startswith("grad::") for k in wants)
    got = _computed(adapted, inputs, with_grads)
    penalty = True
    if "loss" in wants and "loss" in got:  # recordings have it as PEFT returns it, or that of the task
        task = _computed(adapted, inputs, with_grads, penalty=False)
        penalty = abs(got["loss"] - wants["loss"]) <= abs(task["loss"] - wants["loss"])
        got = got if penalty else task
    cond = _conditions(adapted, inputs, with_grads, got, penalty)
    beside = _beside(got, cond.get("loss", 0.0))
    out, root = [], spec_of(adapted.adapters[0].method).root
    grads = {k: parameter_of(adapted.model, k.removeprefix("grad::"), root) for k in got if k.startswith("grad::")}
    names = {param: k for k, param in grads.items() if param}
    for key, want in wants.items():
        kind, sep, own = key.rpartition("::")
        name = key if key in got else kind + sep + plain_key(adapted.model, own, root)
        name = name if name in got else name.replace(".default", "", 1)  # as the model that is trained has it
        name = name if name in got else names.get(parameter_of(adapted.model, own, root) or "", name)
        if name not in got and not np.any(want) and (own in adapted.adapters[0].spare or own in _held(adapted)):
            continue  # what this model has no use for has no gradient, and what stays as it is
        if name not in got:
            raise Bad(f"expected.safetensors: {name} is no trained tensor of this adapter")
        mine, want = np.asarray(got[name]), np.asarray(want, np.float64)
        if mine.shape != want.shape:
            raise Bad(f"{name}: expected shape {want.shape}, computed {mine.shape}")
        off = abs(mine - want)
        if (
            name == "logits"
            and want.ndim == 3
            and inputs.attention_mask is not None
            and not adapted.model.arch.encoder_layers
        ):
            text = inputs.attention_mask.shape[1]
            off[:, off.shape[1] - text :] *= to_host(inputs.attention_mask)[:, :, None]  # padding has no meaning
        if (row := _padding_row(adapted, name)) is not None and not want[row].any():
            off[row] = 0
        error = float(off.max()) if off.size else 0.0
        largest = float(abs(want).max()) if want.size else 0.0
        relative = error / largest if largest else (0.0 if error == 0 else float("inf"))
        relative = relative if np.isfinite(off).all() else float("inf")
        size = cond.get(name)
        if name.startswith("grad::") and min(error, float(abs(mine).max(initial=0.0))) <= K * U64 * beside:
            size = beside
        ratio = (error / (U64 * size) if np.isfinite(relative) or largest == 0 else float("inf")) if size else None
        out.append(Compared(name, error, relative, ratio))
    told = {t.name for t in out}
    if lost := sorted(k for k in got if k.startswith("grad::") and k not in told) if with_grads else []:
        stored = [k for k in lost if np.abs(got[k]).max() > 0]
        if stored:
            raise Bad(f"expected.safetensors lacks {stored[0]}, a trained tensor of this adapter")
    return out


def _held(adapted: Adapted) -> set[str]:
    """The keys of all arrays of an adapter, trained or not."""
    adapter = adapted.adapters[0]
    return set(to_peft_tensors(adapted, adapter, adapter.arrays))


def _padding_row(adapted: Adapted, key: str) -> Any:
    """Where a gradient holds the padding token's row of a table: torch gives it none there, whatever the loss says."""
    pad = adapted.model.arch.pad_id
    if key.endswith("lora_embedding_A"):
        return (slice(None), pad) if pad is not None else None
    rows = adapted.adapters[0].at.get("embed.tokens.weight")
    tokens = getattr(rows, "tokens", ())
    return tokens.index(pad) if key.endswith("trainable_tokens_delta") and pad in tokens else None


def _beside(got: Mapping[str, Any], loss: float) -> float:
    """What a gradient's terms may be as large as, which cancel in it: the largest gradient beside it, and the loss's `loss`.

    Softmax does not see a key's bias: its gradient is a rounding, and moving the numbers does not tell of what. The same of an
    error that is a rounding.
    """
    grads = (float(abs(v).max(initial=0.0)) for k, v in got.items() if k.startswith("grad::"))
    return max(4 * max(grads, default=0.0), loss)


def _conditions(
    adapted: Adapted, inputs: Batch, with_grads: bool, at: Mapping[str, Any], penalty: bool
) -> dict[str, float]:
    """How much each result moves for relative changes of every number of base and adapter: measured at six of them."""
    rng = np.random.default_rng(3)
    step = 2.0**-26
    sizes = {k: float(abs(v).max()) if v.size else 0.0 for k, v in at.items()}

    def nudge(x: Any) -> Any:
        x = widened(x)
        return x * to_device(1 + step * rng.choice([-1.0, 1.0], x.shape)) if x.dtype.kind == "f" else x

    for _ in range(6):  # a gradient that is one number may hardly move in the first of them
        base = dataclasses.replace(adapted.model, params={k: nudge(v) for k, v in adapted.model.params.items()})
        adapter = adapted.adapters[0]
        moved = dataclasses.replace(adapter, arrays={k: nudge(v) for k, v in adapter.arrays.items()})
        there = _computed(dataclasses.replace(adapted, model=base, adapters=(moved,)), inputs, with_grads, penalty)
        for k, v in there.items():
            if v.size:
                sizes[k] = max(sizes[k], float(abs(v - at[k]).max()) / step)
    return {k: 4 * s for k, s in sizes.items() if s}  # random signs reach a part of the worst case
