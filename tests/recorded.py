"""The adapters that PEFT has written into tests/data/peft."""

from pathlib import Path

ROOT = Path(__file__).parent / "data" / "peft"
CASES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*/*") if p.name != "base")
COARSE = {  # what is computed in less than float64 there, and why
    "llama/loftq-rounds": "bitsandbytes holds the scales of what the rounds before leave in float32",
    "llama/oft-coft": "PEFT measures the rotation against a radius in float32",
    "bert-cls/waveft-sym6": "PEFT's filter is right to 10⁻¹² alone",
}
# PEFT finds the singular vectors anew: how far apart the two are depends on the processor
ANEW = {c for c in CASES if "/psoft" in c}
