"""FRoD in PEFT: λ and S of each module; V and the places once for the modules of a category. U is in no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    INIT,
    LAYERED,
    POSITIVE,
    RATE,
    SEED,
    TARGETS,
    WHOLE,
    Config,
    Kind,
    is_number,
    needed,
    plain,
    read,
)
from minipeft.interop.peft.spec import Common, Key, Packing, Spec, transposed
from minipeft.methods.structured.frod import directions
from minipeft.model.base import Model

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "projection_prng_key": needed(SEED, 0),
    "save_projection": read(Kind("true: without V, PEFT makes one anew, which is rounding's choice", lambda v: v is True), True),
    "sparse_rate": needed(Kind("a number in (0, 1]", lambda v: is_number(v) and 0 < v <= 1, float), 0.01),
    "regularization_alpha": read(POSITIVE, 1e-3),
    "frod_dropout": read(RATE, 0.0),
    "progressbar": plain("whether PEFT shows how far it is", True),
    "runtime_offload_base_weight": plain("where PEFT keeps the base", False),
}  # fmt: skip
Tensors = Mapping[str, Any]
ROOT, BASES, PLACES, SIZES = "base_model.model.", "frod_V", "frod_s_indices", "frod_s_size"


def _category(module: str) -> str:
    """What PEFT calls modules that share V: the last two words of their names, or the last behind a number."""
    words = module.split(".")
    if len(words) == 1 or words[-2].isdigit():
        return words[-1]
    return "attention_output" if words[-3:] == ["attention", "output", "dense"] else "_".join(words[-2:])


def _modules(tensors: Tensors) -> dict[str, str]:
    """The category of every module that has lengths."""
    modules = [key.removesuffix(".frod_lambda_l") for key in tensors if key.endswith(".frod_lambda_l")]
    return {m: _category(m.removeprefix(ROOT)) for m in modules}


def _apart(tensors: Tensors) -> Tensors:
    """V and the places for each module."""
    out, of = dict(tensors), _modules(tensors)
    for c in set(of.values()):
        size = out.pop(f"base_model.{SIZES}.{c}", None)
        for what in (BASES, PLACES):
            if (a := out.pop(f"base_model.{what}.{c}", None)) is not None:
                out |= {f"{m}.{what}": a for m, own in of.items() if own == c}
                if what == BASES and size is not None and size.any() and tuple(size) != a.shape:  # a gradient has 0
                    raise Bad(f"base_model.{SIZES}.{c}: expected {a.shape}, as V has, found {tuple(map(int, size))}")
    return out


def _at_once(tensors: Tensors) -> Tensors:
    """V and the places for each category. Raises `Bad` where its modules differ."""
    out = dict(tensors)
    for m, c in _modules(tensors).items():
        for what in (BASES, PLACES):
            if (a := out.pop(f"{m}.{what}", None)) is not None:
                a = a.astype(np.int64) if what == PLACES else a
                if not np.array_equal(out.setdefault(f"base_model.{what}.{c}", a), a):
                    raise Bad(f"frod: PEFT has one {what} for all modules {c}, whose groups here have different ones")
                if what == BASES:
                    out[f"base_model.{SIZES}.{c}"] = np.array(a.shape, np.int64)
    return out


def _with_directions(parts: Tensors, beside: Tensors) -> Tensors:
    """What the file has, and U, of V and the base's weight. Raises `Bad` where that is rounding's choice."""
    if not ("V" in parts and "W" in beside):
        return parts
    U, lam = directions(beside["W"].astype(np.float64), parts["V"].astype(np.float64), least=2.0**-17)
    if not lam.all():
        raise Bad(
            f"frod: {int((lam == 0).sum())} columns of U are rounding's choice, and PEFT does not save it; expected as many rows "
            "in the matrices of a group as they have columns"
        )
    return {**parts, "U": U}


def _named(model: Model, adapter: Adapter, modules: Mapping[str, str]) -> Config:
    """Raises `Bad` for what PEFT would not read as it is: but for its own files it would put V beside another's U."""
    if "peft" not in adapter.options:
        raise Bad(
            "frod: PEFT saves no U, and makes one of a basis of its own in reading; expected an adapter of its own"
        )
    return {}


SPEC = Spec(
    "FROD",
    KNOWN,
    keys={
        "lam": Key("frod_lambda_l", size="(in)"),
        "s": Key("frod_lambda_s_values", size="(k)"),
        "V": Key(BASES, size="(in, in), once for a category as `base_model.frod_V.CATEGORY`"),
        "rows": Key(PLACES, row=0, shape=(2, None), size="(2, k), likewise"),
        "cols": Key(PLACES, row=1, shape=(2, None)),
    },
    settings=dict(rate="sparse_rate", alpha="regularization_alpha", seed="projection_prng_key", dropout="frod_dropout"),
    writes=lambda m, arch: transposed(arch) | dict(save_projection=True),
    packing=Packing((), _with_directions, lambda own, beside: own),
    common=Common(_apart, _at_once),
    unsaved=dict(U="frod_U"),
    wide=("peft.tuners.frod.model",),
    named=_named,
)
