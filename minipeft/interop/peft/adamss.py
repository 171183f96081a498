"""AdaMSS in PEFT: A and B cluster by cluster. Which output is in which cluster PEFT finds from the base anew, and so do we."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.errors import Bad
from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    FLAG,
    LAYERED,
    ONLY_STARTS,
    POSITIVE,
    RATE,
    SEED,
    TARGETS,
    WHOLE,
    Config,
    needed,
    plain,
    read,
    whole,
)
from minipeft.interop.peft.spec import Key, Packing, Spec, Trial
from minipeft.model.arch import Arch

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | {
    "r": needed(COUNT, 100),
    "num_subspaces": needed(whole(1, 1024), 5),
    "subspace_rank": needed(COUNT, 1),
    "use_dynamic_rank": read(FLAG, False),
    "svd_threshold": read(RATE, 0.1),
    "random_seed": read(SEED, 0),
    "init_weights": plain(ONLY_STARTS, "orthogonal"),
    "use_asa": read(FLAG, False),
    "asa_target_subspaces": read(COUNT, 50),
    "init_warmup": read(whole(0), 50),
    "final_warmup": read(COUNT, 1000),
    "mask_interval": read(COUNT, 100),
    "asa_importance_beta": read(RATE, 0.85),
    "asa_uncertainty_beta": read(RATE, 0.85),
    "asa_schedule_exponent": read(POSITIVE, 3.0),
}  # fmt: skip
Arrays = Mapping[str, Any]
V = Key("adamss_newB", size="(min(r, out, in + 1), in + 1), without the 1 where the base has no bias")


def _keys(config: Config, arch: Arch) -> dict[str, Any]:
    """A key for each cluster's arrays."""
    both = [(n, k) for k in range(config["num_subspaces"]) for n in "AB"]
    return dict(keys={"V": V} | {f"{n}{k}": Key(f"adamss_{n}.{k}") for n, k in both})


def _clusters(beside: Arrays) -> list[tuple[int, Any, int]]:
    """Each cluster's number, rows and rank. Raises `Bad` where the weight does not tell them."""
    q, out, K = beside["A"].shape[2], len(beside["c"]), len(beside["ranks"])
    if q == out and 1 < K < out:  # all rows of an orthogonal U are as far from each other
        raise Bad(
            f"adamss: which of {out} outputs are in which of {K} clusters is not in PEFT's files: with r ≥ {out}, all of a weight's "
            f"directions, the last bits of its float32 decide it; expected r below {out}, one cluster, or one for each output"
        )
    return [(k, beside["c"] == k, int(n)) for k, n in enumerate(beside["ranks"])]


def _parts(own: Arrays, beside: Arrays) -> Arrays:
    out: dict[str, Any] = {}
    for k, rows, n in _clusters(beside):
        out |= {f"A{k}": own["A"][k, :n]} if "A" in own else {}
        out |= {f"B{k}": own["B"][rows, :n]} if "B" in own else {}
    if "V" in own:
        out["V"] = np.column_stack([own["V"], own["v"]]) if "v" in own else own["V"]
    return out


def _together(parts: Arrays, beside: Arrays) -> Arrays:
    A, B = (np.zeros(beside[n].shape, parts[f"{n}0"].dtype) for n in "AB")
    for k, rows, n in _clusters(beside):
        A[k, :n], B[rows, :n] = parts[f"A{k}"], parts[f"B{k}"]
    in_ = beside["V"].shape[1]
    more = {"V": parts["V"][:, :in_]} | ({"v": parts["V"][:, in_]} if "v" in beside else {}) if "V" in parts else {}
    return dict(A=A, B=B) | more


SPEC = Spec(
    "ADAMSS",
    KNOWN,
    keys={
        "V": V,
        "A{k}": Key("adamss_A.{k}", size="(ρ_k, min(r, out, in + 1)), of cluster k"),
        "B{k}": Key("adamss_B.{k}", size="(its rows, ρ_k)"),
    },
    settled=_keys,
    packing=Packing(("A", "B", "v"), _together, _parts),
    settings=dict(
        r="r", subspaces="num_subspaces", rank="subspace_rank", dynamic="use_dynamic_rank", threshold="svd_threshold", seed="random_seed",
        asa="use_asa", target="asa_target_subspaces", first="init_warmup", last="final_warmup", interval="mask_interval",
        beta1="asa_importance_beta", beta2="asa_uncertainty_beta", gamma="asa_schedule_exponent",
    ),
    trials=(
        Trial("llama", dict(r=5, subspaces=3, rank=2)),
        Trial("bert-cls", dict(r=4, subspaces=4, rank=3, dynamic=True, seed=7), dict(targets="attn.q.weight mlp.down.weight"), name="dynamic"),
    ),
)  # fmt: skip
