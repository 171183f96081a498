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

>>> cpt = CPT(tokens=(3, 7, 8, 5), types=(2, 4, 6, 8), gamma=0.5)
>>> cpt.labels, cpt.weights
([-100, 7, -100, 5], [1.0, 0.25, 1.0, 0.5])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    Here, Method, Step, Unfit, at_least, choice, fact, free, requires, same, size, stored, such_that, trained, words,
)  # fmt: skip
from minipeft.engine.backend import xp
from minipeft.model.batch import IGNORE


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

    @property
    def labels(self) -> list[int]:
        """The tokens that are labels, −100 elsewhere."""
        return [i if c and c % 4 == 0 else IGNORE for i, c in zip(self.tokens, self.types)]

    @property
    def weights(self) -> list[float]:
        """γ^k, k counting the labels' types from the last one on, which is 1; the first token is predicted by none."""
        known = sorted({c for c in self.types[1:] if c and c % 4 == 0}, reverse=True)
        return [self.gamma ** (1 + known.index(c) if c in known else 0) for c in self.types]

    def apply(self, h: Any, here: Here, *, E: Any, P: Any) -> Any:
        here.tokens.positions = here.tokens.positions if self.ignores == "nothing" else None
        return here.tokens.insert(h, P, labels=self.labels, weights=self.weights) if here.prefill else h

    def after_backward(self, step: Step) -> None:
        """Labels, and what has no type, stay as they are."""
        for arrays in step.grads.values():
            arrays["P"] = arrays["P"] * xp.asarray([[c % 4 > 0] for c in self.types], arrays["P"].dtype)

    def after_step(self, step: Step) -> None:
        """P_i goes back to where its ball ends."""
        eps = [(0, self.eps_format, self.eps, self.eps_format)[c % 4] for c in self.types]
        for site, own in step.theta.items():
            E, D = step.stored[site]["E"], own["P"] - step.stored[site]["E"]
            most = xp.asarray(eps, D.dtype)[:, None] * (D.shape[1] / 2048) ** 0.5
            norm = xp.sqrt((D * D).sum(axis=1, keepdims=True))
            own["P"] = xp.where(norm > most, E + D * (most / (norm + (norm == 0))), own["P"])
