"""Ladder side-tuning: LST, Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning. Sung et al. 2022, https://arxiv.org/abs/2206.06522

    s_0 = D_0 h_0                                                             (paper, §3.2)
    s_l = Block_l(g_l s_{l−1} + (1 − g_l) D_l h_l),   g_l = σ(alpha_l / T)    h_l: output of layer l, a constant
    h'  = U norm(s_L)                                                         in place of the final hidden state
    Block(s) = v + W2 f(W1 norm(v)),   v = s + Wo attention(Wq norm(s), Wk norm(s), Wv norm(s))

A small network of width w = d / r beside the frozen one: it reads the backbone's hidden states and answers in its place,
through the frozen head. No gradient runs through the backbone, so none of its activations is kept.

Merges   no: a second network.
Differs  The paper starts the side network from a pruned copy of the backbone; here it starts at random. Its gate weights
         the side stream in the authors' code, as here, and the ladder in the text. Norms are RMS norms, positions come
         with the ladder alone; of an encoder-decoder only the decoder has a side network. Generation keeps no cache.

>>> LadderSide().gate(np.zeros(1), np.array([[1., 3.]]), np.array([[3., 5.]]))
array([[2., 4.]])
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    Here, Method, Unfit, at_least, choice, fact, fill, positive, requires, size, trained, uniform,
)  # fmt: skip
from minipeft.engine import ops, stop_gradient
from minipeft.model.activations import ACTIVATIONS
from minipeft.model.tokens import visibility

RUNGS = r"embed\.out|layers\.\d+\.out|final\.out"


@dataclass(frozen=True)
class LadderSide(Method):
    """A narrow transformer beside the frozen one."""

    identity = False
    targets: str = f"re:{RUNGS}"
    r: int = at_least(1, 8, small=4, tried=2)  # d / w
    T: float = positive(0.1, tried=0.7)
    f: str = choice(*ACTIVATIONS, default="relu", varied=False)

    rung = fact(lambda method, site: bool(re.fullmatch(RUNGS, site.name)))
    layer = fact(lambda method, site: site.name.startswith("layers."))
    last = fact(lambda method, site: site.name == "final.out")
    w, m = size("max(1, d / r)"), size("max(1, ff / r)")
    ours = requires("rung", "expected embed.out and outputs of the decoder's layers, found {site}", error=Unfit)
    some = requires(
        "sites > 1 or not last",
        "expected embed.out and outputs of the decoder's layers, found {site} alone",
        error=Unfit,
    )
    D = trained("w", "d", start=uniform("d"), when="not last", late=True)
    alpha = trained("1", when="layer")
    Wq, Wk, Wv, Wo = (trained("w", "w", start=uniform("w"), when="layer") for _ in range(4))
    n1 = trained("w", start=fill(1), when="layer")
    W1 = trained("m", "w", start=uniform("w"), when="layer", late=True)
    W2 = trained("w", "m", start=uniform("m"), when="layer", late=True)
    n2 = trained("w", start=fill(1), when="layer")
    n = trained("w", start=fill(1), when="last")
    U = trained("d", "w", start=uniform("w"), when="last")

    def before(self, here: Here, forward: Callable[[], Any], **shared: Any) -> None:
        """The side stream begins anew with every pass, over the whole sequence."""
        here.state.clear()

    def gate(self, alpha: Any, s: Any, ladder: Any) -> Any:
        """g s + (1 − g) ladder, g = σ(alpha / T)."""
        g = ops.sigmoid(alpha / self.T)
        return g * s + (1 - g) * ladder

    def apply(self, h: Any, here: Here, **arrays: Any) -> Any:
        """The backbone's h as it is; the side network's answer at the end. The side stream travels in `here.state`."""
        if here.site == "final.out":
            s = ops.rms_norm(here.state["s"], arrays["n"], eps=here.arch.eps)
            return ops.linear(s, arrays["U"])
        rung = ops.linear(stop_gradient(h), arrays.pop("D"))
        here.state["s"] = rung if "s" not in here.state else self.block(here.state["s"], rung, here, **arrays)
        return h

    def block(
        self,
        s: Any,
        rung: Any,
        here: Here,
        *,
        alpha: Any, Wq: Any, Wk: Any, Wv: Any, Wo: Any, n1: Any, W1: Any, W2: Any, n2: Any,
    ) -> Any:  # fmt: skip
        """One side layer, (b, t, w) -> (b, t, w), in heads as many of the backbone's as divide w."""
        arch, (b, t, w) = here.arch, s.shape
        heads = math.gcd(arch.heads, w)
        s = self.gate(alpha, s, rung)
        u = ops.rms_norm(s, n1, eps=arch.eps)
        q, k, v = (
            ops.swapaxes(ops.reshape(ops.linear(u, W), shape=(b, t, heads, w // heads)), a=1, b=2) for W in (Wq, Wk, Wv)
        )
        layer = int(here.site.split(".")[1])  # layers.n.out
        bias = visibility(here.tokens, t, 0, arch.causal, arch.window_of(layer), u.dtype)
        o = ops.attention(q, k, v, bias, scale=(w // heads) ** -0.5)
        s = s + ops.linear(ops.reshape(ops.swapaxes(o, a=1, b=2), shape=(b, t, w)), Wo)
        return s + ops.linear(ACTIVATIONS[self.f](ops.linear(ops.rms_norm(s, n2, eps=arch.eps), W1)), W2)
