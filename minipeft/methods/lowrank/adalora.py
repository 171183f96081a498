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
Differs  The paper has no s, and squares the norms: orth="squared"; code and HF peft have ε = 1e-5 and plain norms, as here;
         α ≤ 0 means α = r. I is taken at the w of g, as in the paper: sensitivity="before"; by HF peft's manual at the new
         w: "after". Of equal scores the earlier is kept; HF peft prunes all, and cannot keep all (target_r = r).

>>> P, Q = np.array([[1., 2.]]), np.array([[1., 1.], [1., -1.]])
>>> AdaLoRA(r=2, target_r=1, alpha=2, eps=0.).change(P=P, lam=np.array([3., 0.]), Q=Q).onto(np.zeros((1, 2)))
array([[3., 3.]])
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, Bad, Method, Step, at_least, choice, count, free, keeps, lowrank, normal, size, trained, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp


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
    I, U, keep = keeps(), keeps(), keeps(of="lam", truth=True)  # Ī and Ū; which triplets stay

    @property
    def scale(self) -> float:
        """s."""
        return (self.alpha if self.alpha > 0 else self.r) / (self.r + self.eps)

    def change(self, *, P: Any, lam: Any, Q: Any) -> Any:
        return self.scale * lowrank(P * lam, Q)

    def penalty(self, arrays: Any) -> Any:
        grams = [G for own in arrays.values() if "lam" in own for G in (own["P"].T @ own["P"], own["Q"] @ own["Q"].T)]
        off = [G - xp.eye(G.shape[0], dtype=G.dtype) for G in grams]
        total = sum(ops.norm(d) if self.orth == "norm" else ops.sum(d * d) for d in off)
        return total * (self.gamma / len(grams)) if self.gamma and grams else None

    def after_backward(self, step: Step) -> None:
        if (both := self.tinit + self.tfinal) >= step.total:
            raise Bad(f"{self.name}: tinit + tfinal must be less than the {step.total} steps, found {both}")
        self._sense(step, "before")

    def after_step(self, step: Step) -> None:
        self._sense(step, "after")
        last = step.total - self.tfinal
        if choosing := step.t == last or (self.tinit < step.t < last and step.t % self.deltaT == 0):
            self._choose(step)
        for site, own in step.theta.items() if choosing or step.t > last else ():
            own["lam"] = xp.where(step.state[f"keep/{site}:lam"], own["lam"], 0)

    def _every(self, step: Step, what: str = "theta") -> list[tuple[str, Any]]:
        return [(f"{site}:{n}", x) for site, own in getattr(step, what).items() for n, x in own.items()]

    def _sense(self, step: Step, now: str) -> None:
        """Move the averages Ī and Ū of every number, if it is time."""
        grads, due = dict(self._every(step, "grads")), now == self.sensitivity and step.t < step.total - self.tfinal
        for at, w in self._every(step) if due else ():
            I = abs(w * grads[at])
            mean = step.state[f"I/{at}"] = self.beta1 * step.state.get(f"I/{at}", 0) + (1 - self.beta1) * I
            step.state[f"U/{at}"] = self.beta2 * step.state.get(f"U/{at}", 0) + (1 - self.beta2) * abs(I - mean)

    def _choose(self, step: Step) -> None:
        """Which triplets of the whole model are kept, into the state."""
        state = step.state  # at first empty
        S = {k: state.get(f"I/{k}", 0) * state.get(f"U/{k}", 0 * w) for k, w in self._every(step)}
        scores = [S[f"{site}:lam"] + S[f"{site}:P"].mean(axis=0) + S[f"{site}:Q"].mean(axis=1) for site in step.theta]
        place = xp.argsort(xp.argsort(-xp.concatenate(scores), kind="stable"))
        keep = place < self.budget(step.t, step.total, len(place), self.target_r * len(scores))
        split = xp.split(keep, list(accumulate(map(len, scores))))
        state |= {f"keep/{site}:lam": part for site, part in zip(step.theta, split)}

    def budget(self, t: int, total: int, start: int, end: int) -> int:
        """b(t): how many triplets are kept in step t, from `start` to `end`."""
        left = (t - self.tinit) / (total - self.tfinal - self.tinit)
        return int((start - end) * min(max(1 - left, 0), 1) ** 3 + end)


def ranks(arrays: Any) -> dict[str, int]:
    """How many triplets every site uses, from {site: {name: array}}: those whose λ is not 0."""
    return {site: int((own["lam"] != 0).sum()) for site, own in arrays.items() if "lam" in own}
