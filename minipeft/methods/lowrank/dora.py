"""DoRA: Weight-Decomposed Low-Rank Adaptation. Liu et al. 2024, https://arxiv.org/abs/2402.09353

    V  = W + s B A,    s = α/r
    W' = diag(m / ‖V‖) V                                                      (paper, eq. 5; ‖·‖ row by row)
    E' = V diag(m_emb / ‖V‖)                                                  on an embedding; ‖·‖ column by column
    V  = W + s (B A − B0 A0)                                                  on a linear with start="svd" or "qr"

    A      (r, in)   trained   as LoRA
    B      (out, r)  trained   0
    m      (out)     trained   ‖W‖, hence W' = W before training; only with a linear
    m_emb  (d)       trained   ‖E‖; only with an embedding
    A0     (r, in)   stored    as in PiSSA, and A with it; only with start="svd" or "qr", and not on an embedding
    B0     (out, r)  stored    as in PiSSA, and B with it; only with start="svd" or "qr", and not on an embedding

Size     r (in + out) + out numbers per adapted matrix; r (V + d) + d on an embedding.
Merges   exactly: W' is an ordinary weight. The bias is not scaled.
Dropout  acts on x in the correction (W' − W) x only, never on the base output.
Differs  The paper detaches ‖V‖ from the gradient (§4.3), as HF peft, torchtune and mlx-lm do: grad="detached". LyCORIS
         differentiates it: grad="full". The paper's column norm is a norm over inputs of one output in this layout.
         start="svd" is DoRA on PiSSA's residual, "qr" on OLoRA's, as HF peft combines them.

>>> A, B, m = np.zeros((1, 2)), np.zeros((2, 1)), np.array([10., 2.])
>>> DoRA(r=1).weight(np.array([[3., 4.], [0., 1.]]), A=A, B=B, m=m)
array([[6., 8.],
       [0., 2.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops, stop_gradient
from minipeft.engine.backend import to_host
from minipeft.engine.bfloat16 import widened
from minipeft.errors import Bad
from minipeft.method import Base, Here, Site, frozen
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import choice


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA with a trained magnitude for every output."""

    grad: str = choice("detached", "full", reading=True)
    start: str = choice("zero", "svd", "qr", varied=False)  # "zero", or of the residual of "svd" or "qr"
    name: ClassVar[str] = "dora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "svd" and self.alpha <= 0:
            raise Bad(f"dora: alpha must be positive with start='svd', found {self.alpha}")
        if self.lora_bias:
            raise Bad("dora: lora_bias has no meaning beside a magnitude")

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        arrays = super().init(site, rng)
        W = to_host(widened(site.W))  # the same bits on every device
        embedding = site.kind == "embedding"
        if self.start != "zero" and not embedding:
            arrays = self.first(site, self.start)
            arrays |= dict(A0=frozen(arrays["A"]), B0=frozen(arrays["B"]))
        return arrays | {"m_emb" if embedding else "m": np.sqrt((W * W).sum(axis=0 if embedding else 1))}

    def weight(
        self, W: Any, *, A: Any, B: Any, m: Any = None, m_emb: Any = None, A0: Any = None, B0: Any = None
    ) -> Any:
        V = self.residual(W, A0, B0) + self.scale * (B @ A)
        n = ops.norm(V, axis=1 if m_emb is None else 0)
        n = stop_gradient(n) if self.grad == "detached" else n
        return V * ((m / n)[:, None] if m_emb is None else m_emb / n)

    def residual(self, W: Any, A0: Any, B0: Any) -> Any:
        """W without what the factors began with."""
        return W if A0 is None else W - self.scale * (B0 @ A0)

    def forward(self, x: Any, base: Base, here: Here, **arrays: Any) -> Any:
        W = self.weight(base.W, **arrays)
        if base.table:
            return ops.take(W, ids=x)
        if not (here.train and self.dropout):
            return ops.linear(x, W, base.b)
        A0, B0 = arrays.get("A0"), arrays.get("B0")
        correction = W - self.residual(base.W, A0, B0)
        y = base(x) if A0 is None else ops.add_lowrank(base(x), x, A0, B0, s=-self.scale)
        return y + ops.linear(here.dropout(x, self.dropout), correction)
