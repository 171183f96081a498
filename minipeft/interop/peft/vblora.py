"""VB-LoRA in PEFT: the bank that all modules share, and each module's logits, or what was chosen by them."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    FLAG,
    LAYERED,
    ONLY_STARTS,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | {
    "r": needed(COUNT, 4),
    "num_vectors": needed(COUNT, 256),
    "vector_length": needed(COUNT, 256),
    "topk": needed(COUNT, 2),
    "save_only_topk_weights": read(FLAG, False),
    "vblora_dropout": read(RATE, 0.0),
    "init_vector_bank_bound": plain(ONLY_STARTS, 0.02),
    "init_logits_std": plain(ONLY_STARTS, 0.1),
}  # fmt: skip

LOGARITHMS = "PEFT takes logarithms of saved shares, and what they leave of 1, in float32"
PIECES = {"A": "r, in/b", "B": "out/b, r"}

SPEC = Spec(
    "VBLORA",
    KNOWN,
    keys={f"logits_{k}": Key(f"vblora_logits_{k}", size=f"({n}, h)") for k, n in PIECES.items()}
    | {
        f"chosen_{k}": Key(f"vblora_logits_{k}_topk_indices", size=f"({n}, topk)", whole=True)
        for k, n in PIECES.items()
    }
    | {
        f"shares_{k}": Key(f"vblora_logits_{k}_topk_weights", float32=True, empty=True, size=f"({n}, topk − 1)")
        for k, n in PIECES.items()
    },
    root_keys={"bank": Key("base_model.vblora_vector_bank", size="(h, b)")},
    settings=dict(
        r="r",
        num_vectors="num_vectors",
        vector_length="vector_length",
        topk="topk",
        only_topk="save_only_topk_weights",
        dropout="vblora_dropout",
    ),
    keeps=lambda config: True,
    writes=lambda m, arch: transposed(arch),
    notes="the last weight of a piece is what the others leave of 1",
    trials=(
        Trial("llama", dict(r=2, num_vectors=9, vector_length=4, topk=3)),
        Trial(
            "gpt2", dict(r=2, num_vectors=6, vector_length=4, topk=3, only_topk=True), name="chosen", inexact=LOGARITHMS
        ),
        Trial("llama", dict(r=2, num_vectors=6, vector_length=4, topk=1, only_topk=True), name="one chosen"),
    ),
)
