"""Prefix tuning: Optimizing Continuous Prompts for Generation. Li & Liang 2021, https://arxiv.org/abs/2101.00190

    o = softmax(scale · q [K_l; k]ᵀ) [V_l; v]                                 in attention block l (paper, §4.2)
    K_l, V_l = rows 2l and 2l + 1 of E, or of A2 tanh(A1 E + c1) + c2 with hidden   (§4.3)

K_l, V_l (p, G, e) stand before the keys and values of the text and carry no position. Every query sees them; with
window="past" a sliding window counts them as the p tokens before the text and moves past them.

n is the field blocks, 0 for the number of attention blocks, h the field hidden; G key/value heads of width e.

Merges     no: the keys grow. The projection can be dropped after training: `flat` is what remains.
Positions  The text starts at position p: positions="after". AdapterHub starts it at 0: positions="zero".
Differs    The paper has prefixes in the encoder and in cross-attention too; like HF peft we put them in the self-attention
           of the decoder, other `targets` add others. start="zero" is no identity: zero keys take their share of the
           softmax. start="text" takes the keys and values that the base has of a text's first p tokens, as it would read
           them. In encoder-decoders layer l of HF peft uses the rows of layer 2l mod n, and n is the encoder's:
           layout="peft"; ours is layout="ordered". HF peft saves E with the projection folded in, and puts it into the
           cache, where a sliding window moves past it: window="past"; here every query sees it: window="all".

>>> class Here: state, index, tokens = {}, 1, Tokens(1)
>>> E = np.arange(4.).reshape(1, 4)                                           # p = 1, n = 2, G = e = 1
>>> k = v = np.array([[[[9.]]]])
>>> PrefixTuning(p=1).apply((k, v), Here, E=E)
(array([[[[2.],
         [9.]]]]), array([[[[3.],
         [9.]]]]))
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    Here, Method, Unfit, choice, count, either, fact, free, memory, normal, requires, size, trained, uniform, zero_if,
)  # fmt: skip
from minipeft.engine import ops

ZERO, READ, NET = "start == 'zero'", "start == 'text'", "hidden > 0"
FLAT = "start == 'zero' and not hidden"
TOLD = "start='text', and no other, needs text of at least p = {p} token ids, and no hidden, found {text} and hidden = {hidden}"


@dataclass(frozen=True)
class PrefixTuning(Method):
    """Trained keys and values in every attention block."""

    identity = False
    targets: str = r"re:layers\.\d+\.attn\.kv"
    takes = "keys and values"
    p: int = count(8, tried=3)
    hidden: int = count(0, least=0, most=1 << 13)  # h of the projection, 0: none
    start: str = choice("normal", "zero", "text")
    text: tuple[int, ...] = free(())  # token ids, p or more, for start="text"
    positions: str = choice("after", "zero", reading=True)
    layout: str = choice("ordered", "peft", reading=True)
    window: str = choice("all", "past", varied=False)
    blocks: int = count(0, least=0)  # n, 0: as many as there are attention blocks

    n, k = size("blocks or sites"), size("G e")
    enough = requires("n >= sites", "blocks must be at least {sites}, the number of its sites, found {n},")
    told = requires("len(text) >= p and not hidden if start == 'text' else not text", TOLD)
    reads = fact(lambda method, site: site.arch.causal and not site.arch.encoder_layers)
    alone = requires("reads or not text", "start='text' needs a decoder alone", error=Unfit)
    E = trained("p", "k if hidden else 2 n k", start=either(READ, memory("text"), zero_if(FLAT, normal())), shared=True)
    A1 = trained("hidden", "k", start=uniform("k"), when=NET, shared=True)
    c1 = trained("hidden", start=uniform("k"), when=NET, shared=True)
    A2 = trained("2 n k", "hidden", start=zero_if(ZERO, uniform("hidden")), when=NET, shared=True)
    c2 = trained("2 n k", start=zero_if(ZERO, uniform("hidden")), when=NET, shared=True)

    @property
    def offset(self) -> int:  # type: ignore[override]
        """The position of the first text token."""
        return self.p if self.positions == "after" else 0

    def flat(self, *, E: Any, A1: Any = None, c1: Any = None, A2: Any = None, c2: Any = None) -> Any:
        """All prefixes (p, 2 n G e), the projection folded in: all that is needed after training."""
        return E if A1 is None else ops.linear(ops.tanh(ops.linear(E, A1, c1)), A2, c2)

    def apply(self, kv: tuple[Any, Any], here: Here, **arrays: Any) -> tuple[Any, Any]:
        """k, v (b, G, s, e) with the prefix in front: (b, G, p + s, e) each."""
        if "prefix" not in here.state:
            here.state["prefix"] = self.flat(**arrays)
        prefix = here.state["prefix"]
        b, g, _, e = kv[0].shape
        n = prefix.shape[1] // (2 * g * e)
        row = 2 * (here.index if self.layout == "ordered" else 2 * here.index % n)
        found = []
        for i, x in enumerate(kv):
            at = (row + i) * g * e
            own = ops.transpose(ops.reshape(prefix[:, at : at + g * e], shape=(self.p, g, e)), axes=(1, 0, 2))
            found.append(ops.concatenate(ops.broadcast_to(own, shape=(b, g, self.p, e)), x, axis=2))
        here.tokens.windowed = (self.window == "past",) * self.p + here.tokens.windowed
        return found[0], found[1]
