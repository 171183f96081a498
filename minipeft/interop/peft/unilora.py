"""Uni-LoRA in PEFT: one vector. A file may leave out the places and factors of the elements, which are then made again."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    FLAG,
    INIT,
    LAYERED,
    ONLY_STARTS,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    plain,
    read,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "r": needed(COUNT, 4),
    "theta_d_length": needed(COUNT, 256),
    "proj_seed": needed(whole(0), 42),
    "save_indices": read(FLAG, False),
    "unilora_dropout": read(RATE, 0.0),
    "init_theta_d_bound": plain(ONLY_STARTS, 0.02),
}  # fmt: skip

SPEC = Spec(
    "UNILORA",
    KNOWN,
    keys={
        "I_A": Key("unilora_indices_A", size="(r, in)", whole=True),
        "s_A": Key("unilora_scales_A", size="(r, in)"),
        "I_B": Key("unilora_indices_B", size="(out, r)", whole=True),
        "s_B": Key("unilora_scales_B", size="(out, r)"),
    },
    root_keys={"theta": Key("base_model.unilora_theta_d", size="(d)")},
    settings=dict(r="r", length="theta_d_length", seed="proj_seed", dropout="unilora_dropout"),
    settled=lambda config, arch: {} if config["save_indices"] else dict(keys={}),
    keeps=lambda config: True,
    writes=lambda m, arch: transposed(arch) | dict(save_indices=True),
    wide=("peft.tuners.unilora.model",),
    trials=(Trial("llama", dict(r=3, length=50)),),
)
