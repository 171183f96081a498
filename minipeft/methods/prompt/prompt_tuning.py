"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning. Lester et al. 2021, https://arxiv.org/abs/2104.08691

    E' = [P; Emb(ids)]                                                        (paper, §2)

along the sequence; then the model goes on as ever, with positions, types and norms applied to P too.

    P  (p, d)  trained   N(0, 1); rows of the token table, uniformly chosen, with start="vocab"

Size       p d numbers in all.
Merges     no: the sequence grows.
Positions  P takes positions 0 … p−1, the text starts at p. Every token sees P. Labels of P are −100, logits cover P.
           An encoder-decoder has P in the encoder alone. A classifier that reads the first token reads P's first row.
Differs    The paper draws P from U(−0.5, 0.5) or from frequent tokens; HF peft from N(0, 1) or from uniformly chosen
           tokens; we follow HF peft. For encoder-decoders HF peft allocates 2 p rows and uses the first p. We count
           positions from the given position_ids; HF peft drops them, and token types where there is no classifier:
           ignores="positions", "positions and types". With a decoder classifier and right padding HF peft reads the
           last padded position: pool="last_position"; we read the last real token: pool="token".

>>> class Here: prefill, tokens = True, Tokens(1)
>>> PromptTuning(p=1).apply(np.array([[[1., 2.]]]), Here, P=np.array([[5., 6.]]))
array([[[5., 6.],
        [1., 2.]]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine.backend import to_host
from minipeft.engine.bfloat16 import widened
from minipeft.method import Here, Method, Site
from minipeft.model.transformer import Tokens  # noqa: F401  (the example above uses it)
from minipeft.settings import choice, count


@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained vectors in front of the embedded text."""

    targets: str = "encoder.embed.tokens.out | embed.tokens.out"
    p: int = count(8)
    start: str = choice("normal", "vocab")
    pool: str = choice("token", "last_position", reading=True)
    ignores: str = choice("nothing", "positions", "positions and types", varied=False)
    takes: ClassVar[str] = "embedded text"
    identity: ClassVar[bool] = False

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        if self.start == "vocab":
            table = site.params["embed.tokens.weight"]
            rows = rng.integers(table.shape[0], size=self.p)
            return dict(P=to_host(widened(table))[rows])
        return dict(P=rng.standard_normal((self.p, *site.shape)))

    def apply(self, h: Any, here: Here, *, P: Any) -> Any:
        if self.ignores != "nothing":
            here.tokens.positions = None
        if not here.prefill:
            return h
        if self.ignores == "positions and types":
            here.tokens.types = None
        if self.pool == "last_position":
            here.tokens.pool = -1
        return here.tokens.insert(h, P)
