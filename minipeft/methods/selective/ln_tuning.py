"""LN tuning: Tuning LayerNorm in Attention, Towards Efficient Multi-Modal LLM Finetuning. Zhao et al. 2023, https://arxiv.org/abs/2312.11420

    W' = γ'        b' = β'        y = γ' ⊙ (x − μ) / √(σ² + ε) + β'

γ' and β' begin as the weight and the bias of a norm. One without a bias has no β'; an RMS norm has no μ either.

Merges   exactly: γ' and β' are an ordinary norm.
Differs  The paper trains the norms of the blocks, targets="attn.norm mlp.norm", and beside them the connector, the token table
         and the head: `train_whole`. HF peft trains all norms, as does this. It takes any module for a norm, and trains a
         linear whole; here that is full fine-tuning. Of several adapters it uses one; here the last, or with weights their mean.

>>> norm = LNTuning().change(gamma=np.array([3., 4.]), beta=np.array([0., 5.]))
>>> norm.onto(np.array([1., 1.])), norm.bias(np.array([0., 0.]))
(array([3., 4.]), array([0., 5.]))
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Method, fact, found, swapped, trained


@dataclass(frozen=True)
class LNTuning(Method):
    """A trained weight and bias in place of a norm's."""

    name = "ln_tuning"
    targets: str = "*.norm.weight"
    takes = "norms"

    biased = fact(lambda m, site: site.name[:-6] + "bias" in site.params)
    gamma = trained(..., start=found(lambda m, facts: facts.W, "W"))
    beta = trained("out", when="biased", start=found(lambda m, facts: facts.param(facts["site"][:-6] + "bias"), "b"))

    def change(self, *, gamma: Any, beta: Any = None) -> Any:
        return swapped(gamma, beta)
