"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models. Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199

    b' = b + δ                                                                (paper, §3: every bias, of linears and norms)

    delta  (n)  trained   0, hence b' = b before training

n is the length of b. With part="small" only the query's bias and that of the first linear of the feed-forward are trained
(§4.2); where queries, keys and values are one linear, n is the length of the queries' share.

Size     n numbers per bias.
Merges   exactly: b' is an ordinary bias.
Differs  The paper trains b itself; here b stays and δ is its change, which is the same but for weight decay, which pulls
         b' to b here and to 0 there. It trains the task's head too: `train_whole`. Models of the Llama kind have no bias
         and nothing to train.

>>> BitFit().weight(np.array([1., 2.]), delta=np.array([0.5, 0.]))
array([1.5, 2. ])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.method import Method, Site
from minipeft.settings import choice

TARGETS = {"all": "*.bias", "small": "attn.q.bias attn.qkv.bias mlp.up.bias"}


@dataclass(frozen=True)
class BitFit(Method):
    """A trained change of every bias."""

    targets: str = ""  # those of `part`
    part: str = choice("all", "small")
    takes: ClassVar[str] = "biases"
    name: ClassVar[str] = "bitfit"
    usual_lr: ClassVar[float] = 2e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            object.__setattr__(self, "targets", TARGETS[self.part])

    def sizes(self, site: Site) -> dict[str, int]:
        queries = self.part == "small" and site.name.endswith("attn.qkv.bias")
        return dict(n=site.arch.heads * site.arch.dh if queries else site.shape[0])

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        return dict(delta=np.zeros(self.sizes(site)["n"]))

    def weight(self, b: Any, *, delta: Any) -> Any:
        rest = b.shape[0] - delta.shape[0]
        return b + (ops.concatenate(delta, xp.zeros(rest, b.dtype)) if rest else delta)
