"""OSF in PEFT: the part of the decomposition that is trained; the effective rank is what the file's arrays leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.interop.peft.fields import COMMON, INIT, RANK, TARGETS, WHOLE, Config, plain, read
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | WHOLE | INIT | {
    "effective_rank": read(RANK),
    "rank_pattern": plain("the file's arrays have the rank that is left"),
    "target_svd_config": plain("the file's arrays have the rank that is left"),
}  # fmt: skip


def _at_site(config: Config, arrays: Mapping[str, Any]) -> Config:
    if len(arrays) < 3:
        return {}
    return dict(effective_rank=min(len(arrays["U"]), arrays["V"].shape[1]) - len(arrays["S"]))


SPEC = Spec(
    "OSF",
    KNOWN,
    keys={
        "U": Key("osf_svd_params.U_low", empty=True, size="(out, l)"),
        "S": Key("osf_svd_params.S_low", empty=True, size="(l)"),
        "V": Key("osf_svd_params.V_low", empty=True, size="(l, in)"),
    },
    settings=dict(effective_rank="effective_rank"),
    patterns=dict(rank_pattern="effective_rank"),
    at_site=_at_site,
    wide=("peft.tuners.osf.utils",),
    trials=(Trial("llama", dict(effective_rank=5), dict(targets="k_proj o_proj")),),
)
