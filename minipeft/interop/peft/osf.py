"""OSF in PEFT: the part of the decomposition that is trained, as large as the effective rank leaves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minipeft.drawing import Facts
from minipeft.errors import Bad
from minipeft.interop.peft.fields import COMMON, INIT, RANK, TARGETS, WHOLE, Config, pattern, plain, read
from minipeft.interop.peft.names import HERE, Naming
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.method import Site, method_class
from minipeft.model.parts import PATCHES
from minipeft.patterns import matches

KNOWN = COMMON | TARGETS | WHOLE | INIT | {
    "effective_rank": read(RANK),
    "rank_pattern": read(pattern(RANK)),
    "target_svd_config": plain("PEFT does not read it"),
}  # fmt: skip


def _at_site(config: Config, arrays: Mapping[str, Any]) -> Config:
    if len(arrays) < 3:
        return {}
    return dict(effective_rank=min(len(arrays["U"]), arrays["V"].shape[1]) - len(arrays["S"]))


def _absent(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """What the effective rank leaves; the first pattern holds that is found anywhere in a name. Raises `Bad` for other ranks."""
    cls: Any = method_class("osf")
    ranks = config.get("rank_pattern") or {}
    modules = {site: own[site].rpartition(".")[0] for site in found}
    named = matches(list(ranks), modules.values(), f"{HERE}: rank_pattern:", "search")
    for site, arrays in found.items():
        own_ranks = [rank for rank, names in zip(ranks.values(), named, strict=True) if modules[site] in names]
        rank = own_ranks[0] if own_ranks else config["effective_rank"]
        wanted = Facts(cls(effective_rank=RANK.of(rank)), every[site])["l"]
        if "S" in arrays and len(arrays["S"]) != wanted:
            what = "rank_pattern" if own_ranks else "effective_rank"
            raise Bad(
                f"{HERE}: {what}={rank} leaves {wanted} at {modules[site]}, the file's rank is {len(arrays['S'])}"
            )
    yield from ()


def _passes(naming: Naming, site: Site) -> bool:
    """All but linears that are stored as (out, in)."""
    module = site.name.removesuffix(".weight")
    return site.kind != "linear" or site.name == PATCHES or naming.model.names.is_transposed(module)


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
    absent=_absent,
    passes=_passes,
    wide=("peft.tuners.osf.utils",),
    trials=(Trial("llama", dict(effective_rank=5), dict(targets="k_proj o_proj")),),
)
