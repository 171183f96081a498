"""Uni-LoRA: One Vector is All You Need. Li et al. 2025, https://arxiv.org/abs/2506.00799

    W' = W + B A,    A_ij = s_{A,ij} θ[I_{A,ij}],    B_ij = s_{B,ij} θ[I_{B,ij}]    s = 1/√(how often the place of θ occurs)

All factors of all adapted matrices, one after the other, A before B, are P θ with one vector θ, and a frozen P that has one number
in each row and orthonormal columns. Which place of θ an element takes is drawn from `seed` for all of them at once.

Merges   exactly: W' is an ordinary weight.
Differs  In the paper each element's place is uniform; in HF peft, as here, every place occurs equally often, or once more. Other
         targets, or another order of them, give other places. Both factors start random: W' is not W before training. HF peft
         rounds s to float32.

>>> t = dict(theta=np.array([2., 3.]), I_A=np.array([[0, 1]]), s_A=np.ones((1, 2)), I_B=np.array([[1]]), s_B=np.array([[0.5]]))
>>> UniLoRA(r=1, length=2).change(**t).onto(np.zeros((1, 2)))
array([[3. , 4.5]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Method, count, found_together, lowrank, stored, such_that, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops


def places(method: Any, every: list[Any]) -> dict[str, dict[str, Any]]:
    """The places and factors of every site's elements."""
    random, d = np.random.default_rng(method.seed), method.length
    ends = np.cumsum([facts["r"] * facts[width] for facts in every for width in ("in", "out")])
    more = random.choice(d, ends[-1] % d, replace=False) if ends[-1] % d else np.arange(0)
    place = np.append(np.repeat(np.arange(d), ends[-1] // d), more)
    random.shuffle(place)
    s, pieces, made = np.maximum(np.bincount(place), 1) ** -0.5, iter(np.split(place, ends)), {}
    for facts in every:
        A, B = next(pieces).reshape(facts["r"], -1), next(pieces).reshape(-1, facts["r"])
        made[facts["site"]] = dict(I_A=A, s_A=s[A], I_B=B, s_B=s[B])
    return made


@dataclass(frozen=True)
class UniLoRA(Method):
    """Low-rank factors whose elements are those of one vector."""

    name = "unilora"
    targets: str = QUERY_VALUE
    takes = "linears"
    identity = False
    r: int = count(4, tried=3)
    length: int = count(256, small=23, tried=7)  # of θ
    seed: int = such_that(lambda seed: seed >= 0, "be at least 0", 42)
    dropout: float = within("[0, 1)", 0.0)

    theta = trained("length", start=uniform(bound=0.02), shared=True)
    I_A = stored("r", "in", start=found_together(places, "from `seed`, for all sites at once"), below="length")
    s_A = stored("r", "in", start=I_A.start)
    I_B = stored("out", "r", start=I_A.start, below="length")
    s_B = stored("out", "r", start=I_A.start)

    def change(self, *, theta: Any, I_A: Any, s_A: Any, I_B: Any, s_B: Any) -> Any:
        return lowrank(s_B * ops.getitem(theta, index=I_B), s_A * ops.getitem(theta, index=I_A))
