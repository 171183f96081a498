"""P-tuning: GPT Understands, Too. Liu et al. 2021, https://arxiv.org/abs/2103.10385

    P  = U2 relu(U1 LSTM(E0) + u1) + u2                                       (paper, §2.2)
    P  = W3 relu(W2 relu(W1 E0 + b1) + b2) + b3                               encoder="mlp"
    E' = [P; Emb(ids)]                                                        as prompt tuning

LSTM is bidirectional, along the p virtual tokens, of `layers` layers; in each direction, with gates in the order i, f, g, o,

    (i, f, g, o) = Wx x_t + bx + Wh h_{t−1} + bh,   c_t = σ(f) c_{t−1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

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

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, choice, count, each, normal, size, trained, uniform, within
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.methods.prompt.prompt_tuning import PromptTuning

MLP, LSTM, LAYER = "encoder == 'mlp'", "encoder == 'lstm'", "layers if encoder == 'lstm' else 0"


@dataclass(frozen=True)
class PTuning(PromptTuning):
    """Virtual tokens that a small network makes."""

    name = "p_tuning"
    encoder: str = choice("lstm", "mlp", varied=False)
    start: str = choice("normal")  # words cannot be put through the encoder
    hidden: int = count(0, least=0, most=1 << 13, tried=5)  # h; 0: as wide as the model
    layers: int = count(2, most=64)  # of the LSTM
    dropout: float = within("[0, 1)", 0.0)

    h = size("hidden or d")
    P = None
    E0 = trained("p", "d", start=normal())
    W1 = trained("h", "d", start=uniform("d"), when=MLP)
    b1 = trained("h", start=uniform("d"), when=MLP)
    W2 = trained("h", "h", start=uniform("h"), when=MLP)
    b2 = trained("h", start=uniform("h"), when=MLP)
    W3 = trained("d", "h", start=uniform("h"), when=MLP)
    b3 = trained("d", start=uniform("h"), when=MLP)
    lstm = each(
        LAYER,
        Wx=trained("2", "4 h", "2 h if n else d", start=uniform("h")),
        Wh=trained("2", "4 h", "h", start=uniform("h")),
        bx=trained("2", "4 h", start=uniform("h")),
        bh=trained("2", "4 h", start=uniform("h")),
    )
    U1 = trained("2 h", "2 h", start=uniform("2 h"), when=LSTM)
    u1 = trained("2 h", start=uniform("2 h"), when=LSTM)
    U2 = trained("d", "2 h", start=uniform("2 h"), when=LSTM)
    u2 = trained("d", start=uniform("2 h"), when=LSTM)

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
