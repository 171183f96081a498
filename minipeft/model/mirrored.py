"""A second network of a base's kind, perhaps smaller, which belongs to a method: its architecture, and its arrays' short names.

Modules go by letters: `q0` and `bq0` are weight and bias of layer 0's queries, `na0` and `nm0` the norms of its sub-layers,
`norm` the last, `E`, `Ep` and `Et` the tables of tokens, positions and types, `ne` the norm behind them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from minipeft.errors import Bad
from minipeft.model.arch import Arch
from minipeft.model.parts import shapes

LETTERS = {"attn.norm": "na", "mlp.norm": "nm", "final.norm": "norm"}
LETTERS |= {"embed.tokens": "E", "embed.positions": "Ep", "embed.types": "Et", "embed.norm": "ne"}


def mirrored(arch: Arch, layers: int, d: int = 0, heads: int = 0, ff: int = 0, embeds: bool = True) -> Arch:
    """An architecture of so many layers and these widths, 0 for the base's, without a head; of one stack.

    It `embeds` tokens with positions, or is given what goes into its first layer. Rotary heads are as wide as the base's.
    Raises `Bad` for heads that do not share the width or the base's heads of keys.
    """
    rope, last, d, heads = arch.positions == "rope", arch.layers - 1, d or arch.d, heads or arch.heads
    width = arch.dh if rope else arch.head_dim
    if not width and d % heads:
        raise Bad(f"heads must divide {d}, the width, found {heads}")
    if heads % (arch.kv_heads or 1):
        raise Bad(f"heads must be a multiple of {arch.kv_heads}, the base's heads of keys and values, found {heads}")
    return replace(
        arch,
        head="none",
        layers=layers,
        d=d,
        heads=heads,
        head_dim=width,
        ff=ff or arch.ff,
        positions=arch.positions if embeds or rope else "none",
        full_layers=tuple(n for n in range(layers) if min(n, last) in arch.full_layers),
    )


def lettered(arch: Arch, table: bool = True, embeds: bool = True) -> dict[str, str]:
    """{short name: parameter} in the order of the layers, what embeds behind them: with a `table` of tokens, or given rows of one."""
    named = {}
    for param in sorted(shapes(arch), key=lambda param: param.startswith("embed.")):
        found = re.fullmatch(r"(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", param)
        layer, part, leaf = found.groups("") if found else ("", "", "")
        if table if part == "embed.tokens" else embeds or not part.startswith("embed."):
            named["b" * (leaf == "bias") + LETTERS.get(part, part.rpartition(".")[2]) + layer] = param
    return named
