"""DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models. Kumar et al. 2025, https://proceedings.neurips.cc/paper_files/paper/2025/hash/93a34a7138bdad95e874018d5f491cc6-Abstract-Conference.html

    W' = (I − Q Zᵀ) W + s Q R,    s = α/r, or 1 without α
    Q = P, Z = max(P, 0)                                    projector="relu"
    Q = Z,  P = Q U, U upper triangular, QᵀQ = I            projector="qr"

where an r beyond out counts as out.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of R alone.
Differs  R starts as ZᵀW/s, so that W' = W, as in HF peft; with start="normal", DEFT's own, as
         small random numbers. A QR leaves the signs of Q's columns open, and s Q R depends on them: they are those of
         LAPACK's reflections, as in HF peft, −1 times the pivot's. P must have full rank. HF peft computes in float32.

>>> DEFT(r=1).weight(np.eye(2), P=np.array([[2.], [-1.]]), R=np.array([[0., 10.]]))  # Q Zᵀ = [[4, 0], [−2, 0]]
array([[-3., 20.],
       [ 2., -9.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import Base, Here, choice, either, found, normal, positive, trained, within
from minipeft.engine import ops
from minipeft.methods.structured.para import PaRa


def kept(method: Any, facts: Any) -> Any:
    """R with which nothing changes."""
    P = facts.drawn["P"]
    Z = np.maximum(P, 0) if method.projector == "relu" else np.linalg.qr(P)[0]
    return Z.T @ facts.W / method.scale_of(P)


@dataclass(frozen=True)
class DEFT(PaRa):
    """A low-rank part of the weight taken out, and another put in its place."""

    name = "deft"
    projector: str = choice("relu", "qr")
    alpha: float | None = positive(None, tried=6.0)  # None: s = 1
    start: str = choice("kept", "normal")
    dropout: float = within("[0, 1)", 0.0)

    R = trained("k", "in", start=either("start == 'kept'", found(kept, "ZᵀW/s"), normal(0.02)))

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only where R makes up for what is taken out."""
        return self.start == "kept"

    def scale_of(self, P: Any) -> float:
        """s."""
        return 1.0 if self.alpha is None else self.alpha / P.shape[1]

    def weight(self, W: Any, *, P: Any, R: Any) -> Any:
        Q, Z = self.projector_of(P)
        return W + Q @ (self.scale_of(P) * R - Z.T @ W)

    def forward(self, x: Any, base: Base, here: Here, *, P: Any, R: Any) -> Any:
        Q, Z = self.projector_of(P)
        y = base(x) - ops.linear(x, Q @ (Z.T @ base.W))
        return ops.add_lowrank(y, here.dropout(x, self.dropout), R, Q, s=self.scale_of(P))
