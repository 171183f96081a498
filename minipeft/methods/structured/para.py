"""PaRa: Personalizing Text-to-Image Diffusion via Parameter Rank Reduction. Chen et al. 2024, https://arxiv.org/abs/2406.05641

    W' = (I − Q Zᵀ) W
    Q = Z,  P = Q U, U upper triangular, QᵀQ = I            projector="qr": a space of r directions is taken out of W
    Q = P,  Z = max(P, 0)                                   projector="relu"

where an r beyond out counts as out.

Merges   exactly: W' is an ordinary weight.
Differs  The paper has projector="qr" alone; the other is DEFT's, which HF peft offers here too. P must have full rank. HF peft computes in float32.

>>> PaRa(r=1).weight(np.array([[1., 2.], [3., 4.]]), P=np.array([[0.], [2.]])).round(9) + 0
array([[1., 2.],
       [0., 0.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, count, normal, qr, size, trained
from minipeft.engine import ops


@dataclass(frozen=True)
class PaRa(Method):
    """A few directions of the outputs taken out of the weight."""

    name = "para"
    identity = False
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(8, small=4, tried=2)
    projector: str = choice("qr", "relu")

    k = size("min(r, out)")
    P = trained("out", "k", start=normal(0.02))

    def projector_of(self, P: Any) -> tuple[Any, Any]:
        """Q, Z."""
        return (P, ops.relu(P)) if self.projector == "relu" else (qr(P),) * 2

    def weight(self, W: Any, *, P: Any) -> Any:
        Q, Z = self.projector_of(P)
        return W - Q @ (Z.T @ W)
