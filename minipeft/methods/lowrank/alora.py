"""aLoRA: Activated LoRA. Greenewald et al. 2025, https://arxiv.org/abs/2504.12397

    y_t = x_t Wᵀ + b + s B A x_t    for t ≥ t₀,    s = α/r as LoRA            (paper, §3)
    y_t = x_t Wᵀ + b                before

t₀ is where the last occurrence of the invocation tokens begins in a row; a row without one has the base alone. What comes before
is the base's, keys and values too. In generation the prompt decides: what is made after it moves no t₀.

Merges   no: it acts on a part of the tokens.
Differs  nowhere from HF peft, where it is given ids. There embeddings alone, and tasks that are no language modelling, switch it
         off without a word; here ids must be given. HF peft counts t₀ from the end: generating without a cache moves it.

>>> class Here: prefill, made, past, state, host = True, 0, 0, {}, staticmethod(lambda name: np.array([[7, 4, 7, 4]]))
>>> ALoRA(invocation=(7, 4))._active(Here, 4)
array([[False, False,  True,  True]])
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minipeft.declare import Bad, Here, Method, Unfit, choice, count, fact, free, requires, size, such_that, within
from minipeft.engine import ops
from minipeft.engine.backend import once, xp
from minipeft.method import Base
from minipeft.methods.lowrank.lora import LoRA


@once
def column(start: tuple[int, ...]) -> np.ndarray:
    """(b, 1)."""
    return np.array(start)[:, None]


@dataclass(frozen=True)
class ALoRA(Method):
    """LoRA from the last occurrence of an invocation on."""

    name = "alora"
    targets: str = LoRA.targets
    takes = "linears"
    invocation: tuple[int, ...] = such_that(
        lambda ids: all(i >= 0 for i in ids), "be token ids", (), small=(3,), tried=(2, 5)
    )
    r: int = count(8, tried=2)
    alpha: float = free(8.0, tried=6.0)
    dropout: float = within("[0, 1)", 0.0)
    rslora: bool = False
    lora_bias: bool = False
    start: str = choice("uniform", "gaussian", "orthogonal", varied=False)

    one = requires("V and not encoder_layers", "expected one stack, which reads tokens", error=Unfit)
    n, highest = size("len(invocation)"), fact(lambda method, site: max(method.invocation, default=0))
    some = requires("n > 0", "invocation must have at least one token id, found none")
    known = requires("highest < V", "invocation must lie in 0 … {V - 1}, found {highest},")
    A, B, c = LoRA.A, LoRA.B, LoRA.c
    scale: ClassVar[Any] = LoRA.scale

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, c: Any = None) -> Any:
        y = base(x)
        if y.ndim != 3:
            raise Bad(f"{self.name}: {here.site} must see one vector for each token, found {x.shape}")
        z = ops.add_lowrank(y, here.dropout(x, self.dropout), A, B, s=self.scale)
        z = z if c is None else z + self.scale * c
        return ops.where(z, y, condition=self._active(here, y.shape[1])[:, :, None])

    def _active(self, here: Here, t: int) -> Any:
        """(b, t): whether it acts on a token of this pass."""
        if here.prefill:
            ids, n = here.host("input_ids"), len(self.invocation)
            prompt = ids[:, : max(ids.shape[1] - here.made, 0)]
            found = np.zeros((len(ids), 1), bool)
            if prompt.shape[1] >= n:
                found = (sliding_window_view(prompt, n, axis=1) == self.invocation).all(axis=-1)
            last = found.shape[1] - 1 - found[:, ::-1].argmax(axis=1)
            start = np.where(found.any(axis=1), last + t - ids.shape[1], np.iinfo(np.int64).max)
            here.state["start"] = column(tuple(start.tolist()))
        return here.past + xp.arange(t) >= here.state["start"]
