"""Frozen means frozen: momentum and weight decay cannot reach what is not trained, not even single elements of a weight."""

import numpy as np

from minipeft import attach, fit, merge
from minipeft.conformance import tiny
from minipeft.methods.selective.shira import SHiRA
from minipeft.train import AdamW

model = tiny.model("gpt2")
adapted = attach(model, SHiRA(r=1))
before = model.digest()
done = fit(adapted, [tiny.example(model)], steps=20, optimiser=AdamW(lr=0.05, weight_decay=0.1)).adapted
print("base, bit for bit:", done.model.digest() == before)

for site in done.adapters[0].at:
    arrays = done.adapters[0].grouped()[site]
    changed = merge(done).params[site] != model.params[site]
    allowed = np.zeros_like(changed)
    allowed[arrays["rows"], arrays["cols"]] = True
    print(
        f"{site}: {changed.sum()} of {changed.size} elements changed, all of them allowed: {not (changed & ~allowed).any()}"
    )
try:
    model.params["embed.tokens.weight"][0, 0] = 1.0
except ValueError as why:
    print("a write to the base:", why)
