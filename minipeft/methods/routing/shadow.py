"""ShadowPEFT: Shadow Network for Parameter-Efficient Fine-Tuning. Li et al. 2026, https://arxiv.org/abs/2604.19254

    s = P Backbone(E)                                                         E the embedded text; no P where as wide
    h' = Layer(h + alpha W_up W_down (h − s))                                 at every layer in turn
    s' = (1 − g) s + g T(h')       g = σ(G(h')),   T(x) = T2 gelu(T1 x + t1) + t2, and G alike

A second network beside the frozen one: a backbone of `depth` layers of the base's own kind makes its state s, which
corrects what goes into every layer and is moved by what comes out. The last state is read by none. With labels the loss is
that of the task and `auxiliary` times that of the first s: by the base's head, or a classifier C of its last token.
Of `embed.tokens.out` the backbone has positions and types of its own; `embed.out` goes into its first layer as it is.

Merges   no: the correction depends on the text.
Dropout  of h − s, as in HF peft; the paper's equation has it behind W_down.
Differs  The paper has causal decoders alone; HF peft takes encoders too, and gives the padding token's row of an own
         table no gradient. T and G of the last layer have none, there as here. Generation keeps no cache.

>>> Shadow().advance(np.array([[1., 3.]]), np.array([[3., 5.]]), np.zeros((1, 2)))
array([[2., 4.]])
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from minipeft.declare import (
    Bad, Here, Method, Unfit, at_least, choice, count, fact, found, free, network, requires, size, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.model.arch import Arch
from minipeft.model.blocks import Bare, stack
from minipeft.model.ends import embed, head
from minipeft.model.mirrored import lettered, mirrored

FROM_BASE = {k: found(lambda m, its, k=k: its.param(f"score.{k}"), "the base's") for k in ("weight", "bias")}


def backbone(m: Any, arch: Arch, site: str) -> tuple[Arch, dict[str, str]]:
    """The architecture of the backbone that begins at a site, and {array: the parameter that it is}."""
    embeds = site == "embed.tokens.out"
    inner = mirrored(arch, m.depth, m.inner, m.heads, m.width, embeds)
    return inner, lettered(inner, m.table == "own" or inner.d != arch.d, embeds)


@dataclass(frozen=True)
class Shadow(Method):
    """A small network whose state corrects what goes into every layer."""

    targets: str = r"re:embed\.tokens\.out|layers\.\d+"
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
    kind = fact(lambda method, site: not (site.arch.encoder_layers or site.arch.patch))
    judges = fact(lambda method, site: site.arch.head == "classify" and method.auxiliary > 0)
    shifts = fact(lambda method, site: "score" in site.arch.biased)
    labels = fact(lambda method, site: site.arch.labels)
    u, w = size("hidden or r"), size("inner or d_model")
    text = requires("kind", "expected one stack over text, {site} is in another", error=Unfit)
    net = network(lambda method, site: backbone(method, site.arch, site.name))  # names: `minipeft.model.mirrored`
    P = trained("d_model", "w", start=uniform("w"), shared=True, when="w != d_model")
    C = trained("labels", "d_model", shared=True, when="judges", start=FROM_BASE["weight"])
    c = trained("labels", shared=True, when="judges and shifts", start=FROM_BASE["bias"])
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
        if here.site.startswith("layers."):
            return lambda x: self.corrected(h, x, here, **arrays)
        arch, names = backbone(self, here.arch, here.site)
        run = Bare(arch, {param: arrays[a] for a, param in names.items()}, here.run.batch)
        if "E" in names and run.batch.input_ids is None:
            raise Bad("shadow: expected input_ids, which its backbone has a table of its own for, found inputs_embeds")
        tokens = replace(here.tokens, types=None, shared={})
        s = stack(run, "", embed(run, "", run.batch.input_ids, None if "E" in names else h, tokens), tokens)
        here.state["s"] = s = ops.linear(s, arrays["P"]) if "P" in arrays else s
        here.add_loss(self.auxiliary, lambda: self.judged(s, here, arrays))
        return h

    def judged(self, s: Any, here: Here, arrays: Any) -> Any:
        """What the head says of the first state, or the classifier of its last token."""
        if "C" not in arrays:
            return head(here.run, s, here.tokens)
        return ops.linear(ops.getitem(s, index=(xp.arange(s.shape[0]), here.tokens.last)), arrays["C"], arrays.get("c"))

    def corrected(
        self, f: Any, h: Any, here: Here, *, W_down: Any, W_up: Any,
        T1: Any, t1: Any, T2: Any, t2: Any, G1: Any, g1: Any, G2: Any, g2: Any, **shared: Any,
    ) -> Any:  # fmt: skip
        """f(h + the correction), (b, t, d); the state moves on."""
        if "s" not in here.state:
            raise Bad("shadow: expected embed.tokens.out among the targets, where the state begins")
        s = here.state["s"]
        h = f(h + self.alpha * ops.linear(ops.linear(here.dropout(h - s, self.dropout), W_down), W_up))
        t, z = (ops.linear(ops.gelu(ops.linear(h, A, a)), B, b) for A, a, B, b in ((T1, t1, T2, t2), (G1, g1, G2, g2)))
        here.state["s"] = self.advance(s, t, z)
        return h
