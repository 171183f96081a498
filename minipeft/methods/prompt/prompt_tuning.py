"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning. Lester et al. 2021, https://arxiv.org/abs/2104.08691

    E' = [P; Emb(ids)]                                                        (paper, §2)

along the sequence; then the model goes on as ever, with positions, types and norms applied to P too.

Merges     no: the sequence grows.
Positions  P takes positions 0 … p−1, the text starts at p. Every token sees P. Labels of P are −100, logits cover P.
           An encoder-decoder has P in the encoder alone. A classifier that reads the first token reads P's first row.
Differs    The paper draws P from U(−0.5, 0.5) or from frequent tokens; HF peft from N(0, 1) or from uniformly chosen
           tokens; so do we. For encoder-decoders HF peft allocates 2 p rows and uses the first p. Positions count from
           the given position_ids; HF peft drops them, and token types where there is no classifier: ignores="positions",
           "positions and types". A decoder classifier over right padding reads the last real token; HF peft the last
           padded position: pool="last_position".

>>> class Here: prefill, tokens = True, Tokens(1)
>>> PromptTuning(p=1).apply(np.array([[[1., 2.]]]), Here, P=np.array([[5., 6.]]))
array([[[5., 6.],
        [1., 2.]]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, Method, choice, count, either, normal, trained, words


@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained vectors in front of the embedded text."""

    identity = False
    targets: str = "encoder.embed.tokens.out | embed.tokens.out"
    takes = "embedded text"
    p: int = count(8, tried=3)
    start: str = choice("normal", "vocab")
    pool: str = choice("token", "last_position", reading=True)
    ignores: str = choice("nothing", "positions", "positions and types", varied=False)

    P = trained("p", "d", start=either("start == 'vocab'", words("p"), normal()))

    def apply(self, h: Any, here: Here, *, P: Any) -> Any:
        if self.ignores != "nothing":
            here.tokens.positions = None
        if not here.prefill:
            return h
        here.tokens.types = None if self.ignores == "positions and types" else here.tokens.types
        here.tokens.pool = -1 if self.pool == "last_position" else here.tokens.pool
        return here.tokens.insert(h, P)
