"""DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation. Bini, Girrbach, Akata 2025, https://arxiv.org/abs/2503.18225

    W' = W + (λ/r) Σ_i B_i A_i / (‖B_i‖ ‖A_i‖) · diag(n)                      (paper, eq. 6)

A_i being row i of A, B_i column i of B, and n_j = ‖W_j‖ of column j at the start: every term has norm 1, so ‖W' − W‖ ≤ λ max n.

Merges   exactly: W' is an ordinary weight.
Differs  The paper has n_j = ‖W‖ for all j: norm="whole"; HF peft each column's. Norms below 10⁻⁴ count as 10⁻⁴, so that B may start at 0.

>>> A, B = np.array([[3., 4.]]), np.array([[0.], [2.]])
>>> DeLoRA(r=1).change(A=A, B=B, lam=np.array([10.]), n=np.array([1., 2.])).onto(np.zeros((2, 2)))
array([[ 0.,  0.],
       [ 6., 16.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Method, choice, count, either, found, lowrank, norms, positive, setting, stored, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp

WHOLE = found(lambda method, facts: np.full(facts["in"], np.sqrt((facts.W * facts.W).sum())), "‖W‖")


@dataclass(frozen=True)
class DeLoRA(Method):
    """Low-rank adaptation whose strength is a number of its own."""

    name = "delora"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(8, tried=2)
    bound: float = positive(15.0, tried=3.0)  # λ before training
    norm: str = choice("columns", "whole", reading=True)
    dropout: float = within("[0, 1)", 0.0)

    A = trained("r", "in", start=uniform("in"))
    B = trained("out", "r")
    lam = trained("1", start=setting("bound"))
    n = stored("in", start=either("norm == 'whole'", WHOLE, norms(0)))

    def change(self, *, A: Any, B: Any, lam: Any, n: Any) -> Any:
        least = xp.full((), 1e-4, A.dtype)
        a, b = (ops.maximum(ops.norm(x, axis=axis), least) for x, axis in ((A, 1), (B, 0)))
        return lowrank(B * (lam / self.r / (a * b)), A * n)
