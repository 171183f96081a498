"""RoAd: 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability. Liao, Monz 2024, https://arxiv.org/abs/2409.00119

    h  = W x + b,    W' = R W,    b' = R b                                    (paper, eq. 3)
    y_i = α_i cos θ_i h_i − α_i sin θ_i h_j                                   for every pair (i, j) of outputs
    y_j = α_j sin θ_j h_i + α_j cos θ_j h_j

variant 1: a pair has one θ and one α; 2: each output its own; 4: each output one for the cosine and one for the sine.

Merges   exactly: W' is an ordinary weight.
Differs  The paper pairs neighbours, which is group=2; HF peft, followed here, pairs output i of the first half of each group of `group`
         outputs with that of the second half, and the bias is turned too. R need not be orthogonal, whatever α is.

>>> RoAd(group=2).change(theta=np.array([np.pi / 2]), alpha=np.array([2.])).onto(np.array([[1.], [3.]])).round(9)
array([[-6.],
       [ 2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, fact, fill, requires, size, such_that, through, trained
from minipeft.engine import ops


@dataclass(frozen=True)
class RoAd(Method):
    """Outputs turned in pairs."""

    name = "road"
    targets: str = QUERY_VALUE
    takes = "linears"
    variant: str = choice("1", "2", "4")
    group: int = such_that(
        lambda g: g > 0 and g % 2 == 0, "be even and above 0", 64, small=2, tried=lambda arch: 2 if arch.d == 14 else 4
    )

    divides = requires("out % group == 0", "group must divide the width {out}, found {group},")
    each = fact(lambda method, site: {"1": 1, "2": 2, "4": 4}[method.variant])
    n = size("each out / 2")
    theta = trained("n")
    alpha = trained("n", start=fill(1))

    def change(self, *, theta: Any, alpha: Any) -> Any:
        g = self.group

        def outputs(h: Any) -> Any:
            k = h.shape[-1] // g
            shape = {"1": (k, 1, 1, g // 2), "2": (k, 1, 2, g // 2), "4": (k, 2, 2, g // 2)}[self.variant]
            c, d = (ops.reshape(alpha * f(theta), shape=shape) for f in (ops.cos, ops.sin))
            pairs = ops.reshape(h, shape=(*h.shape[:-1], k, 2, g // 2))
            first, second = pairs[..., :1, :], pairs[..., 1:, :]
            turned = ops.concatenate(-second, first, axis=-2)
            return ops.reshape(c[:, 0] * pairs + d[:, -1] * turned, shape=h.shape)

        return through(outputs)
