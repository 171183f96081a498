"""ShadowPEFT: Shadow Network for Parameter-Efficient Fine-Tuning. Li et al. 2026, https://arxiv.org/abs/2604.19254

    s = P Backbone(E)                                                         E what goes into the first layer; no P where as wide
    h' = Layer(h + alpha W_up W_down (h − s))                                 at every layer in turn
    s' = (1 − g) s + g T(h')       g = σ(G(h')),   T(x) = T2 gelu(T1 x + t1) + t2, and G alike

A second network beside the frozen one: a backbone of `depth` layers of the base's own kind makes its state s, which
corrects what goes into every layer and is moved by what comes out. The last state is read by none. With labels the loss is
that of the task and `auxiliary` times that of the base's head on the first s, where the base predicts the next token.

Merges   no: the correction depends on the text.
Dropout  of h − s, as in HF peft; the paper's equation has it behind W_down.
Differs  HF peft's classifiers have a copy of their head for that loss; here they have none. It gives the padding token's row of an
         own table no gradient. T and G of the last layer have none, there as here. Generation keeps no cache.

>>> Shadow().advance(np.array([[1., 3.]]), np.array([[3., 5.]]), np.zeros((1, 2)))
array([[2., 4.]])
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from minipeft.declare import (
    Bad, Here, Method, Unfit, at_least, choice, count, each, fact, fill, free, normal, requires, size, trained, uniform, within,
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
    inner: int = at_least(0, 0)  # how wide the backbone is; 0: as the base
    heads: int = at_least(0, 0)  # of the backbone; 0: as many as the base's
    table: str = choice("base", "own", varied=False)  # whose embeddings the backbone sees; of another width its own
    auxiliary: float = at_least(0, 0.05)

    layer = fact(lambda method, site: site.name.startswith("layers."))
    kind = fact(lambda method, site: site.arch.norm == "rms" and site.arch.causal and not site.arch.encoder_layers)
    gated = fact(lambda method, site: site.arch.gated)
    in_bias, out_bias, ff_bias = (fact(lambda m, site, end=end: end in site.arch.biased) for end in ("q", "o", "up"))
    u, m = size("hidden if hidden else r"), size("width if width else ff")
    w, Q = size("inner if inner else d_model"), size("heads if heads else H")
    groups = requires("Q % G == 0", "heads must be a multiple of {G}, the base's heads of keys and values, found {Q},")
    llama = requires("kind", "expected a causal decoder with RMS norms, {site} is in another", error=Unfit)
    backbone = each(
        "depth", shared=True,
        na=trained("w", start=fill(1)), q=trained("Q e", "w", start=normal(0.02)), bq=trained("Q e", when="in_bias"),
        k=trained("G e", "w", start=normal(0.02)), bk=trained("G e", when="in_bias"),
        v=trained("G e", "w", start=normal(0.02)), bv=trained("G e", when="in_bias"),
        o=trained("w", "Q e", start=normal(0.02)), bo=trained("w", when="out_bias"), nm=trained("w", start=fill(1)),
        gate=trained("m", "w", start=normal(0.02), when="gated"), bgate=trained("m", when="gated and ff_bias"),
        up=trained("m", "w", start=normal(0.02)), bup=trained("m", when="ff_bias"),
        down=trained("w", "m", start=normal(0.02)), bdown=trained("w", when="ff_bias"),
    )  # fmt: skip
    norm = trained("w", start=fill(1), shared=True)
    E = trained("V", "w", start=normal(0.02), shared=True, when="table == 'own' or w != d_model")
    P = trained("d_model", "w", start=uniform("w"), shared=True, when="w != d_model")
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
            names = {f"{a}{n}": f"layers.{n}.{PARTS[a]}" for n in range(self.depth) for a in PARTS}
            own = {names.get(k, "final.norm.weight"): v for k, v in arrays.items() if k in names or k == "norm"}
            wide: dict[str, Any] = dict(d=len(arrays["norm"]), heads=self.heads or here.arch.heads)
            arch = replace(here.arch, layers=self.depth, kv_heads=here.arch.kv, head_dim=here.arch.dh, **wide)
            s = stack(Bare(arch, own), "", self.seen(h, here, arrays.get("E")), here.tokens)
            here.state["s"] = s = ops.linear(s, arrays["P"]) if "P" in arrays else s
            here.add_loss(self.auxiliary, s)
            return h
        return lambda x: self.corrected(h, x, here, **arrays)

    def seen(self, h: Any, here: Here, E: Any) -> Any:
        """What the backbone sees, (b, t, w): h, or rows of its own table."""
        if E is None:
            return h
        if (ids := here.run.batch.input_ids) is None:
            raise Bad("shadow: expected input_ids, which its backbone has a table of its own for, found inputs_embeds")
        return ops.take(E, ids=ids)

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
