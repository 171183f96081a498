"""DoRA: Weight-Decomposed Low-Rank Adaptation. Liu et al. 2024, https://arxiv.org/abs/2402.09353

    V  = W + s B A,    s = α/r
    W' = diag(m / ‖V‖) V                                                      (paper, eq. 5; ‖·‖ row by row)
    E' = V diag(m_emb / ‖V‖)                                                  on an embedding; ‖·‖ column by column
    V  = W + s (B A − B0 A0)                                                  on a linear with start="svd" or "qr"

Merges   exactly: W' is an ordinary weight. The bias is not scaled.
Differs  The paper detaches ‖V‖ from the gradient (§4.3), as HF peft, torchtune and mlx-lm do: grad="detached"; LyCORIS
         does not: grad="full". start="svd" is DoRA on PiSSA's residual, "qr" on OLoRA's, as HF peft combines them.

>>> DoRA(r=1).weight(np.array([[3., 4.]]), A=np.zeros((1, 2)), B=np.zeros((1, 1)), m=np.array([10.]))
array([[6., 8.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QR_PART, SVD_PART, choice, either, lowrank, norms, requires, same, steady, stored, trained
from minipeft.engine import ops, stop_gradient
from minipeft.methods.lowrank.lora import LoRA

RESIDUAL, PART = "start != 'zero' and not embedding", either("start == 'qr'", QR_PART, SVD_PART)


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA with a trained magnitude for every output."""

    name = "dora"
    grad: str = choice("detached", "full", reading=True)
    start: str = choice("zero", "svd", "qr", varied=False)  # "zero", or of the residual of "svd" or "qr"
    positive = requires("alpha > 0", "alpha must be positive with start='svd', found {alpha}", when="start == 'svd'")
    no_bias = requires("not lora_bias", "lora_bias has no meaning beside a magnitude")
    rank = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}", when=RESIDUAL)
    A = trained("r", "in", start=either(RESIDUAL, PART, LoRA.A.start))
    B = trained("out", "r", start=either(RESIDUAL, PART, LoRA.B.start))
    A0 = stored("r", "in", start=same("A"), when=RESIDUAL)
    B0 = stored("out", "r", start=same("B"), when=RESIDUAL)
    m = trained("out", start=norms(axis=1), when="not embedding")
    m_emb = trained("d", start=norms(axis=0), when="embedding")

    def change(self, *, A: Any, B: Any, A0: Any = None, B0: Any = None, **magnitude: Any) -> Any:
        return self.scale * (lowrank(B, A) if A0 is None else lowrank(B, A) - steady(lowrank(B0, A0)))

    def weight(self, W: Any, *, m: Any = None, m_emb: Any = None, **factors: Any) -> Any:
        V = self.change(**factors).onto(W)
        n = ops.norm(V, axis=1 if m_emb is None else 0)
        n = stop_gradient(n) if self.grad == "detached" else n
        return V * ((m / n)[:, None] if m_emb is None else m_emb / n)
