"""PVeRA: Probabilistic Vector-Based Random Matrix Adaptation. Fillioux et al. 2025, https://arxiv.org/abs/2512.07703

    y = x W'ᵀ + b,    W' = W + Λb B Λd A, as VeRA                             in evaluation
    y = x Wᵀ + b + (μ + ε ∘ exp(v/2)) Bᵀ Λb,    ε ~ N(0, 1)                   in training
    (μ, v) = x A₂ᵀ Λ₂,    A₂ (2r, in) and Λ₂ = diag(lambda_d) (2r)

Of the 2r rows of A₂ and numbers of lambda_d the first r, A and Λd, give the mean μ, the others v, the logarithm of a variance.

Merges   exactly: the mean. With `sample_at_inference` what is not merged is sampled in evaluation too.
Dropout  acts on x, once for μ and v.
Differs  As VeRA in its random pair. Nothing is added to the loss, in HF peft neither. The numbers that HF peft samples, those of
         its generator_seed too, are others.

>>> A, B = np.array([[1., 2.], [9., 9.]]), np.array([[1.], [3.]])
>>> PVeRA(r=1).change(A=A, B=B, lambda_d=np.array([2., 9.]), lambda_b=np.array([10., 10.])).onto(np.zeros((2, 2)))
array([[ 20.,  40.],
       [ 60., 120.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, size, when
from minipeft.engine import ops
from minipeft.method import Base
from minipeft.methods.structured.vera import VeRA


@dataclass(frozen=True)
class PVeRA(VeRA):
    """VeRA with a normal distribution in the middle."""

    name = "pvera"
    takes = "linears"
    sample_at_inference: bool = False

    rows = size("2 r")

    def change(self, *, A: Any, B: Any, lambda_d: Any, lambda_b: Any) -> Any:
        return super().change(A=A[: self.r], B=B, lambda_d=lambda_d[: self.r], lambda_b=lambda_b)

    @when("sample_at_inference")
    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, lambda_d: Any, lambda_b: Any) -> Any:
        h = lambda_d * ops.linear(here.dropout(x, self.dropout), A[:, : x.shape[-1]])
        mean, v = h[..., : self.r], h[..., self.r :]
        noise = here.normal(mean.shape).astype(mean.dtype)
        return base(x) + lambda_b * ops.linear(mean + noise * ops.exp(0.5 * v), B[: lambda_b.shape[0]])
