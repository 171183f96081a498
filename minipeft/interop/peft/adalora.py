"""AdaLoRA in PEFT: P, Λ and Q as `lora_B`, `lora_E` and `lora_A`; what was pruned is not in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import (
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    ONLY_STARTS,
    RATE,
    Config,
    Kind,
    needed,
    plain,
    read,
    refused,
    whole,
)
from minipeft.interop.peft.lora import FACTORS, refuse_shared
from minipeft.interop.peft.names import HERE
from minipeft.interop.peft.spec import Key, Spec, Trial, column, transposed, vector
from minipeft.limits import PATTERNS, WHOLE
from minipeft.method import Site
from minipeft.model.arch import Arch


def _is_kept(v: Any) -> bool:
    return isinstance(v, list) and len(v) <= WHOLE and all(isinstance(x, bool) for x in v)


KEPT = Kind(
    "null or a dictionary from keys of lora_E to lists of true and false",
    lambda v: v is None or (isinstance(v, dict) and len(v) <= PATTERNS and all(map(_is_kept, v.values()))),
)
NONE = "of LoRA's layers; AdaLoRA's pass over it"
KNOWN = FACTORS | {
    "r": plain("AdaLoRA starts with init_r", 8),
    "init_r": needed(COUNT, 12),
    "target_r": needed(COUNT, 8),
    "lora_alpha": needed(NUMBER, 8),
    "rank_pattern": read(KEPT),
    "alpha_pattern": plain("AdaLoRA has one lora_alpha", {}),
    "use_rslora": plain("AdaLoRA scales by lora_alpha alone", False),
    "lora_bias": plain("AdaLoRA has none", False),
    "init_lora_weights": plain(ONLY_STARTS, True),
    "qalora_group_size": plain(NONE, 16),
    "use_qalora": plain(NONE, False),
    **dict.fromkeys(
        ("velora_config", "alora_invocation_tokens", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config"),
        plain(NONE),
    ),
    "target_parameters": refused("PEFT itself fails"),
    "use_dora": refused("PEFT has none for AdaLoRA", False),
    "loftq_config": refused("PEFT has none for AdaLoRA", {}),
    "tinit": needed(whole(0), 0),
    "tfinal": needed(whole(0), 0),
    "deltaT": needed(COUNT, 1),
    "beta1": needed(RATE, 0.85),
    "beta2": needed(RATE, 0.85),
    "orth_reg_weight": needed(NOT_NEGATIVE, 0.5),
    "total_step": plain("when training ends"),
}


def _reads(config: Config, arch: Arch) -> Config:
    return dict(target_r=min(config["target_r"], config["init_r"]), sensitivity="after")


def _writes(m: Any, arch: Arch) -> Config:
    return transposed(arch) | dict(total_step=m.tinit + m.tfinal + 1)


def _kept(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    """Which directions of each module are left, the first ones, where some are gone."""
    methods: dict[str, Any] = {site: adapter.at[site] for site in modules}
    if all(m.kept is None for m in methods.values()):
        return {}
    used = {f"{module}.lora_E": len(adapter.arrays[f"{site}:lam"]) for site, module in modules.items()}
    r = adapter.method.r  # type: ignore[attr-defined]
    return dict(rank_pattern={key: [n < k for n in range(r)] for key, k in used.items()})


def _absent(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """As many directions a module as rank_pattern says, all init_r where it says nothing. Raises `Bad` for others."""
    kept = {key.partition(".lora_E")[0]: flags for key, flags in (config["rank_pattern"] or {}).items()}
    for site, arrays in found.items():
        module, has = own[site].rpartition(".")[0], len(arrays.get("lam", ()))
        flags = kept.pop(module, None)
        if flags is not None and len(flags) != config["init_r"]:
            raise Bad(
                f"{HERE}: rank_pattern: {module}: expected {config['init_r']} of true and false, found {len(flags)}"
            )
        wanted = config["init_r"] if flags is None else sum(flags)
        if "lam" in arrays and has != wanted:
            said = f"init_r={wanted}" if flags is None else f"rank_pattern leaves {wanted}"
            raise Bad(f"{HERE}: {said} at {module}, the file's rank is {has}")
    if kept:
        raise Bad(f"{HERE}: rank_pattern names {next(iter(kept))}, which has no tensors")
    yield from ()


KEYS = {
    "P": Key("lora_B", empty=True, size="(out, r)"),
    "Q": Key("lora_A", empty=True, size="(r, in)"),
    "lam": Key("lora_E", vector, column, (None, 1), empty=True, size="(r, 1)"),
}

SPEC = Spec(
    "ADALORA",
    KNOWN,
    keys=KEYS,
    patches=KEYS,
    settings=dict(
        r="init_r", target_r="target_r", alpha="lora_alpha", dropout="lora_dropout", tinit="tinit", tfinal="tfinal", deltaT="deltaT",
        beta1="beta1", beta2="beta2", gamma="orth_reg_weight",
    ),
    reads=_reads,
    writes=_writes,
    at_site=lambda config, arrays: dict(kept=len(arrays.get("lam", ()))),
    of_adapter=_kept,
    examine=refuse_shared,
    absent=_absent,
    readings=dict(sensitivity="*", orth="norm"),
    trials=(
        Trial("llama", dict(r=4, target_r=2)),
        Trial("gpt2", dict(r=4, target_r=2, kept=3), name="kept"),
        Trial("vit-channels", dict(r=4, target_r=2), dict(targets="projection q_proj"), name="patches"),
    ),
)  # fmt: skip
