"""Bases in four bits: checkpoints that transformers saved with bitsandbytes, and which weights it would hold so.

Beside a `weight` of packed codes such a file has `weight.absmax`, the constants of the blocks; `weight.quant_map`, the values
of the codes; `weight.nested_absmax` and `weight.nested_quant_map`, if the constants are quantised too; and
`weight.quant_state.bitsandbytes__nf4`, bytes of JSON with the rest. Source: `QuantState` of bitsandbytes 0.50.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.regular import parsed
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.bfloat16 import rounded
from minipeft.engine.weight import form, widened
from minipeft.errors import Bad
from minipeft.limits import AXES, WHOLE
from minipeft.model.arch import Arch
from minipeft.model.parts import kind_of
from minipeft.quantize import CODEBOOKS, FourBits, quantize
from minipeft.settings import LARGEST
from minipeft.shown import shortly

STATE = ".quant_state.bitsandbytes__"
BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
HALVES = ("float16", "bfloat16")
STATE_BYTES = 1 << 16  # of JSON with a few numbers, and perhaps the values of the codes


def read_packed(
    config: Mapping[str, Any], tensors: dict[str, Any], folder: str | Path, transposed: Callable[[str], bool]
) -> dict[str, Any]:
    """The tensors of a file with what is packed as `FourBits`, or as an array where the codes mean other values than NF4's or FP4's.

    bitsandbytes packs every linear as (out, in), and `transposed` ones, which their family stores as (in, out), are turned
    back where they become arrays. Raises `Bad`, in one line, for another quantisation, and for arrays that are missing or do not fit each other.
    """
    about = config.get("quantization_config")
    if about:
        method = about.get("quant_method", "bitsandbytes")
        if method != "bitsandbytes":
            raise Bad(f"{folder}: quantised by {method!r}; expected weights as they are, or bitsandbytes in four bits")
        if about.get("load_in_8bit"):
            raise Bad(
                f"{folder}: eight bits of bitsandbytes round what enters a linear too, which is not computed here; four do not"
            )
    out = {k: a for k, a in tensors.items() if STATE not in k and not k.endswith(tuple(f".{b}" for b in BESIDE))}
    for key, packed in tensors.items():
        weight, found, _ = key.partition(STATE)
        if found:
            parts = {b: tensors[f"{weight}.{b}"] for b in BESIDE if f"{weight}.{b}" in tensors}
            try:
                W = _unpacked(_state(packed), tensors[weight], parts)
                out[weight] = W.T if type(W) is np.ndarray and transposed(weight) else W
            except KeyError as why:
                raise Bad(f"{folder}: {weight}: its four-bit form lacks {why.args[0]!r}") from None
            except (ValueError, TypeError, AttributeError, OverflowError) as why:
                raise Bad(f"{folder}: {weight}: {why}") from None
    if bytes_left := sorted(k for k, a in out.items() if getattr(a, "dtype", None) in (np.uint8, np.int8)):
        raise Bad(
            f"{folder}: {bytes_left[0]} is of {out[bytes_left[0]].dtype} and nothing says what the bytes stand for"
        )
    return out


def _state(packed: Any) -> Mapping[str, Any]:
    """What the bytes beside the codes say. Raises `Bad` for what is no object of JSON."""
    if packed.size > STATE_BYTES:
        raise Bad(f"expected at most {STATE_BYTES:,} bytes beside the codes, found {packed.size:,}")
    if not isinstance(state := parsed(bytes(packed)), dict):
        raise Bad(f"expected an object beside the codes, found {shortly(state)}")
    return state


def _unpacked(state: Mapping[str, Any], codes: Any, parts: Mapping[str, Any]) -> Any:
    shape, block, dtype = state["shape"], state["blocksize"], state["dtype"]
    whole = isinstance(shape, list) and all(type(n) is int and 0 <= n <= WHOLE for n in (*shape, block))
    if not whole or len(shape) > AXES or dtype not in (*HALVES, "float32"):
        raise Bad(f"expected a shape, a block size and a dtype, found {shortly(state)}")
    shape = tuple(shape)
    nested = "nested_absmax" in parts
    values, absmax = parts["quant_map"].astype(np.float32), parts["absmax"]
    arrays = dict(codes=codes.reshape(-1), absmax=absmax, like=np.empty(0, np.float32))
    arrays |= dict(shape=np.array(shape, np.int64), block=np.array(block, np.int64))
    if nested:
        arrays |= dict(scale=parts["nested_absmax"], offset=np.float32(state["nested_offset"]))
        arrays |= dict(table=parts["nested_quant_map"])
        if not abs(state["nested_offset"]) <= LARGEST:
            raise Bad(f"expected an offset of at most {LARGEST:g}, found {shortly(state['nested_offset'])}")
        if state["nested_blocksize"] != 256:
            raise Bad(f"expected constants in blocks of 256, found {state['nested_blocksize']}")
    if dtype in HALVES:
        arrays["rounds"] = np.frombuffer(dtype.encode(), np.uint8)
    held = FourBits.from_arrays({k: to_device(np.asarray(a)) for k, a in arrays.items()})
    if values.shape != (16,):
        raise Bad(f"expected the values of 16 codes, found shape {values.shape}")
    for code, table in CODEBOOKS.items():
        if np.array_equal(values, table):
            return dataclasses.replace(held, code=code)
    constants = to_host(held.constants())
    pairs = np.stack(np.divmod(codes.reshape(-1), 16), 1).reshape(-1)[: held.size]
    product = (
        (values[pairs] * np.repeat(constants, min(block, held.size))[: held.size]).reshape(shape).astype(np.float32)
    )
    return np.asarray(rounded(product)) if dtype == "bfloat16" else product.astype(dtype).astype(np.float32)


def in_few_bits(arch: Arch, params: Mapping[str, Any], how: Mapping[str, Any], wide: tuple[str, ...]) -> dict[str, Any]:
    """The parameters with those quantised, as `how` tells `quantize`, that transformers hands to bitsandbytes: every linear but the output head, a

    classifier that ends the model's list of parameters, and the modules that a family keeps wide.
    """
    skip = ("head", *(() if "score" in arch.biased else ("score",)))

    def chosen(name: str, W: Any) -> bool:
        module = name.removesuffix(".weight")
        plain = kind_of(name, tuple(W.shape)) == "linear" and not form(W) and W.ndim == 2
        return plain and module not in skip and not module.startswith("embed.") and not module.endswith(wide or ("\0",))

    return {k: quantize(widened(W), **how) if chosen(k, W) else W for k, W in params.items()}
