"""CPT: Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods. Blau et al. 2024, https://arxiv.org/abs/2410.17222

    E' = [P; Emb(ids)],    P = E at first, E the embeddings of the tokens of a context: examples, each with its label
    loss = mean over labels of γ^k · cross-entropy                            k = 0 in the text, 1 in the example before it, …
    ‖P_i − E_i‖ ≤ ε_i √(d/2048)                                               after every step (paper, §3)

types say what each token is, 4 n + 1 of the input's format in example n from 0, 4 n + 2 of the input, 4 n + 3 of the output's format,
4 n + 4 of the label; 0 none of these. ε_i is eps for inputs, eps_format for formats, and 0 for what else there is, which stays.

Merges     no: the sequence grows.
Positions  As prompt tuning. Labels of the context count too, so the loss is over these and those of the text.
Differs    HF peft trains P − E, so that weight decay pulls P to E; here to 0. What counts of the text say its labels; HF peft
           takes input_type_mask, 4 throughout by default, and adds the largest of types to it: with one that 4 does not
           divide no label of the text counts. Micro-batches are weighed by the labels of their text.

>>> labels, weights = counted((3, 7, 8, 5), (2, 4, 6, 8), 0.5)
>>> labels.tolist(), weights.tolist()
([-100, 7, -100, 5], [1.0, 0.25, 1.0, 0.5])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    Here, Method, Step, Unfit, at_least, choice, fact, free, requires, same, size, stored, such_that, trained, words,
)  # fmt: skip
from minipeft.engine.backend import once, xp
from minipeft.model.batch import IGNORE


@once
def counted(tokens: tuple[int, ...], types: tuple[int, ...], gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that are labels, −100 elsewhere; and γ^k, k counting their types from the last on, which is 1."""
    known = sorted({c for c in types[1:] if c and c % 4 == 0}, reverse=True)  # the first token is predicted by none
    labels = [i if c and c % 4 == 0 else IGNORE for i, c in zip(tokens, types)]
    return np.array(labels), np.array([gamma ** (1 + known.index(c)) if c in known else 1.0 for c in types])


@once
def radii(types: tuple[int, ...], eps: float, eps_format: float) -> np.ndarray:
    """ε_i (p, 1); 0 where a row stays."""
    return np.array([[(0.0, eps_format, eps, eps_format)[c % 4]] for c in types])


@dataclass(frozen=True)
class CPT(Method):
    """Examples in front of the text, whose embeddings are trained near where they begin."""

    identity = False
    targets: str = "embed.tokens.out"
    takes = "embedded text"
    tokens: tuple[int, ...] = free((), small=(5, 9, 3, 7, 2, 8, 4, 6))
    types: tuple[int, ...] = such_that(lambda x: min(x, default=0) >= 0, "be at least 0", (), small=tuple(range(1, 9)))
    eps: float = at_least(0, 0.1)
    eps_format: float = at_least(0, 0.1)
    gamma: float = at_least(0, 1.0, tried=0.5)
    ignores: str = choice("nothing", "positions", varied=False)

    p = size("len(tokens)")
    even = requires(
        "len(types) == len(tokens)", "types must be one for each of {len(tokens)} tokens, found {len(types)}"
    )
    some = requires("p > 0", "tokens must name at least one token id, found none")
    lm = fact(lambda method, site: site.arch.head == "lm" and site.arch.causal and not site.arch.encoder_layers)
    causal = requires("lm", "expected a causal language model, found one of another kind", error=Unfit)
    E = stored("p", "d", start=words("p", "tokens"))
    P = trained("p", "d", start=same("E"))

    def apply(self, h: Any, here: Here, *, E: Any, P: Any) -> Any:
        here.tokens.positions = here.tokens.positions if self.ignores == "nothing" else None
        labels, weights = counted(self.tokens, self.types, self.gamma)
        return here.tokens.insert(h, P, labels=labels, weights=weights) if here.prefill else h

    def after_backward(self, step: Step) -> None:
        """What may not move has no gradient."""
        for arrays in step.grads.values():
            arrays["P"] = arrays["P"] * (radii(self.types, self.eps, self.eps_format) > 0)

    def after_step(self, step: Step) -> None:
        """P_i goes back to where its ball ends."""
        for site, own in step.theta.items():
            E, D = step.stored[site]["E"], own["P"] - step.stored[site]["E"]
            most = radii(self.types, self.eps, self.eps_format).astype(D.dtype) * (D.shape[1] / 2048) ** 0.5
            norm = xp.sqrt((D * D).sum(axis=1, keepdims=True))
            own["P"] = xp.where(norm > most, E + D * (most / (norm + (norm == 0))), own["P"])
