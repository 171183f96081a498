"""LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention. Zhang et al. 2023, https://arxiv.org/abs/2303.16199

    o' = o + g · softmax(scale · q K_Aᵀ) V_A,   K_A = A Wkᵀ + bk,  V_A = A Wvᵀ + bv      (paper, eqs. 5 to 9)

where o are the joined heads of a layer before the output projection, q its queries with their positions, and Wk, Wv its
own. The softmax over the prompt is apart from that over the text; A's keys carry no position and need no mask.

Merges   no: a second attention.
Differs  The paper adapts the topmost layers and has a gate for every head; HF peft one a layer, as here; give `layers` to
         choose. HF peft adds after the output projection: on Llama it projects its part by itself, and so adds the
         projection's bias twice: adds="projected"; on GPT-2 it leaves the projection out and always scales by 1/√e:
         adds="bare". For these two readings aim at "attn.heads attn.o.out".

>>> class Here: site, arch, q = "layers.0.attn.heads", Arch("llama", 1, 1, 1, 1, 1), np.array([[[[1.]]]])
>>> Here.param = staticmethod({"attn.k.weight": np.eye(1), "attn.v.weight": 3 * np.eye(1)}.get)
>>> LLaMAAdapter(K=2).apply(np.array([[[5.]]]), Here, A=np.array([[2.], [2.]]), g=np.array([0.5]))
array([[[8.]]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, Method, Unfit, choice, count, fact, normal, requires, trained
from minipeft.engine import ops


@dataclass(frozen=True)
class LLaMAAdapter(Method):
    """A prompt in a second, gated attention."""

    name = "llama_adapter"
    targets: str = "attn.heads"
    K: int = count(10, tried=3)
    adds: str = choice("heads", "projected", "bare", reading=True, varied=False)

    heads = fact(lambda method, site: site.name.endswith("attn.heads"))
    later = fact(lambda method, site: method.adds != "heads" and site.name.endswith("attn.o.out"))
    there = requires("heads or later", "expected attn.heads sites, found {site}", error=Unfit)
    A = trained("K", "d_model", start=normal(), when="heads")
    g = trained("1", when="heads")

    def apply(self, h: Any, here: Here, **arrays: Any) -> Any:
        """At attn.heads h is o (b, t, H e). In the other readings the branch waits there for attn.o.out."""
        if here.site.endswith("o.out"):
            return h + here.state.pop(here.layer)
        branch = self.branch(here, **arrays)
        if self.adds == "heads":
            return h + branch
        projected = self.adds == "projected"
        here.state[here.layer] = (
            ops.linear(branch, here.param("attn.o.weight"), here.param("attn.o.bias")) if projected else branch
        )
        return h

    def branch(self, here: Here, *, A: Any, g: Any) -> Any:
        """g · softmax(scale · q K_Aᵀ) V_A, heads joined: (b, t, H e)."""
        arch, q = here.arch, here.q
        b, h, t, e = q.shape
        kv = arch.kv * e
        if arch.fused_qkv:
            W, bias = here.param("attn.qkv.weight"), here.param("attn.qkv.bias")
            both = ops.linear(A, W[h * e :], bias[h * e :] if bias is not None else None)
            K_A, V_A = both[:, :kv], both[:, kv:]
        else:
            K_A, V_A = (ops.linear(A, here.param(f"attn.{x}.weight"), here.param(f"attn.{x}.bias")) for x in "kv")
        K_A, V_A = (
            ops.broadcast_to(
                ops.transpose(ops.reshape(x, shape=(self.K, arch.kv, e)), axes=(1, 0, 2)), shape=(b, arch.kv, self.K, e)
            )
            for x in (K_A, V_A)
        )
        scale = e**-0.5 if arch.scale is None or self.adds == "bare" else arch.scale
        o = ops.attention(q, K_A, V_A, scale=scale)
        return g * ops.reshape(ops.swapaxes(o, a=1, b=2), shape=(b, t, h * e))
