"""Several adapters on one base: switched on and off, together, and folded in."""

import numpy as np

from minipeft import Adapted, attach, merge
from minipeft.conformance import tiny
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.methods.scaling.ia3 import IA3

model = tiny.model("llama")
batch = tiny.example(model)
adapted = attach(
    attach(attach(model, LoRA(r=2), name="english"), IA3(), name="polite"), PromptTuning(p=3), name="terse"
)
rng = np.random.default_rng(0)
adapted = adapted.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})

base = adapted.using().logits(batch)
for names in [("english",), ("polite",), ("english", "polite"), ("terse",)]:
    logits = adapted.using(*names).logits(batch)
    print(f"{' + '.join(names):18} logits {logits.shape}, moved by {abs(logits[:, -base.shape[1] :] - base).max():.3f}")

both = adapted.using("english", "polite")
merged = Adapted(merge(both)).logits(batch)
print("two folded into one weight:", np.allclose(merged, both.logits(batch)))
