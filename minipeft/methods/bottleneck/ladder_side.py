"""Ladder side-tuning: LST, Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning. Sung et al. 2022, https://arxiv.org/abs/2206.06522

    s_0 = D_0 h_0                                                             (paper, §3.2)
    s_l = Block_l(g_l s_{l−1} + (1 − g_l) D_l h_l),   g_l = σ(alpha_l / T)    h_l: output of layer l, a constant
    h'  = U norm(s_L)                                                         in place of the final hidden state
    Block(s) = v + W2 f(W1 norm(v)),   v = s + Wo attention(Wq norm(s), Wk norm(s), Wv norm(s))

A small network of width w = d / r beside the frozen one: it reads the backbone's hidden states and answers in its place,
through the frozen head. No gradient runs through the backbone, so none of its activations is kept.

    D      (w, d)  trained   U(±1/√d)
    alpha  (1)     trained   0; in each layer
    Wq     (w, w)  trained   U(±1/√w); in each layer, as the following
    Wk     (w, w)  trained   U(±1/√w)
    Wv     (w, w)  trained   U(±1/√w)
    Wo     (w, w)  trained   U(±1/√w)
    n1     (w)     trained   1; the weight of the norm before attention
    W1     (m, w)  trained   U(±1/√w)
    W2     (w, m)  trained   U(±1/√m)
    n2     (w)     trained   1; the weight of the norm before the feed-forward
    n      (w)     trained   1; the weight of the final norm
    U      (d, w)  trained   U(±1/√w)

Size     (L + 1) w d + L (4 w w + 2 w m + 2 w + 1) + w + d w numbers in all; w = d / r, m = ff / r.
Merges   no: a second network.
Differs  The paper starts the side network from a pruned copy of the backbone; here it starts at random. Its gate weights
         the side stream in the authors' code, as here, and the ladder in the text. Norms are RMS norms, positions come
         with the ladder alone; of an encoder-decoder only the decoder has a side network. Generation keeps no cache.

>>> LadderSide().gate(np.zeros(1), np.array([[1., 3.]]), np.array([[3., 5.]]))
array([[2., 4.]])
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops, stop_gradient
from minipeft.errors import Unfit
from minipeft.method import Here, Method, Site
from minipeft.model.arch import Arch
from minipeft.model.transformer import ACTIVATIONS, visibility
from minipeft.settings import at_least, choice, positive


@dataclass(frozen=True)
class LadderSide(Method):
    """A narrow transformer beside the frozen one."""

    targets: str = r"re:embed\.out|layers\.\d+\.out|final\.out"
    r: int = at_least(1, 8)  # d / w
    T: float = positive(0.1)
    f: str = choice(*ACTIVATIONS, default="relu", varied=False)
    identity: ClassVar[bool] = False
    caches: ClassVar[bool] = False

    @classmethod
    def sized(cls, arch: Arch) -> LadderSide:
        return cls(r=4)

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(w=max(1, site.arch.d // self.r), m=max(1, site.arch.ff // self.r))

    def init_all(self, sites: list[Site], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
        names = [site.name for site in sites]
        strange = [n for n in names if not re.fullmatch(r"embed\.out|layers\.\d+\.out|final\.out", n)]
        if strange or names == ["final.out"]:
            found = strange[0] if strange else "final.out alone"
            raise Unfit(f"{self.name}: expected embed.out and outputs of the decoder's layers, found {found}")
        return super().init_all(sites, rng)

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        d, (w, m) = site.arch.d, self.sizes(site).values()

        def draw(out: int, in_: int) -> np.ndarray:
            return rng.uniform(-(in_**-0.5), in_**-0.5, (out, in_))

        if site.name == "final.out":
            return dict(n=np.ones(w), U=draw(d, w))
        if site.name == "embed.out":
            return dict(D=draw(w, d))
        square = {name: draw(w, w) for name in ("Wq", "Wk", "Wv", "Wo")}
        return dict(
            D=draw(w, d), alpha=np.zeros(1), **square, n1=np.ones(w), W1=draw(m, w), W2=draw(w, m), n2=np.ones(w)
        )

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
        alpha: Any,
        Wq: Any,
        Wk: Any,
        Wv: Any,
        Wo: Any,
        n1: Any,
        W1: Any,
        W2: Any,
        n2: Any,
    ) -> Any:
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
