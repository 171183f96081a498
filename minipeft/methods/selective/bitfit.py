"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models. Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199

    b' = b + δ                                                                (paper, §3: every bias, of linears and norms)

n is the length of b. With part="small" only the query's bias and that of the first linear of the feed-forward are trained
(§4.2); where queries, keys and values are one linear, n is the length of the queries' share.

Merges   exactly: b' is an ordinary bias.
Differs  The paper trains b itself; here b stays and δ is its change, which is the same but for weight decay, which pulls
         b' to b here and to 0 there. It trains the task's head too: `train_whole`. Models of the Llama kind have no bias
         and nothing to train.

>>> BitFit().weight(np.array([1., 2.]), delta=np.array([0.5, 0.]))
array([1.5, 2. ])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Method, choice, fact, size, trained
from minipeft.engine import ops
from minipeft.engine.backend import xp

TARGETS = {"all": "*.bias", "small": "attn.q.bias attn.qkv.bias mlp.up.bias"}


@dataclass(frozen=True)
class BitFit(Method):
    """A trained change of every bias."""

    name = "bitfit"
    targets: str = ""  # those of `part`
    takes = "biases"
    part: str = choice("all", "small")

    queries = fact(lambda method, site: method.part == "small" and site.name.endswith("attn.qkv.bias"))
    n = size("H e if queries else out")
    delta = trained("n")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", self.targets or TARGETS[self.part])

    def weight(self, b: Any, *, delta: Any) -> Any:
        rest = b.shape[0] - delta.shape[0]
        return b + (ops.concatenate(delta, xp.zeros(rest, b.dtype)) if rest else delta)
