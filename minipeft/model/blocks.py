"""The layers between both ends: norms, attention, feed-forward, and stacks of them.

Letters in shape comments: b rows, t tokens, s keys, d width,
h heads, g key/value heads, e width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.tensor import value
from minipeft.errors import Bad
from minipeft.model.activations import ACTIVATIONS
from minipeft.model.arch import Arch
from minipeft.model.parts import attentions, projections, relative_table
from minipeft.model.tokens import Tokens, visibility


@dataclass(frozen=True)
class Bare:
    """What the functions here ask of a run, for parameters that no method is at: a method's own network may be a `stack`.

    Before it stands what embeds a `batch`, perhaps.
    """

    arch: Arch
    params: Mapping[str, Any]
    batch: Any = None
    cache = None

    @property
    def dtype(self) -> Any:
        """What it computes in."""
        return next(iter(self.params.values())).dtype

    def has(self, name: str) -> bool:
        """Whether there is a parameter of this name."""
        return name in self.params

    def param(self, name: str) -> Any:
        """The parameter of this name."""
        return self.params[name]

    def linear(self, module: str, x: Any) -> Any:
        """x Wᵀ + b."""
        return ops.linear(x, self.params[f"{module}.weight"], self.params.get(f"{module}.bias"))

    def lookup(self, module: str, ids: Any) -> Any:
        """Rows `ids` of a table."""
        return ops.take(self.params[f"{module}.weight"], ids=ids)

    def at(self, site: str, h: Any, **facts: Any) -> Any:
        """h as it is."""
        return h

    def around(self, site: str, f: Callable[[Any], Any], h: Any) -> Any:
        """f(h)."""
        return f(h)


def norm(run: Any, name: str, x: Any) -> Any:
    """Layer norm or RMS norm with the weights of module `name`."""
    arch = run.arch
    if arch.norm == "rms":
        y = ops.rms_norm(x, run.param(f"{name}.weight"), eps=arch.eps)
    else:
        y = ops.layer_norm(x, run.param(f"{name}.weight"), run.param(f"{name}.bias"), eps=arch.eps)
    return run.at(f"{name}.out", y)


def rope_tables(arch: Arch, positions: Any, dtype: Any) -> tuple[Any, Any]:
    """cos and sin of the rotary angles, each (b or 1, 1, t, e/2) (Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 15).

    Scalings: "linear" divides the position; "llama3" divides the slow frequencies and blends in between, as in the
    Llama 3.1 checkpoints. Raises `Bad` for another scaling.
    """
    half = arch.dh // 2
    freq = arch.rope_theta ** (-xp.arange(half, dtype=xp.float64) / half)
    scaling = dict(arch.rope_scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        freq = freq / scaling["factor"]
    elif kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)  # over the original context
        fast = xp.clip((turns - low) / (high - low), 0, 1)
        freq = freq * (fast + (1 - fast) / scaling["factor"])
    elif kind != "default":
        raise Bad(f"rope scaling {kind!r} is not supported; expected default, linear or llama3")
    angle = positions[:, None, :, None] * freq
    return xp.cos(angle).astype(dtype), xp.sin(angle).astype(dtype)


def relative_bias(run: Any, name: str, queries: Any, keys: Any, bidirectional: bool) -> Any:
    """T5's learned bias of the attention scores, (1, h, t, s), by bucket of the distance key − query.

    Raffel et al. 2019, https://arxiv.org/abs/1910.10683, §2.1: half of the buckets hold exact distances, the other half
    grow logarithmically up to max_distance.
    """
    arch = run.arch
    distance = keys[None, :] - queries[:, None]
    n = arch.buckets
    bucket = xp.zeros_like(distance)
    if bidirectional:
        n //= 2
        bucket = (distance > 0) * n
        distance = abs(distance)
    else:
        distance = -xp.minimum(distance, 0)
    exact = n // 2
    far = xp.log(xp.maximum(distance, 1) / exact) / math.log(arch.max_distance / exact) * (n - exact)
    bucket = bucket + xp.where(distance < exact, distance, xp.minimum(exact + far.astype(distance.dtype), n - 1))
    table = ops.take(run.param(f"{name}.weight"), ids=bucket)  # (t, s, h)
    return ops.transpose(table, axes=(2, 0, 1))[None]


def attention(
    run: Any,
    name: str,
    u: Any,
    tokens: Tokens,
    memory: Any = None,
    memory_tokens: Tokens | None = None,
    causal: bool = True,
    window: int | None = None,
) -> Any:
    """Multi-head attention of u (b, t, d) over itself, or over `memory` (b, s, d): (b, t, d)."""
    arch = run.arch
    h, g, e = arch.heads, arch.kv, arch.dh
    b, t = u.shape[:2]

    def split(x: Any, heads: int) -> Any:  # (b, t, heads·e) -> (b, heads, t, e)
        return ops.swapaxes(ops.reshape(x, shape=(b, -1, heads, e)), a=1, b=2)

    cache, site = run.cache, f"{name}.kv"
    if "qkv" in projections(arch, name.rpartition(".")[2]):
        qkv = run.linear(f"{name}.qkv", u)
        q, k, v = qkv[..., : h * e], qkv[..., h * e : (h + g) * e], qkv[..., (h + g) * e :]
        q, k, v = split(q, h), split(k, g), split(v, g)
    else:
        q = split(run.linear(f"{name}.q", u), h)
        if memory is not None and cache is not None and site in cache.memory:
            k, v = cache.memory[site]
        else:
            source = u if memory is None else memory
            k, v = split(run.linear(f"{name}.k", source), g), split(run.linear(f"{name}.v", source), g)
    if arch.positions == "rope" and memory is None:
        if "rope" not in tokens.shared:
            tokens.shared["rope"] = rope_tables(arch, tokens.position_ids(), q.dtype)
        cos, sin = tokens.shared["rope"]
        q, k = ops.rope(q, cos=cos, sin=sin), ops.rope(k, cos=cos, sin=sin)
    if cache is not None and memory is None:
        k, v = cache.extend(site, k, v)
    elif cache is not None:
        cache.memory[site] = value(k), value(v)
    keys, tokens.windowed = k.shape[2], ()
    k, v = run.at(site, (k, v), u=u)
    extra = k.shape[2] - keys  # a method's prefix

    if memory_tokens is None:
        bias = visibility(tokens, keys, extra, causal, window, q.dtype)
    else:
        bias = visibility(memory_tokens, keys, extra, False, None, q.dtype)
    if memory is None and (table := relative_table(arch, name.rpartition("layers.")[0])):
        at = ("relative", keys, extra)
        if at not in tokens.shared:
            learned = relative_bias(run, table, tokens.places(keys), xp.arange(-extra, keys), not causal)
            tokens.shared[at] = learned if bias is None else learned + bias
        bias = tokens.shared[at]
    scale = arch.dh**-0.5 if arch.scale is None else arch.scale
    o = ops.attention(q, k, v, scale=scale) if bias is None else ops.attention(q, k, v, bias, scale=scale)
    o = ops.reshape(ops.swapaxes(o, a=1, b=2), shape=(b, t, h * e))
    o = run.at(f"{name}.heads", o, q=q, u=u)
    return run.linear(f"{name}.o", o)


def mlp(run: Any, name: str, u: Any) -> Any:
    """The feed-forward, gated or not: (b, t, d) -> (b, t, d)."""
    arch = run.arch
    if arch.gated:
        gate, up = run.linear(f"{name}.gate", u), run.linear(f"{name}.up", u)
        hidden = ops.silu_mul(gate, up) if arch.act == "silu" else ACTIVATIONS[arch.act](gate) * up
    else:
        hidden = ACTIVATIONS[arch.act](run.linear(f"{name}.up", u))
    hidden = run.at(f"{name}.hidden", hidden)
    return run.linear(f"{name}.down", hidden)


def sublayer(run: Any, name: str, x: Any, f: Callable[[Any], Any]) -> Any:
    """x + f(norm(x)), or norm(x + f(x)) where norms come after; with its sites.

    `{name}.in` is the input of f, `{name}.out` its output before the residual sum, `{name}.res` what leaves the
    sub-layer. At the last two a method sees the residual stream x, the input u, and `combine`, which adds x to what it
    is given and, in post-norm models, normalises.
    """
    pre = run.arch.pre_norm
    u = norm(run, f"{name}.norm", x) if pre else x
    u = run.at(f"{name}.in", u, x=x)

    def combine(a: Any) -> Any:
        return x + a if pre else norm(run, f"{name}.norm", x + a)

    a = run.at(f"{name}.out", f(u), x=x, u=u, combine=combine)
    return run.at(f"{name}.res", combine(a), x=x, u=u, a=a)


def stack(
    run: Any, prefix: str, h: Any, tokens: Tokens, memory: Any = None, memory_tokens: Tokens | None = None
) -> Any:
    """All layers of one stack and its final norm: (b, t, d) -> (b, t, d)."""
    arch = run.arch
    causal = arch.causal and prefix != "encoder."

    def attend(name: str, n: int) -> Callable[[Any], Any]:
        if name.endswith(".cross"):
            return lambda u: attention(run, name, u, tokens, memory, memory_tokens, causal=False)
        return lambda u: attention(run, name, u, tokens, causal=causal, window=arch.window_of(n))

    def block(n: int, h: Any) -> Any:
        layer = f"{prefix}layers.{n}"
        h = run.at(f"{layer}.in", h)
        for part in attentions(arch, prefix):
            h = sublayer(run, f"{layer}.{part}", h, attend(f"{layer}.{part}", n))
        h = sublayer(run, f"{layer}.mlp", h, lambda u: mlp(run, f"{layer}.mlp", u))
        return run.at(f"{layer}.out", h)

    for n in range(arch.stacks[prefix]):
        h = run.around(f"{prefix}layers.{n}", lambda h, n=n: block(n, h), h)
    if run.has(f"{prefix}final.norm.weight"):
        h = norm(run, f"{prefix}final.norm", h)
    return run.at(f"{prefix}final.out", h)
