"""Trainable tokens: a few rows of an embedding. Hugging Face PEFT 2025, https://huggingface.co/docs/peft/package_reference/trainable_tokens

    W'[tokens_i] = T[i],    W'[v] = W[v] for every other v

    T  (n, d)  trained   the rows W[tokens], hence W' = W before training

Size     n d numbers per adapted matrix, n being the number of tokens.
Merges   exactly: W' is an ordinary table.
Differs  Rows are replaced, not added to. A head that is tied to the table has the new rows too, and keeps its bias: head_bias="keep".
         HF peft 0.21 loses the bias of such a head until it merges: head_bias="drop". HF peft takes a token given twice,
         and gives no gradient to the padding token's row where it is looked up; we refuse the first and give the second.

>>> TrainableTokens(tokens=(1,)).weight(np.zeros((3, 2)), T=np.array([[5., 6.]]))
array([[0., 0.],
       [5., 6.],
       [0., 0.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import once, to_host, xp
from minipeft.engine.bfloat16 import widened
from minipeft.errors import Bad
from minipeft.method import Base, Here, Method, Site
from minipeft.model.arch import Arch
from minipeft.settings import choice


@dataclass(frozen=True)
class TrainableTokens(Method):
    """New rows for chosen tokens."""

    targets: str = "embed.tokens.weight"
    tokens: tuple[int, ...] = ()
    head_bias: str = choice("keep", "drop", reading=True)  # of a tied head
    takes: ClassVar[str] = "matrices"

    def __post_init__(self) -> None:
        super().__post_init__()
        twice = sorted({v for v in self.tokens if self.tokens.count(v) > 1})
        if twice:
            raise Bad(f"{self.name}: tokens must differ, found {', '.join(map(str, twice))} more than once")

    @classmethod
    def sized(cls, arch: Arch) -> TrainableTokens:
        return cls(tokens=tuple(range(2, min(arch.vocab, 258))))

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(n=len(self.tokens), d=site.shape[1])

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        if not self.tokens:
            raise Bad(f"{self.name}: tokens must name at least one token id, found none")
        outside = [v for v in self.tokens if not 0 <= v < site.shape[0]]
        if outside:
            raise Bad(f"{self.name}: tokens must lie in 0 … {site.shape[0] - 1}, found {', '.join(map(str, outside))}")
        W = widened(site.W)
        return dict(T=to_host(W)[list(self.tokens)])

    def weight(self, W: Any, *, T: Any) -> Any:
        place = _array(self.tokens)
        new = xp.zeros(W.shape[0], bool)
        new[place] = True
        return ops.where(ops.put(T, index=place, shape=W.shape), W, condition=new[:, None])

    def bias(self, b: Any, *, T: Any) -> Any:
        return b if self.head_bias == "keep" else None

    def forward(self, x: Any, base: Base, here: Here, *, T: Any) -> Any:
        """Looks rows up in W and in T without forming W'."""
        if not base.table:
            return ops.linear(x, self.weight(base.W, T=T), self.bias(base.b, T=T))
        place = xp.full(base.shape[0], -1)
        place[_array(self.tokens)] = xp.arange(len(self.tokens))
        place = place[x]
        return ops.where(ops.take(T, ids=xp.maximum(place, 0)), base(x), condition=(place >= 0)[..., None])


@once
def _array(tokens: tuple[int, ...]) -> np.ndarray:
    return np.array(tokens)
