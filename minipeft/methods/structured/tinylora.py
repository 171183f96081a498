"""TinyLoRA: Learning to Reason in 13 Parameters. Morris et al. 2026, https://arxiv.org/abs/2602.04118

    W' = W + B R A,    R = Σ_i v_i P_i,    B A = U_k Σ_k V_kᵀ of the base's W, √Σ in each;    k = min(r, in, out)

The u matrices P_i (k, k) are random and frozen, of N(0, 1/k), from `seed` plus the matrix's number. A group of matrices shares one
v (u): of L adapted ones, in order, G = round(L (1 − weight_tying)) groups, at least 1, have ⌊L/G⌋ each, and the last what is left.

Merges   exactly: W' is an ordinary weight.
Dropout  of a linear, as LoRA. HF peft drops numbers of B's rows in a table, we nothing.
Differs  P's distribution and the halves of Σ are HF peft's; LoRA-XS, which this builds on, has all of Σ in one factor.

>>> P, one = np.array([[[1.]], [[10.]]]), np.ones((1, 1))
>>> TinyLoRA(r=1, u=2).change(v=np.array([[2., 3.], [0., 5.]]), group=np.array([1]), A=2 * one, B=3 * one, P=P).onto(one)
array([[301.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, SVD_PART, Method, choice, count, either, found, free, lowrank, size, stored, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.torch_random import TorchGenerator

NUMBER = found(lambda method, facts: [min(facts.index // facts["each"], facts["groups"] - 1)], "its group's number")


def projections(method: Any, facts: Any) -> Any:
    """P, of this matrix's own generator."""
    k = facts["k"]
    return TorchGenerator(method.seed + facts.index).normal((method.u, k, k), 0.0, k**-0.5)


@dataclass(frozen=True)
class TinyLoRA(Method):
    """A few numbers for one matrix, or for all, along the base's own largest directions."""

    name = "tinylora"
    targets: str = QUERY_VALUE
    takes = "linears and lookups"
    r: int = count(2, tried=3)
    u: int = count(64, small=5, tried=4)
    weight_tying: float = within("[0, 1]", 0.0, tried=0.5)
    seed: int = free(42)
    start: str = choice("zero", "uniform", varied=False)
    dropout: float = within("[0, 1)", 0.0)

    groups, each, k = size("max(1, round(sites (1 - weight_tying)))"), size("sites / groups"), size("min(r, in, out)")
    v = trained("groups", "u", start=either("start == 'uniform'", uniform(bound=0.02)), shared=True)
    group = stored("1", start=NUMBER, below="groups")
    A = stored("k", "in", start=SVD_PART)
    B = stored("out", "k", start=SVD_PART)
    P = stored("u", "k", "k", start=found(projections, "N(0, 1/k), from `seed`"))

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with v = 0."""
        return self.start == "zero"

    def change(self, *, v: Any, group: Any, A: Any, B: Any, P: Any) -> Any:
        R = ops.getitem(v, index=group) @ ops.reshape(P, shape=(len(P), -1))
        return lowrank(B @ ops.reshape(R, shape=P.shape[1:]), A)
