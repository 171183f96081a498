"""Poly in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import COMMON, COUNT, EXCLUDED, INIT, TARGETS, WHOLE, among, needed, read
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | EXCLUDED | WHOLE | INIT | {
    "r": needed(COUNT, 8),
    "poly_type": read(among("poly"), "poly"),
    "n_tasks": needed(COUNT, 1),
    "n_skills": needed(COUNT, 4),
    "n_splits": needed(COUNT, 1),
}  # fmt: skip
SIZES = ("r", "n_tasks", "n_skills", "n_splits")

SPEC = Spec(
    "POLY",
    KNOWN,
    keys={
        "A": Key("poly_lora_A", size="(n_splits, n_skills, in/n_splits, r)"),
        "B": Key("poly_lora_B", size="(n_splits, n_skills, r, out/n_splits)"),
        "Z": Key("poly_router.module_logits", size="(n_tasks, n_splits n_skills)"),
    },
    settings={k: k for k in SIZES},
    writes=lambda m, arch: dict(poly_type="poly"),
    tasked=True,
    trials=(Trial("llama", dict(r=2, n_tasks=2, n_skills=3, n_splits=2)),),
)
