"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning. Lester et al. 2021, https://arxiv.org/abs/2104.08691

    E' = [P; Emb(ids)]                                                        (paper, §2)

along the sequence; then the model goes on as ever, with positions, types and norms applied to P too.

Merges     no: the sequence grows.
Positions  P takes positions 0 … p−1, the text starts at p. Every token sees P. Labels of P are −100, logits cover P.
           An encoder-decoder has P in the encoder alone. A classifier that reads the first token reads P's first row.
Differs    The paper draws P from U(−0.5, 0.5) or from frequent tokens; HF peft, as here, from N(0, 1), from tokens chosen
           uniformly, or from a text's. For encoder-decoders it allocates 2 p rows and uses p. It drops position_ids that
           are given, and token types where there is no classifier: ignores="positions", "positions and types". A decoder
           classifier over right padding reads the last real token; HF peft the last position: pool="last_position".

>>> class Here: prefill, tokens = True, Tokens(1)
>>> PromptTuning(p=1).apply(np.array([[[1., 2.]]]), Here, P=np.array([[5., 6.]]))
array([[[5., 6.],
        [1., 2.]]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, Method, choice, count, either, free, normal, requires, trained, words


@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained vectors in front of the embedded text."""

    identity = False
    targets: str = "encoder.embed.tokens.out | embed.tokens.out"
    takes = "embedded text"
    p: int = count(8, tried=3)
    start: str = choice("normal", "vocab", "text")
    text: tuple[int, ...] = free(())  # token ids, for start="text"
    pool: str = choice("token", "last_position", reading=True)
    ignores: str = choice("nothing", "positions", "positions and types", varied=False)

    told = requires("(start == 'text') == (len(text) > 0)", "start='text', and no other, needs text, found {text}")
    P = trained("p", "d", start=either("start == 'normal'", normal(), words("p", "text")))

    def apply(self, h: Any, here: Here, *, P: Any) -> Any:
        if self.ignores != "nothing":
            here.tokens.positions = None
        if not here.prefill:
            return h
        here.tokens.types = None if self.ignores == "positions and types" else here.tokens.types
        here.tokens.pool = -1 if self.pool == "last_position" else here.tokens.pool
        return here.tokens.insert(h, P)
