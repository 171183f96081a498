"""P-tuning: GPT Understands, Too. Liu et al. 2021, https://arxiv.org/abs/2103.10385

    P  = U2 relu(U1 LSTM(E0) + u1) + u2                                       (paper, §2.2)
    P  = W3 relu(W2 relu(W1 E0 + b1) + b2) + b3                               encoder="mlp"
    E' = [P; Emb(ids)]                                                        as prompt tuning

LSTM is bidirectional, along the p virtual tokens, of `layers` layers; in each direction, with gates in the order i, f, g, o,

    (i, f, g, o) = Wx x_t + bx + Wh h_{t−1} + bh,   c_t = σ(f) c_{t−1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

    E0   (p, d)       trained   N(0, 1)
    W1   (h, d)       trained   U(±1/√d); only with encoder="mlp", as the following five
    b1   (h)          trained   U(±1/√d); only with encoder="mlp"
    W2   (h, h)       trained   U(±1/√h); only with encoder="mlp"
    b2   (h)          trained   U(±1/√h); only with encoder="mlp"
    W3   (d, h)       trained   U(±1/√h); only with encoder="mlp"
    b3   (d)          trained   U(±1/√h); only with encoder="mlp"
    Wx0  (2, 4 h, d)  trained   U(±1/√h), forwards and backwards; only with encoder="lstm". In later layers (2, 4 h, 2 h)
    Wh0  (2, 4 h, h)  trained   U(±1/√h); only with encoder="lstm"
    bx0  (2, 4 h)     trained   U(±1/√h); only with encoder="lstm"
    bh0  (2, 4 h)     trained   U(±1/√h); only with encoder="lstm"
    Wx1  (2, 4 h, 2 h)  trained   U(±1/√h); only with encoder="lstm" and layers > 1
    Wh1  (2, 4 h, h)  trained   U(±1/√h); only with encoder="lstm" and layers > 1
    bx1  (2, 4 h)     trained   U(±1/√h); only with encoder="lstm" and layers > 1
    bh1  (2, 4 h)     trained   U(±1/√h); only with encoder="lstm" and layers > 1
    U1   (2 h, 2 h)   trained   U(±1/√(2h)); only with encoder="lstm"
    u1   (2 h)        trained   U(±1/√(2h)); only with encoder="lstm"
    U2   (d, 2 h)     trained   U(±1/√(2h)); only with encoder="lstm"
    u2   (d)          trained   U(±1/√(2h)); only with encoder="lstm"

Size       p d + encoder_size numbers in all: h d + 2 h + h² + d h + d of the MLP; of the LSTM 8 h in + 8 h² + 16 h a layer,
           in = d and then 2h, and 4 h² + 2 h + 2 h d + d.
Merges     no: the sequence grows. The encoder can be dropped after training: `prompt` is what remains.
Positions  As prompt tuning.
Dropout    acts between the layers of the LSTM.
Differs    The paper's encoder is an LSTM; the MLP came with a later implementation. HF peft saves P alone, so that its
           training cannot go on; we save all. For encoder-decoders its LSTM runs over 2 p rows, of which it uses p.

>>> nil = np.zeros(1)
>>> mlp = dict(W1=np.ones((1, 1)), b1=nil, W2=np.ones((1, 1)), b2=nil, W3=np.array([[2.]]), b3=nil)
>>> PTuning(encoder="mlp", p=2).prompt(None, E0=np.array([[3.], [-3.]]), **mlp)
array([[6.],
       [0.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.method import Here, Site
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.settings import choice, count, within


@dataclass(frozen=True)
class PTuning(PromptTuning):
    """Virtual tokens that a small network makes."""

    encoder: str = choice("lstm", "mlp")
    start: str = choice("normal")  # words cannot be put through the encoder
    hidden: int = count(0, least=0, most=1 << 13)  # h; 0: as wide as the model
    layers: int = count(2, most=64)  # of the LSTM
    dropout: float = within("[0, 1)", 0.0)
    name: ClassVar[str] = "p_tuning"

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        h = self.hidden or d
        if self.encoder == "mlp":
            return dict(W1=(h, d), b1=(h,), W2=(h, h), b2=(h,), W3=(d, h), b3=(d,))
        found: dict[str, tuple[int, ...]] = {}
        for n in range(self.layers):
            found |= {
                f"Wx{n}": (2, 4 * h, 2 * h if n else d),
                f"Wh{n}": (2, 4 * h, h),
                f"bx{n}": (2, 4 * h),
                f"bh{n}": (2, 4 * h),
            }
        return found | dict(U1=(2 * h, 2 * h), u1=(2 * h,), U2=(d, 2 * h), u2=(d,))

    def sizes(self, site: Site) -> dict[str, int]:
        (d,) = site.shape
        return dict(h=self.hidden or d, encoder_size=sum(int(np.prod(s)) for s in self._shapes(d).values()))

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        (d,) = site.shape
        h = self.hidden or d
        fan = dict(W1=d, b1=d, U1=2 * h, u1=2 * h, U2=2 * h, u2=2 * h)
        arrays: dict[str, Any] = dict(E0=rng.standard_normal((self.p, d)))
        for name, shape in self._shapes(d).items():
            bound = fan.get(name, h) ** -0.5
            arrays[name] = rng.uniform(-bound, bound, shape)
        return arrays

    def prompt(self, here: Here | None, *, E0: Any, **net: Any) -> Any:
        """P (p, d), all that is needed after training."""
        if self.encoder == "mlp":
            x = ops.relu(ops.linear(E0, net["W1"], net["b1"]))
            return ops.linear(ops.relu(ops.linear(x, net["W2"], net["b2"])), net["W3"], net["b3"])
        x = E0
        for n in range(self.layers):
            x = here.dropout(x, self.dropout) if n and here is not None else x
            layer = [net[f"{name}{n}"] for name in ("Wx", "Wh", "bx", "bh")]
            x = ops.concatenate(
                self._lstm(x, *(a[0] for a in layer)), self._lstm(x[::-1], *(a[1] for a in layer))[::-1], axis=1
            )
        return ops.linear(ops.relu(ops.linear(x, net["U1"], net["u1"])), net["U2"], net["u2"])

    def _lstm(self, x: Any, Wx: Any, Wh: Any, bx: Any, bh: Any) -> Any:
        """One direction of one layer: (p, in) -> (p, h)."""
        h, given = Wh.shape[1], ops.linear(x, Wx, bx)
        state = cell = xp.zeros((1, h), x.dtype)
        out = []
        for t in range(x.shape[0]):
            gates = given[t : t + 1] + ops.linear(state, Wh, bh)
            i, f, g, o = (gates[:, n * h : (n + 1) * h] for n in range(4))
            cell = ops.sigmoid(f) * cell + ops.sigmoid(i) * ops.tanh(g)
            state = ops.sigmoid(o) * ops.tanh(cell)
            out.append(state)
        return ops.concatenate(*out, axis=0)

    def apply(self, h: Any, here: Here, **arrays: Any) -> Any:
        return super().apply(h, here, P=self.prompt(here, **arrays)) if here.prefill else h
