"""KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models. Wang et al. 2024, https://arxiv.org/abs/2412.06071

    W' = (W − B0 A0) + s B diag(d) A,    s = α/r as LoRA                      (paper, §3)
    loss += Σ β Σ d² + γ (‖Bᵀ B − I‖ + ‖A Aᵀ − I‖)    over all sites          (eqs. 9 to 12)

B0 A0 is the part of W along its r smallest singular values: noise, it is held, that training is to fill again. So the
adapted model is not the base before training.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, not on that of A0.
Differs  HF peft writes what is left over the base, each KaSA adapter anew, and taking the adapter out gives that; here the base
         stays and A0, B0 stand beside it. It decomposes in float32, we in float64, and leaves the penalty to the user.

>>> A0, B0, one = np.array([[0., 1.]]), np.array([[0.], [1.]]), np.array([[1., 0.]])           # of W = diag(4, 1)
>>> KaSA(r=1, alpha=1).change(A=one, B=one.T, d=np.array([3.]), A0=A0, B0=B0).onto(np.diag([4., 1.]))
array([[7., 0.],
       [0., 0.]])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.declare import at_least, found, lowrank, normal, requires, shift, steady, stored, trained
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.factors import singular
from minipeft.methods.lowrank.lora import LoRA


def _minor(method: Any, facts: Any) -> dict[str, Any]:
    U, S, Vt = singular(f"{method.name}: {facts['site']}", facts.W)
    return dict(A0=Vt[-method.r :], B0=U[:, -method.r :] * S[-method.r :])


MINOR = found(_minor, "V_rᵀ or U_r Σ_r, of W's last r triples")


@dataclass(frozen=True)
class KaSA(LoRA):
    """LoRA with singular values of its own, in place of W's smallest."""

    name = "kasa"
    takes = "linears"
    identity = False
    beta: float = at_least(0, 1e-4)  # β
    gamma: float = at_least(0, 1e-3)  # γ

    rank = requires("r < min(in, out)", "r must be less than {min(in, out)}, found {r}")
    d = trained("r", start=normal())
    A0 = stored("r", "in", start=MINOR)
    B0 = stored("out", "r", start=MINOR)

    def change(self, *, A: Any, B: Any, d: Any, A0: Any, B0: Any, c: Any = None) -> Any:
        return self.scale * (lowrank(B * d, A) + shift(c)) - steady(lowrank(B0, A0))

    def penalty(self, arrays: Mapping[str, dict[str, Any]]) -> Any:
        total: Any = 0.0
        for own in (a for a in arrays.values() if "d" in a) if self.beta or self.gamma else ():
            A, B, d = own["A"], own["B"], own["d"]
            off = [G - xp.eye(G.shape[0], dtype=G.dtype) for G in (B.T @ B, A @ A.T)]
            total = total + self.beta * ops.sum(d * d) + self.gamma * (ops.norm(off[0]) + ops.norm(off[1]))
        return total if self.beta or self.gamma else None
