"""OFT in PEFT: the numbers above the diagonal of each block's skew-symmetric matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minipeft.errors import Bad
from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERED,
    NUMBER,
    RATE,
    TARGETS,
    WHOLE,
    Config,
    optional,
    plain,
    read,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed
from minipeft.method import Site
from minipeft.model.arch import Arch

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "r": read(whole(0), 0),
    "oft_block_size": read(whole(0), 32),
    "module_dropout": plain("PEFT makes this dropout and never applies it", 0.0, optional(RATE)),
    "coft": read(FLAG, False),
    "eps": read(NUMBER, 6e-05),
    "block_share": read(FLAG, False),
    "use_cayley_neumann": read(FLAG, True),
    "num_cayley_neumann_terms": read(whole(1, 1000), 5),
}  # fmt: skip


def _reads(config: Config, arch: Arch) -> Config:
    """PEFT's size of blocks holds, not their number, where both are given, and its radius with coft alone."""
    radius = dict(eps=config["eps"]) if config["coft"] else {}
    cayley = "neumann" if config["use_cayley_neumann"] else "exact"
    return radius | dict(cayley=cayley, r=0 if config["oft_block_size"] else config["r"])


def _at_site(config: Config, arrays: Mapping[str, Any]) -> Config:
    a = arrays.get("Q", arrays.get("Q_emb"))  # β(β − 1)/2 numbers a block
    if a is None:
        return {}
    fields: Config = dict(block=int((1 + math.isqrt(1 + 8 * a.shape[1])) // 2), r=0)
    if config.get("coft"):  # PEFT's radius eps/√K is a number of float32
        radius = np.float32(config.get("eps", 6e-5)) * np.float32(1 / np.sqrt(np.float32(len(a))))
        fields["eps"] = float(radius) * math.sqrt(len(a))
    return fields


def _nearest(size: int, width: int) -> int:
    """The divisor of a width that PEFT takes for a size that is none: the nearest, of two the smaller."""
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    return min(divisors, key=lambda n: (abs(n - size), n))


def _absent(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Blocks of the size that is declared, or as many as are. Raises `Bad` where the file has others."""
    size, number = config["oft_block_size"], config["r"]
    for site, arrays in found.items():
        width, has = every[site].shape[-1], _at_site(config, arrays).get("block")
        declared = _nearest(size, width) if size else width // _nearest(number, width)
        if has not in (None, declared):
            what = f"oft_block_size={size}" if size else f"r={number}"
            raise Bad(f"adapter_config.json: {what} means blocks of {declared} at {own[site]}, the file's are of {has}")
    yield from ()


SPEC = Spec(
    "OFT",
    KNOWN,
    keys={"Q": Key("oft_R.weight", shape=(None, None), empty=True, size="(K, β(β − 1)/2)")},
    embedding_keys={"Q_emb": Key("oft_embedding_R.weight", shape=(None, None), empty=True)},
    patches="PEFT turns windows that overlap and adds them up, which no matrix over patches is",
    settings=dict(
        terms="num_cayley_neumann_terms",
        block_share="block_share",
        coft="coft",
        block="oft_block_size",
        r="r",
    ),
    reads=_reads,
    writes=lambda m, arch: transposed(arch) | dict(use_cayley_neumann=m.cayley == "neumann", eps=m.eps),
    at_site=_at_site,
    absent=_absent,
    trials=(
        Trial("llama", dict(block=4, r=0)),
        Trial("llama", dict(block=4, r=0, cayley="exact", block_share=True), name="exact"),
    ),
)
