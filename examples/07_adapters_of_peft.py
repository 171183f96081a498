"""Adapters of Hugging Face PEFT: write one, read it, fold it into an ordinary checkpoint."""

import tempfile
from pathlib import Path

import numpy as np

from minipeft import Adapted, attach, load, load_peft, save_merged, save_peft
from minipeft.conformance import tiny
from minipeft.data import BASE
from minipeft.methods.lowrank.lora import LoRA

model = load(BASE)
adapted = attach(model, LoRA(r=4), targets="q_proj v_proj")
rng = np.random.default_rng(0)
adapted = adapted.replace(
    {k: (v + 0.02 * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in adapted.theta.items()}
)
batch = tiny.example(model)

with tempfile.TemporaryDirectory() as folder:
    save_peft(adapted, Path(folder) / "adapter")  # PeftModel.from_pretrained reads this
    print(*sorted(p.name for p in (Path(folder) / "adapter").iterdir()))
    again = load_peft(model, Path(folder) / "adapter")
    print("the same logits:", np.array_equal(again.logits(batch), adapted.logits(batch)))
    merged = Path(folder) / "merged"
    save_merged(again, BASE, merged, dtype="float32")  # AutoModelForCausalLM.from_pretrained reads this
    print("folded in:", np.abs(Adapted(load(merged)).logits(batch) - again.logits(batch)).max() < 1e-4)
