"""One method is one equation: DoRA's merged weight has the row norms that its magnitude says."""

import numpy as np

from minipeft import Adapted, attach, merge
from minipeft.conformance import tiny
from minipeft.methods.lowrank.dora import DoRA

model = tiny.model("llama")
adapted = attach(model, DoRA(r=2), targets="layers.0.attn.q.weight")
rng = np.random.default_rng(1)
moved = adapted.replace({k: v + rng.standard_normal(v.shape) for k, v in adapted.theta.items()})

merged = merge(moved)
m = moved.theta["default/layers.0.attn.q.weight:m"]
norms = np.linalg.norm(merged.params["layers.0.attn.q.weight"], axis=1)
batch = tiny.example(model)
print("row norms equal m:", np.allclose(norms, np.abs(m)))
print("merged equals adapted:", np.allclose(Adapted(merged).logits(batch), moved.logits(batch)))
