"""Fine-tune the decoder that comes with the package on labelled text, and see what it learned and what it kept."""

import sys

from minipeft import fit
from minipeft.adapted import Adapted
from minipeft.compare import judge, prepare, start, text_loss
from minipeft.methods.lowrank.lora import LoRA
from minipeft.train import AdamW

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
task = prepare(steps=steps, held_out=300)
begun = start(task, LoRA(r=8, targets="all-linear"))
done = fit(begun, task.train, steps=steps, optimiser=AdamW(lr=1e-2), schedule="linear", clip=1.0)

for name, model in {"before": begun, "after": done.adapted}.items():
    loss, accuracy = judge(model, task.test)
    print(
        f"{name:7} held-out loss {loss:.3f}, accuracy {100 * accuracy:.1f} %, loss on plain text {text_loss(model, task):.3f}"
    )
print("adapter switched off, on plain text:", f"{text_loss(Adapted(task.model), task):.3f}")
