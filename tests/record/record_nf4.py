"""Records what bitsandbytes makes of small weights in NF4: `python tests/record/record_nf4.py`.

Writes tests/data/nf4.safetensors: for every case its weight W, the packed codes, the constants of the blocks, and the
dequantised weight. Running it again gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

from minipeft.checkpoints.files import write_tensors

CASES = {"matrix": ((24, 40), 64), "blocks": ((8, 256), 128), "uneven": ((10, 50), 64)}


def record() -> dict[str, np.ndarray]:
    """All cases, as "case/array"."""
    out = {}
    for seed, (name, (shape, block)) in enumerate(CASES.items()):
        W = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1
        packed, state = bnb.quantize_4bit(W, blocksize=block, quant_type="nf4")
        made = dict(W=W, codes=packed.reshape(-1), absmax=state.absmax, values=bnb.dequantize_4bit(packed, state))
        out |= {f"{name}/{k}": v.numpy() for k, v in made.items()} | {f"{name}/block": np.array(block)}
    return out


if __name__ == "__main__":
    write_tensors(Path(__file__).parents[1] / "data" / "nf4.safetensors", record())
