"""ShadowPEFT: Shadow Network for Parameter-Efficient Fine-Tuning. Li et al. 2026, https://arxiv.org/abs/2604.19254

    s = Backbone(E)                                                           E what goes into the first layer
    h' = Layer(h + alpha W_up W_down (h − s))                                 at every layer in turn
    s' = (1 − g) s + g T(h')       g = σ(G(h')),   T(x) = T2 gelu(T1 x + t1) + t2, and G alike

A second network beside the frozen one: a backbone of `depth` layers of the base's own kind makes its state s, which
corrects what goes into every layer and is moved by what comes out. The last state is read by none.

Merges   no: the correction depends on the text.
Dropout  of h − s, as in HF peft; the paper's equation has it behind W_down.
Differs  The paper and HF peft add to the loss auxiliary_loss_weight (0.05) times that of the base's head on the first s;
         here the loss is the task's alone. HF peft can give the backbone another width, other heads and embeddings of its own;
         here it has the base's. T and G of the last layer have no gradient, there as here. Generation keeps no cache.

>>> Shadow().advance(np.array([[1., 3.]]), np.array([[3., 5.]]), np.zeros((1, 2)))
array([[2., 4.]])
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from minipeft.declare import (
    Bad, Here, Method, Unfit, at_least, count, each, fact, fill, free, normal, requires, size, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.model.blocks import Bare, stack

LINEARS = dict(q="attn.q", k="attn.k", v="attn.v", o="attn.o", gate="mlp.gate", up="mlp.up", down="mlp.down")
PARTS = {a: f"{name}.weight" for a, name in (LINEARS | dict(na="attn.norm", nm="mlp.norm")).items()}
PARTS |= {f"b{a}": f"{name}.bias" for a, name in LINEARS.items()}


@dataclass(frozen=True)
class Shadow(Method):
    """A small network whose state corrects what goes into every layer."""

    targets: str = r"re:embed\.out|layers\.\d+"
    r: int = count(8, small=3)
    alpha: float = free(0.1, tried=0.7)
    dropout: float = within("[0, 1)", 0.2)
    hidden: int = at_least(0, 0, tried=2)  # of T and G; 0: r
    depth: int = count(1, most=64)
    width: int = at_least(0, 0, tried=3)  # of the backbone's feed-forward; 0: the base's

    layer = fact(lambda method, site: site.name.startswith("layers."))
    kind = fact(lambda method, site: site.arch.norm == "rms" and site.arch.causal and not site.arch.encoder_layers)
    gated = fact(lambda method, site: site.arch.gated)
    in_bias, out_bias, ff_bias = (
        fact(lambda method, site, end=end: end in site.arch.biased) for end in ("q", "o", "up")
    )
    u, m = size("hidden if hidden else r"), size("width if width else ff")
    llama = requires("kind", "expected a causal decoder with RMS norms, {site} is in another", error=Unfit)
    backbone = each(
        "depth", shared=True,
        na=trained("d_model", start=fill(1)), q=trained("H e", "d_model", start=normal(0.02)), bq=trained("H e", when="in_bias"),
        k=trained("G e", "d_model", start=normal(0.02)), bk=trained("G e", when="in_bias"),
        v=trained("G e", "d_model", start=normal(0.02)), bv=trained("G e", when="in_bias"),
        o=trained("d_model", "H e", start=normal(0.02)), bo=trained("d_model", when="out_bias"), nm=trained("d_model", start=fill(1)),
        gate=trained("m", "d_model", start=normal(0.02), when="gated"), bgate=trained("m", when="gated and ff_bias"),
        up=trained("m", "d_model", start=normal(0.02)), bup=trained("m", when="ff_bias"),
        down=trained("d_model", "m", start=normal(0.02)), bdown=trained("d_model", when="ff_bias"),
    )  # fmt: skip
    norm = trained("d_model", start=fill(1), shared=True)
    W_down = trained("r", "d", start=uniform("d"), when="layer")
    W_up = trained("d", "r", when="layer")
    T1, G1 = (trained("u", "d", start=uniform("d"), when="layer") for _ in range(2))
    t1, g1 = (trained("u", start=uniform("d"), when="layer") for _ in range(2))
    T2, G2 = (trained("d", "u", start=uniform("u"), when="layer") for _ in range(2))
    t2, g2 = (trained("d", start=uniform("u"), when="layer") for _ in range(2))

    def before(self, here: Here, forward: Callable[[], Any], **shared: Any) -> None:
        """The state begins anew with every pass, over the whole sequence."""
        here.state.clear()

    def advance(self, s: Any, t: Any, z: Any) -> Any:
        """(1 − g) s + g t, g = σ(z)."""
        g = ops.sigmoid(z)
        return (1 - g) * s + g * t

    def apply(self, h: Any, here: Here, **arrays: Any) -> Any:
        """At the embedding h as it is, and the first state; around a layer, which is given as h, the layer corrected."""
        if here.site == "embed.out":
            every = ((n, a) for n in range(self.depth) for a in PARTS if f"{a}{n}" in arrays)
            own = {f"layers.{n}.{PARTS[a]}": arrays[f"{a}{n}"] for n, a in every}
            run = Bare(replace(here.arch, layers=self.depth), own | {"final.norm.weight": arrays["norm"]})
            here.state["s"] = stack(run, "", h, here.tokens)
            return h
        return lambda x: self.corrected(h, x, here, **arrays)

    def corrected(
        self, f: Any, h: Any, here: Here, *, W_down: Any, W_up: Any,
        T1: Any, t1: Any, T2: Any, t2: Any, G1: Any, g1: Any, G2: Any, g2: Any, **shared: Any,
    ) -> Any:  # fmt: skip
        """f(h + the correction), (b, t, d); the state moves on."""
        if "s" not in here.state:
            raise Bad("shadow: expected embed.out among the targets, where the state begins")
        s = here.state["s"]
        h = f(h + self.alpha * ops.linear(ops.linear(here.dropout(h - s, self.dropout), W_down), W_up))
        t, z = (ops.linear(ops.gelu(ops.linear(h, A, a)), B, b) for A, a, B, b in ((T1, t1, T2, t2), (G1, g1, G2, g2)))
        here.state["s"] = self.advance(s, t, z)
        return h
