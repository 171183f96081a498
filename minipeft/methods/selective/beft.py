"""BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes. Huang et al. 2025, https://arxiv.org/abs/2509.15974

    b' = b + β                                                                (paper, §3: of the projections to values)

A linear without a bias has 0 for b.

Merges   exactly: b' is an ordinary bias.
Differs  Where queries, keys and values are one linear, β is of all three. HF peft adds β to a linear without a bias, but cannot merge it.

>>> BEFT().change(beta=np.array([1., 2.])).bias(np.array([0., 5.]))
array([1., 7.])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Method, shift, trained


@dataclass(frozen=True)
class BEFT(Method):
    """A trained change of the bias of values."""

    name = "beft"
    targets: str = "attn.v.weight attn.qkv.weight"
    takes = "linears"

    beta = trained("out")

    def change(self, *, beta: Any) -> Any:
        return shift(beta)
