"""Cartridges: Lightweight and general-purpose long context representations via self-study. Eyuboglu et al. 2025, https://arxiv.org/abs/2506.06266

    o = softmax(scale · q [K_l; k]ᵀ) [V_l; v],    K_l, V_l = rows 2l and 2l + 1 of [F; E]        (paper, §3)

as prefix tuning, where the first `frozen` of the p rows, F, stay as they began: much attention rests on a first token.

Merges     no: the keys grow.
Positions  As prefix tuning. Two adapters in use are their composition: all keys are seen, the text starts after both.
Differs    The paper starts from the base's keys and values of a text's first p tokens: start="text"; HF peft from N(0, 1)
           unless told, as here. What the paper trains on, self-study, is data, and its loss distils from the base.

>>> class Here: state, index, tokens = {}, 1, Tokens(1)
>>> k = v = np.array([[[[9.]]]])
>>> Cartridge(p=2).apply((k, v), Here, F=np.array([[0., 1., 2., 3.]]), E=np.array([[4., 5., 6., 7.]]))[1]
array([[[[3.],
         [7.],
         [9.]]]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import choice, count, either, memory, normal, requires, stored, trained
from minipeft.engine import ops
from minipeft.methods.prompt.prefix_tuning import READ, PrefixTuning


@dataclass(frozen=True)
class Cartridge(PrefixTuning):
    """Trained keys and values of a text, the first of which stay."""

    start: str = choice("normal", "text")
    hidden: int = count(0, least=0, most=0)
    frozen: int = count(1, least=0)

    A1 = c1 = A2 = c2 = None
    fewer = requires("frozen <= p", "frozen must be at most p = {p}, found {frozen}")
    F = stored("frozen", "2 n k", start=either(READ, memory("text"), normal()), when="frozen > 0", shared=True)
    E = trained(
        "p - frozen", "2 n k", start=either(READ, memory("text", "frozen"), normal()), when="frozen < p", shared=True
    )

    def flat(self, *, E: Any = None, F: Any = None, **none: Any) -> Any:
        """All rows (p, 2 n G e)."""
        return E if F is None else F if E is None else ops.concatenate(F, E, axis=0)
