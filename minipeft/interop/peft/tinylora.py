"""TinyLoRA in PEFT: the trained vectors, a key for each group; every module's factors, and its random matrices if they are kept."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    ANY,
    BIASES,
    COMMON,
    CONV,
    COUNT,
    FLAG,
    LAYERED,
    ONLY_STARTS,
    RATE,
    SEED,
    TARGETS,
    WHOLE,
    Kind,
    is_number,
    needed,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

SHARE = Kind("a number in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1, float)
KNOWN = COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | {
    "r": needed(COUNT, 2),
    "u": needed(COUNT, 64),
    "weight_tying": needed(SHARE, 0.0),
    "projection_seed": needed(SEED, 42),
    "save_projection": read(FLAG, True),
    "tinylora_dropout": read(RATE, 0.0),
    "init_weights": plain(ONLY_STARTS, True, ANY),
    "init_v_bound": plain(ONLY_STARTS, 0.02),
}  # fmt: skip
KEYS = {
    "A": Key("tinylora_A", size="(k, in)"),
    "B": Key("tinylora_B", size="(out, k)"),
    "P": Key("tinylora_P", size="(u, k, k)"),
}

SPEC = Spec(
    "TINYLORA",
    KNOWN,
    keys=KEYS,
    root_keys={"v": Key("base_model.tinylora_v", size="(u) and a number for each group", numbered=True)},
    settings=dict(r="r", u="u", weight_tying="weight_tying", seed="projection_seed", dropout="tinylora_dropout"),
    settled=lambda config, arch: {} if config["save_projection"] else dict(keys={k: KEYS[k] for k in "AB"}),
    keeps=lambda config: True,
    writes=lambda m, arch: transposed(arch) | dict(save_projection=True),
    trials=(
        Trial("llama", dict(r=3, u=4, weight_tying=0.4), dict(targets="q_proj v_proj down_proj")),
        Trial("llama", dict(r=2, u=3), dict(targets="embed_tokens q_proj"), name="embedding"),
    ),
)
