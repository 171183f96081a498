"""LoRA-GA: Low-Rank Adaptation with Gradient Approximation. Wang, Yu & Li 2024, https://arxiv.org/abs/2407.05000

    G  = U Σ Vᵀ, the mean gradient of the loss with respect to W on some batches
    A0 = ζ V_Iᵀ,   B0 = ζ U_J,   ζ = out^¼/√γ             (paper, algorithm 1, with I = 1 … r and J = r+1 … 2r)
    W' = (W − s B0 A0) + s B A,   s as LoRA

    A   (r, in)    trained   A0
    B   (out, r)   trained   B0, hence W' = W before training
    A0  (r, in)    stored    as above
    B0  (out, r)   stored    as above

`direction` chooses I and J of the first 2 r triples: "ArB2r" I the first half, J the second; "A2rBr" the reverse;
"ArBr" I the even, J the odd places (from 1); "random" two disjoint halves. `scale_by` chooses ζ: "stable" as above;
"weight_svd" the mean of √(σ_i(W)/s), i ≤ r; "gd_scale" 1/s; "unit" 1.

Size     r (in + out) numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, not on that of A0.
Differs  reading="paper" follows the paper and the authors' code; reading="peft" HF peft, where B0 carries Σ_J as well,
         "stable" and "weight_svd" multiply B0 alone (the latter by σ_1(W)/Σ_J1), and "random" takes one set for both.
         They subtract from the base, which a reload in HF peft does not repeat; here A0 and B0 are stored. Their
         decomposition of G is randomised, ours exact; the largest entry of every row of Vᵀ is positive. An embedding
         starts as in LoRA.

>>> G = np.diag([3., 2., 1.])
>>> found = LoRAGA(r=1, scale_by="unit").init(Site("q.weight", (3, 3), "linear", None, np.zeros((3, 3)), grad=G), None)
>>> found["A"], found["B"].T
(array([[1., 0., 0.]]), array([[0., 1., 0.]]))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.bfloat16 import widened
from minipeft.engine.factors import singular
from minipeft.errors import Bad
from minipeft.method import Base, Here, Site, frozen
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.arch import Arch
from minipeft.settings import choice, positive


@dataclass(frozen=True)
class LoRAGA(LoRA):
    """LoRA whose first step is closest to that of full fine-tuning."""

    alpha: float = positive(8.0)
    direction: str = choice("ArB2r", "A2rBr", "ArBr", "random", varied=False)
    scale_by: str = choice("stable", "weight_svd", "gd_scale", "unit", varied=False)
    gamma: float = positive(16.0)  # γ of "stable"
    reading: str = choice("paper", "peft", reading=True)
    name: ClassVar[str] = "lora_ga"
    needs: ClassVar[tuple[str, ...]] = ("grads",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_bias:
            raise Bad(f"{self.name}: lora_bias goes with factors that start at 0; expected False")

    @classmethod
    def sized(cls, arch: Arch) -> LoRAGA:
        return cls(r=4)

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        plain = site.kind == "embedding" or len(site.shape) != 2  # where `LoRA.init` refuses what is no matrix
        arrays = super().init(site, rng) if plain else self._approximate(site, rng)
        return arrays | dict(A0=frozen(arrays["A"]), B0=frozen(arrays["B"]))

    def _approximate(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        r, peft = self.r, self.reading == "peft"
        if 2 * r > min(site.shape):
            raise Bad(
                f"{self.name}: r must be at most {min(site.shape) // 2} at {site.name} of shape {site.shape}, found {r}"
            )
        U, S, Vt = singular(f"{self.name}: the gradient at {site.name}", site.grad)
        sign = np.sign(Vt[np.arange(len(S)), abs(Vt).argmax(axis=1)])
        U, Vt = U * sign, Vt * sign[:, None]
        I, J = self._indices(rng)
        A, B = Vt[I], U[:, J] * S[J] if peft else U[:, J]
        if self.scale_by == "stable":
            zeta = site.shape[0] ** 0.25 / self.gamma**0.5
        elif self.scale_by == "weight_svd":
            _, sigma, _ = singular(f"{self.name}: {site.name}", widened(site.W))
            zeta = sigma[0] / (S[J[0]] or 1.0) if peft else np.sqrt(sigma[:r] / self.scale).mean()
        else:
            zeta = 1 / self.scale if self.scale_by == "gd_scale" else 1.0
        alone = peft and self.scale_by in ("stable", "weight_svd")
        return dict(A=A if alone else zeta * A, B=zeta * B)

    def _indices(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Which triples A takes, and which B."""
        every = rng.permutation(2 * self.r) if self.direction == "random" else np.arange(2 * self.r)
        first, second = every[: self.r], every[self.r :]
        if self.direction == "random" and self.reading == "peft":
            return first, first
        return {"A2rBr": (second, first), "ArBr": (every[1::2], every[::2])}.get(self.direction, (first, second))

    def weight(self, W: Any, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        return W + self.scale * (B @ A - B0 @ A0)

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        """x W'ᵀ + b by the factors alone."""
        if base.table:
            return base(x) + self.scale * (ops.take(B, ids=x) @ A - ops.take(B0, ids=x) @ A0)
        residual = ops.add_lowrank(base(x), x, A0, B0, s=-self.scale)
        return ops.add_lowrank(residual, here.dropout(x, self.dropout), A, B, s=self.scale)
