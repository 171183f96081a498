"""MonteCLoRA: Robust and Efficient Fine-tuning of LLMs with Bayesian Reparameterization of Low-Rank Adaptation. Sengupta et al. 2024, https://arxiv.org/abs/2411.04358

    W' = W + s B A,    s = α/r as LoRA                                        evaluation, merging
    W' = W + s B (A + ε Σ_n w_n E_nᵀ)                                         training, sampled in every pass
    E_n (in, r): rows of N(0, V),    V = max(diag(e^σ Z e^σ), 10⁻³),    Z ~ Wishart of r degrees of freedom
    w = softmax(√D q + p − mean p),    q ~ N(0, I)                            nearly a Dirichlet's of a = e^p
    D_n = (1 − 2/N)/a_n + Σ_m 1/(N² a_m)

    loss += mean over sites of κ (KL(a, a₀) + KL(σ) + KL(V)) + Σ w² with entropy

of the weights and their prior, a Dirichlet of N times a₀; of the Wishart distribution and that of I; and of N(0, V) and
N(0, I), N times. V and w being sampled, the last two terms are their expectation here.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only.
Differs  HF peft takes V and w of the last pass in the loss, which it leaves to the user, and has Σ ln Γ(a) of KL(a, a₀) with
         the wrong sign, so that it can be negative. It saves the last V and w, on which nothing depends: V and w here.

>>> one, two = np.ones((1, 2)), np.ones((2, 1))
>>> MonteCLoRA(r=1, alpha=3, N=2).change(A=one, B=two).onto(np.zeros((2, 2)))
array([[3., 3.],
       [3., 3.]])
"""

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from minipeft.declare import Here, at_least, count, found, positive, stored, trained
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.special import digamma, lgamma
from minipeft.method import Base
from minipeft.methods.lowrank.lora import LoRA


@dataclass(frozen=True)
class MonteCLoRA(LoRA):
    """LoRA whose A is sampled in training."""

    name = "monteclora"
    takes = "linears"
    N: int = count(8, small=3)
    spread: float = at_least(0, 1e-4)  # ε
    prior: float = positive(0.1)  # a₀
    kl: float = at_least(0, 1e-5)  # κ
    entropy: bool = False

    sigma = trained("r", start=found(lambda method, facts: facts.rng.random(method.r), "U(0, 1)"))
    p = trained("N", start=found(lambda method, facts: facts.rng.random(method.N), "U(0, 1)"))
    V = stored("r", "r", start=found(lambda method, facts: np.eye(method.r), "I"))
    w = stored("N", start=found(lambda method, facts: np.full(method.N, 1 / method.N), "1/N"))

    def change(self, *, A: Any, B: Any, c: Any = None, **sampled: Any) -> Any:
        return super().change(A=A, B=B, c=c)

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, c: Any = None, **sampled: Any) -> Any:
        A = A + self._noise(here, A, **sampled)
        y = ops.add_lowrank(base(x), here.dropout(x, self.dropout), A, B, s=self.scale)
        return y if c is None else y + self.scale * c

    def _noise(self, here: Here, A: Any, *, sigma: Any, p: Any, **last: Any) -> Any:
        (r, in_), N = A.shape, self.N
        E, G, q = (here.normal(shape).astype(A.dtype) for shape in ((N, in_ * r), (r, r), (1, N)))
        V = ops.maximum(ops.exp(2 * sigma) * xp.sum(G * G, axis=1), xp.full((), 1e-3, A.dtype))  # G Gᵀ is Wishart's
        a = ops.exp(p)
        D = (1 - 2 / N) / a + ops.sum(1 / a) / N**2 + 1e-6
        w = ops.softmax(ops.sqrt(D) * q + p - ops.mean(p))
        return self.spread * ops.swapaxes(ops.reshape(w @ E, shape=(in_, r)) * ops.sqrt(V))

    def penalty(self, arrays: Any) -> Any:
        terms = [self._terms(own["sigma"], ops.exp(own["p"])) for own in arrays.values() if "sigma" in own]
        return sum(terms) / len(terms) if self.kl or self.entropy else None

    def _terms(self, sigma: Any, a: Any) -> Any:
        r, all_, prior = sigma.shape[0], ops.sum(a), xp.full(self.N, self.prior, a.dtype)
        kl = lgamma(all_) - ops.sum(lgamma(a)) - lgamma(ops.sum(prior)) + ops.sum(lgamma(prior))
        kl = kl + ops.sum((a - prior) * (digamma(a) - digamma(all_)))
        grown = ops.sum(r * ops.exp(2 * sigma) - 2 * sigma)
        log_z = digamma(xp.full((), r / 2, a.dtype)) + log(2)  # E ln χ² of r degrees of freedom
        kl = kl + (r * ops.sum(ops.exp(2 * sigma) - 2 * sigma) - r * r) / 2 + self.N * (grown - r * log_z - r) / 2
        return self.kl * kl + (ops.sum(a * (a + 1)) / (all_ * (all_ + 1)) if self.entropy else 0.0)
