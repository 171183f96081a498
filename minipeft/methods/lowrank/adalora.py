"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning. Zhang et al. 2023, https://arxiv.org/abs/2303.10512

    W' = W + s P diag(λ) Q,    s = α/(r + ε)                                  (paper, eq. 3, without s)
    loss += γ · mean of ‖Pᵀ P − I‖ and ‖Q Qᵀ − I‖ over all sites              (eq. 4, which squares the norms)

k is r, or `kept` where triplets were dropped for good; s stays that of r. In step t of T, a number w of gradient g has

    I = |w g|,   Ī ← β₁ Ī + (1 − β₁) I,   Ū ← β₂ Ū + (1 − β₂) |I − Ī|,   S = Ī Ū      (eqs. 8 to 10)
    score of triplet i:  S(λ_i) + mean S(P_·i) + mean S(Q_i·)                         (eq. 7)
    budget:  b(t) = b₁ + (b₀ − b₁) (1 − (t − tinit)/(T − tfinal − tinit))³            (eq. 12)

and every deltaT steps after tinit λ_i ← 0 but for the b(t) triplets of highest score in the whole model; they may grow
back, until at T − tfinal the choice becomes final. b₀ = r, b₁ = target_r, each times the number of sites.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of Q only.
Differs  The paper has no s, and squares the norms: orth="squared". The authors' code and HF peft have ε = 1e-5 and
         plain norms, orth="norm", as here; α ≤ 0 means α = r. I is taken at the w that g belongs to, as in the paper:
         sensitivity="before"; where HF peft is called after the optimiser, as its manual says, the w is the new one:
         sensitivity="after". Of equal scores the earlier triplet is kept; HF peft prunes all that equal the threshold,
         and cannot keep everything (target_r = r).

>>> P, Q = np.array([[1., 0.], [0., 1.]]), np.array([[1., 1.], [1., -1.]])
>>> AdaLoRA(r=2, target_r=1, alpha=2, eps=0.).change(P=P, lam=np.array([3., 0.]), Q=Q).onto(np.zeros((2, 2)))
array([[3., 3.],
       [0., 0.]])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    QUERY_VALUE,
    Bad,
    Method,
    Step,
    at_least,
    choice,
    count,
    free,
    lowrank,
    normal,
    size,
    trained,
    within,
)
from minipeft.engine import ops
from minipeft.engine.backend import to_host, xp


@dataclass(frozen=True)
class AdaLoRA(Method):
    """Singular triplets that go where they matter."""

    name = "adalora"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(12, tried=2)
    target_r: int = count(8, most="r", tried=1)
    alpha: float = free(8.0, tried=6.0)
    dropout: float = within("[0, 1)", 0.0)
    tinit: int = at_least(0, 0)
    tfinal: int = at_least(0, 0)
    deltaT: int = at_least(1, 1)
    beta1: float = within("(0, 1)", 0.85)
    beta2: float = within("(0, 1)", 0.85)
    gamma: float = at_least(0, 0.5)  # γ
    eps: float = at_least(0, 1e-5)  # ε
    orth: str = choice("norm", "squared", reading=True)
    sensitivity: str = choice("before", "after", reading=True)
    kept: int | None = count(None, least=0, most="r")

    k = size("r if kept is None else kept")
    P = trained("out", "k", start=normal(0.02))
    lam = trained("k")
    Q = trained("k", "in", start=normal(0.02))

    @property
    def scale(self) -> float:
        """s."""
        return (self.alpha if self.alpha > 0 else self.r) / (self.r + self.eps)

    def change(self, *, P: Any, lam: Any, Q: Any) -> Any:
        return self.scale * lowrank(P * lam, Q)

    def penalty(self, arrays: Mapping[str, dict[str, Any]]) -> Any:
        """γ times the mean distance of PᵀP and QQᵀ from I."""
        grams = [G for own in arrays.values() if "lam" in own for G in (own["P"].T @ own["P"], own["Q"] @ own["Q"].T)]
        total = 0.0
        for G in grams:
            off = G - xp.eye(G.shape[0], dtype=G.dtype)
            total = total + (ops.norm(off) if self.orth == "norm" else ops.sum(off * off))
        return total * (self.gamma / len(grams)) if self.gamma and grams else None

    def after_backward(self, step: Step) -> None:
        if self.tinit >= step.total - self.tfinal:
            raise Bad(
                f"{self.name}: tinit + tfinal must be less than the {step.total} steps, "
                f"found {self.tinit} + {self.tfinal}"
            )
        if self.sensitivity == "before":
            self._sense(step)

    def after_step(self, step: Step) -> None:
        if self.sensitivity == "after":
            self._sense(step)
        last = step.total - self.tfinal
        if step.t == last or (self.tinit < step.t < last and step.t % self.deltaT == 0):
            self._choose(step)
        elif step.t < last:
            return
        for site, own in step.theta.items():
            own["lam"] = xp.where(step.state[f"keep/{site}"], own["lam"], 0)

    def _sense(self, step: Step) -> None:
        """Move the averages Ī and Ū of every number."""
        if step.t >= step.total - self.tfinal:
            return
        for site, own in step.theta.items():
            for n, w in own.items():
                I, at = abs(w * step.grads[site][n]), f"{site}:{n}"
                mean = step.state[f"I/{at}"] = self.beta1 * step.state.get(f"I/{at}", 0) + (1 - self.beta1) * I
                step.state[f"U/{at}"] = self.beta2 * step.state.get(f"U/{at}", 0) + (1 - self.beta2) * abs(I - mean)

    def _choose(self, step: Step) -> None:
        """Which triplets of the whole model are kept, into the state."""
        scores = {site: self._scores(step.state, site, own["lam"]) for site, own in step.theta.items()}
        every = xp.concatenate(list(scores.values()))
        order = xp.argsort(-every, kind="stable")
        rank = xp.empty_like(order)
        rank[order] = xp.arange(len(order))
        keep = rank < self.budget(step.t, step.total, len(every), self.target_r * len(scores))
        start = 0
        for site, own in scores.items():
            step.state[f"keep/{site}"] = keep[start : start + len(own)]
            start += len(own)

    @staticmethod
    def _scores(state: Mapping[str, Any], site: str, lam: Any) -> Any:
        if f"I/{site}:lam" not in state:  # nothing was measured yet
            return xp.zeros(len(lam), lam.dtype)
        S = {n: state[f"I/{site}:{n}"] * state[f"U/{site}:{n}"] for n in ("P", "lam", "Q")}
        return S["lam"] + S["P"].mean(axis=0) + S["Q"].mean(axis=1)

    def budget(self, t: int, total: int, start: int, end: int) -> int:
        """b(t): how many triplets are kept in step t, from `start` to `end`."""
        left = 1 - (t - self.tinit) / (total - self.tfinal - self.tinit)
        return int((start - end) * min(max(left, 0), 1) ** 3 + end)


def ranks(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many triplets every site uses, from {site: {name: array}}: those whose λ is not 0."""
    return {site: int((to_host(own["lam"]) != 0).sum()) for site, own in arrays.items() if "lam" in own}
