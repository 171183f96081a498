"""LoRA-GA: Low-Rank Adaptation with Gradient Approximation. Wang, Yu & Li 2024, https://arxiv.org/abs/2407.05000

    G  = U Σ Vᵀ, the mean gradient of the loss with respect to W on some batches
    A0 = ζ V_Iᵀ,   B0 = ζ U_J,   ζ = out^¼/√γ             (paper, algorithm 1, with I = 1 … r and J = r+1 … 2r)
    W' = (W − s B0 A0) + s B A,   s as LoRA

`direction` chooses I and J of the first 2 r triples: "ArB2r" I the first half, J the second; "A2rBr" the reverse;
"ArBr" I the even, J the odd places (from 1); "random" two disjoint halves. `scale_by` chooses ζ: "stable" as above;
"weight_svd" the mean of √(σ_i(W)/s), i ≤ r; "gd_scale" 1/s; "unit" 1.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, not on that of A0.
Differs  reading="paper" follows the paper and the authors' code; reading="peft" HF peft, where B0 carries Σ_J as well,
         "stable" and "weight_svd" multiply B0 alone (the latter by σ_1(W)/Σ_J1), and "random" takes one set for both;
         on GPT-2, whose weights lie transposed, its "stable" takes in for out.
         They subtract from the base, which a reload in HF peft does not repeat; here A0 and B0 are stored. Their
         decomposition of G is randomised, ours exact; the largest entry of every row of Vᵀ is positive. An embedding
         starts as in LoRA.

>>> from minipeft.drawing import Facts
>>> site = Site("q.weight", (3, 3), "linear", None, np.zeros((3, 3)), grad=np.diag([3., 2., 1.]))
>>> found = approximate(LoRAGA(r=1, scale_by="unit"), Facts(LoRAGA(r=1), site))
>>> found["A"], found["B"].T
(array([[1., 0., 0.]]), array([[0., 1., 0.]]))
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import choice, count, either, found, lowrank, positive, requires, same, steady, stored, trained
from minipeft.engine.factors import singular
from minipeft.methods.lowrank.lora import LoRA


def approximate(method: Any, facts: Any) -> dict[str, Any]:
    """A0 and B0 from the gradient."""
    r, peft, by = method.r, method.reading == "peft", method.scale_by
    U, S, Vt = singular(f"{method.name}: the gradient at {facts['site']}", facts.site.grad)
    sign = np.sign(Vt[np.arange(len(S)), abs(Vt).argmax(axis=1)])
    every = facts.rng.permutation(2 * r) if method.direction == "random" else np.arange(2 * r)
    I, J = {"A2rBr": (every[r:], every[:r]), "ArBr": (every[1::2], every[::2])}.get(
        method.direction, (every[:r], every[r:])
    )
    J = I if method.direction == "random" and peft else J
    A, B = (Vt * sign[:, None])[I], (U * sign)[:, J] * (S[J] if peft else 1)
    zeta = dict(stable=facts["out"] ** 0.25 / method.gamma**0.5, gd_scale=1 / method.scale, unit=1.0).get(by)
    if zeta is None:
        _, sigma, _ = singular(f"{method.name}: {facts['site']}", facts.W)
        zeta = sigma[0] / (S[J[0]] or 1.0) if peft else np.sqrt(sigma[:r] / method.scale).mean()
    return dict(A=A if peft and by in ("stable", "weight_svd") else zeta * A, B=zeta * B)


GRADIENT = found(approximate, "ζ V_Iᵀ, ζ U_J", needs=("grads",))


@dataclass(frozen=True)
class LoRAGA(LoRA):
    """LoRA whose first step is closest to that of full fine-tuning."""

    name = "lora_ga"
    r: int = count(8, small=4, tried=2)
    alpha: float = positive(8.0, tried=6.0)
    direction: str = choice("ArB2r", "A2rBr", "ArBr", "random", varied=False)
    scale_by: str = choice("stable", "weight_svd", "gd_scale", "unit", varied=False)
    gamma: float = positive(16.0)  # γ of "stable"
    reading: str = choice("paper", "peft", reading=True)

    drawn = requires("not lora_bias and start == 'uniform'", "lora_bias and start go with factors that are drawn")
    rank = requires("2 r <= min(in, out)", "r must be at most {min(in, out) / 2}, found {r}", when="not embedding")
    A = trained("r", "in", start=either("embedding", LoRA.A.start, GRADIENT))
    B = trained("out", "r", start=either("embedding", LoRA.B.start, GRADIENT))
    A0 = stored("r", "in", start=same("A"))
    B0 = stored("out", "r", start=same("B"))

    def change(self, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        return self.scale * (lowrank(B, A) - steady(lowrank(B0, A0)))
