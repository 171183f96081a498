"""Records draws of torch's CPU generator: `python tests/record/record_torch_random.py`.

Writes tests/data/torch_random.json: sequences of draws from one generator each, with what torch gave. Every number is
written with all its digits. Running it again gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from minipeft.checkpoints.files import write_json

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
SEQUENCES: dict[int, list[list[Any]]] = {
    0: [["permutation", 10], ["uniform", [5], 0.0, 1.0, "float32"], ["normal", [20], 0.0, 1.0, "float32"]],
    1: [["normal", [3], 0.0, 1.0, "float32"], ["normal", [2, 2], 1.0, 0.5, "float64"], ["permutation", 7]],
    42: [["uniform", [3, 4], -0.25, 0.75, "float32"], ["uniform", [6], -1.0, 2.0, "float64"], ["normal", [16], 0.0, 1.0, "float64"]],
    2**31 + 7: [["normal", [4, 9], -1.0, 2.0, "float32"], ["normal", [1], 0.0, 1.0, "float64"], ["permutation", 1], ["permutation", 0]],
    2**40 + 3: [["permutation", 100], ["normal", [17], 0.0, 1.0, "float64"], ["uniform", [1], 0.0, 1.0, "float64"]],
    7: [["narrow_uniform", [3, 1, 5], -0.31, 0.31], ["narrow_uniform", [40], -1 / 17**0.5, 1 / 17**0.5]],
}  # fmt: skip


def drawn(generator: torch.Generator, kind: str, *options: Any) -> list:
    """What torch gives for one draw."""
    if kind == "permutation":
        return torch.randperm(options[0], generator=generator).tolist()
    shape, first, second, *rest = options
    dtype = rest[0] if rest else "bfloat16"
    empty = torch.empty(shape, dtype=DTYPES[dtype])
    fill = empty.normal_ if kind == "normal" else empty.uniform_
    return fill(first, second, generator=generator).tolist()


def record() -> list[dict[str, Any]]:
    """All sequences, each with its seed: a list of draws and what came of them."""
    out = []
    for seed, draws in SEQUENCES.items():
        generator = torch.Generator().manual_seed(seed)
        out.append({"seed": seed, "draws": [{"draw": d, "gives": drawn(generator, *d)} for d in draws]})
    return out


if __name__ == "__main__":
    write_json(Path(__file__).parents[1] / "data" / "torch_random.json", record())
