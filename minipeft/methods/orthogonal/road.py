"""RoAd: 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability. Liao, Monz 2024, https://arxiv.org/abs/2409.00119

    h  = W x + b,    y = R h: W' = R W, b' = R b                              (paper, eq. 3)
    y_i = α_i cos θ_i h_i − α_i sin θ_i h_j                                   for every pair (i, j) of outputs
    y_j = α_j sin θ_j h_i + α_j cos θ_j h_j

variant 1: a pair has one θ and one α; 2: each output its own; 4: each output one for the cosine and one for the sine.

Merges   exactly: W' is an ordinary weight.
Differs  The paper pairs neighbours: group=2. HF peft, followed here, pairs the halves of each group of `group` outputs, and turns the bias.

>>> RoAd(group=2).change(theta=np.array([np.pi / 2]), alpha=np.array([2.])).onto(np.array([[1.], [3.]])).round(9)
array([[-6.],
       [ 2.]])
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, fact, fill, requires, such_that, through, trained
from minipeft.engine import ops


@dataclass(frozen=True)
class RoAd(Method):
    """Outputs turned in pairs."""

    name = "road"
    targets: str = QUERY_VALUE
    takes = "linears"
    variant: str = choice("1", "2", "4")
    group: int = such_that(
        lambda g: g > 0 and g % 2 == 0, "be even and above 0", 64, small=2, tried=lambda a: gcd(a.d, 4)
    )

    divides = requires("out % group == 0", "group must divide the width {out}, found {group},")
    n = fact(lambda method, site: int(method.variant) * site.shape[0] // 2)
    theta, alpha = trained("n"), trained("n", start=fill(1))

    def change(self, *, theta: Any, alpha: Any) -> Any:
        def outputs(h: Any) -> Any:
            g, k = self.group, h.shape[-1] // self.group
            shape = {"1": (k, 1, 1, g // 2), "2": (k, 1, 2, g // 2), "4": (k, 2, 2, g // 2)}[self.variant]
            c, d = (ops.reshape(alpha * f(theta), shape=shape) for f in (ops.cos, ops.sin))
            pairs = ops.reshape(h, shape=(*h.shape[:-1], k, 2, g // 2))
            turned = ops.concatenate(-pairs[..., 1:, :], pairs[..., :1, :], axis=-2)
            return ops.reshape(c[:, 0] * pairs + d[:, -1] * turned, shape=h.shape)

        return through(outputs)
