"""One transformer for every checkpoint family, as pure functions.

`run` hands out weights (`run.param`, `run.linear`, `run.lookup`) and lets methods touch activations
(`run.at(site, h)`, `run.around(site, f, h)`); nothing else here knows that adapters exist. Letters in shape comments:
b rows, t tokens, s keys, d width, h heads, g key/value heads, e width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import lowest, read_only, xp
from minipeft.engine.tensor import value
from minipeft.errors import Bad
from minipeft.model.activations import ACTIVATIONS
from minipeft.model.arch import IGNORE, Arch, Batch


@dataclass
class Output:
    """logits (b, t, V), (b, labels) or None for a model without a head; hidden (b, t, d) after the final norm."""

    logits: Any
    hidden: Any
    tokens: Tokens
    loss: Any = None


@dataclass
class Tokens:
    """The bookkeeping of one sequence axis, which methods that insert virtual tokens change."""

    t: int  # tokens in this pass
    mask: Any = None  # (b, past + t) bool, None: all visible
    positions: Any = None  # (b, t) given by the caller, None: counted
    moved: int = 0  # how far virtual tokens have moved those, at most
    highest: int = 0  # the largest position of a virtual token
    types: Any = None  # (b, t)
    labels: Any = None  # (b, t) if labels are per token
    virtual: int = 0  # inserted so far
    past: int = 0  # tokens already in the cache
    at: Any = None  # (t,) where those of this pass stand among the keys, None: at the end
    offset: int = 0  # position of the first token
    ends: Any = None  # (b,) each row's last token that is no padding by its id, not counting virtual ones
    pool: int | None = None  # the position a classifier must read, if a method insists on one
    windowed: tuple[bool, ...] = ()  # of each prefix key of the block at work: does a sliding window move past it?
    shared: dict = field(default_factory=dict)  # attention biases of this pass, built once

    def insert(self, h: Any, P: Any, at: int = 0) -> Any:
        """h (b, t, d) with the virtual tokens P (p, d) or (b, p, d) inserted before index `at`: (b, t + p, d).

        They are visible to all, have token type 0 and label −100, and take the positions from `at` on; what follows
        moves up by p.
        """
        b, p = h.shape[0], P.shape[-2]
        if P.ndim == 2:
            P = ops.broadcast_to(P, shape=(b, *P.shape))
        parts = [x for x in (h[:, :at], P, h[:, at:]) if x.shape[1]]

        def spread(x: Any, fill: Any) -> Any:
            new = fill if hasattr(fill, "shape") else xp.full((x.shape[0], p), fill, x.dtype)
            return xp.concatenate([x[:, :at], new, x[:, at:]], axis=1)

        if self.mask is not None:
            self.mask = spread(self.mask, True)
        if self.types is not None:
            self.types = spread(self.types, 0)
        if self.labels is not None:
            self.labels = spread(self.labels, IGNORE)
        if self.positions is not None:
            new = xp.broadcast_to(xp.arange(at, at + p, dtype=self.positions.dtype), (b, p))
            moved = xp.concatenate([self.positions[:, :at], self.positions[:, at:] + p], axis=1)
            more = p * (at < self.positions.shape[1])
            self.moved, self.highest = self.moved + more, max(self.highest + more, at + p - 1)
            self.positions = xp.concatenate([moved[:, :at], new, moved[:, at:]], axis=1)
        self.t += p
        self.virtual += p
        self.shared.clear()
        return ops.concatenate(*parts, axis=1)

    def position_ids(self) -> Any:
        """(1, t) or (b, t): the position of every token of this pass."""
        if self.positions is not None:
            return self.positions + self.offset
        return xp.arange(self.past + self.offset, self.past + self.offset + self.t)[None]

    def places(self, keys: int) -> Any:
        """(t,): where the tokens of this pass stand among the keys."""
        return xp.arange(keys - self.t, keys) if self.at is None else self.at

    @property
    def first(self) -> Any:
        """(b,) or 0: index of each row's first visible token."""
        return 0 if self.mask is None else self.mask.argmax(axis=1)

    @property
    def last(self) -> Any:
        """(b,) or t − 1: index of each row's last visible token."""
        n = self.t + self.past
        return n - 1 if self.mask is None else n - 1 - self.mask[:, ::-1].argmax(axis=1)


# --- the pieces -----------------------------------------------------------------------------------------------------


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


def visibility(tokens: Tokens, keys: int, extra: int, causal: bool, window: int | None, dtype: Any) -> Any:
    """What is added to the scores: 0 where a query may see a key, a huge negative number elsewhere; None if all may.

    `keys` text keys follow `extra` prefix keys, which everybody sees, or a window as `tokens.windowed` says. Shape
    (b or 1, 1, t or 1, extra + keys). A query that may see none (padding on the left, a window over padding, an empty
    memory) attends to all alike, as in transformers: see `ops.attention`.
    """
    causal = causal and (tokens.t > 1 or tokens.at is not None)
    slides = tokens.windowed if window and any(tokens.windowed) else ()
    at = ("mask", keys, extra, causal, window, slides)
    if at not in tokens.shared:
        allowed = None
        if causal or window:
            query, key = tokens.places(keys)[:, None], xp.arange(keys)[None, :]
            allowed = (key <= query)[None, None]
            if window:
                allowed = allowed & (query - key < window)
        if tokens.mask is not None:
            seen = tokens.mask[:, None, None, :]
            allowed = seen if allowed is None else allowed & seen
        if allowed is not None:
            if extra:
                before = xp.ones((*allowed.shape[:-1], extra), bool)
                if window and slides:
                    distance = tokens.places(keys)[:, None] - xp.arange(-extra, 0)[None, :]
                    before = (
                        before
                        & ((distance < window) | ~xp.asarray((False,) * (extra - len(slides)) + slides))[None, None]
                    )
                allowed = xp.concatenate([before, allowed], axis=-1)
            hidden = xp.full((), lowest(dtype) / 2, dtype)
            allowed = read_only(xp.where(allowed, xp.zeros((), dtype), hidden))
        tokens.shared[at] = allowed
    return tokens.shared[at]


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
    if arch.fused_qkv and memory is None:
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
    if arch.positions == "relative" and memory is None:
        at = ("relative", keys, extra)
        if at not in tokens.shared:
            table = name.split("layers.")[0] + "relbias"
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

    def block(n: int, h: Any) -> Any:
        name = f"{prefix}layers.{n}"
        h = run.at(f"{name}.in", h)
        seen = dict(causal=causal, window=arch.window_of(n))
        h = sublayer(run, f"{name}.attn", h, lambda u: attention(run, f"{name}.attn", u, tokens, **seen))
        if memory is not None:
            h = sublayer(
                run,
                f"{name}.cross",
                h,
                lambda u: attention(run, f"{name}.cross", u, tokens, memory, memory_tokens, causal=False),
            )
        h = sublayer(run, f"{name}.mlp", h, lambda u: mlp(run, f"{name}.mlp", u))
        return run.at(f"{name}.out", h)

    for n in range(arch.stacks[prefix]):
        h = run.around(f"{prefix}layers.{n}", lambda h, n=n: block(n, h), h)
    if run.has(f"{prefix}final.norm.weight"):
        h = norm(run, f"{prefix}final.norm", h)
    return run.at(f"{prefix}final.out", h)


# --- both ends ------------------------------------------------------------------------------------------------------


def embed(run: Any, prefix: str, ids: Any, embeds: Any, tokens: Tokens) -> Any:
    """Token embeddings, then positions, types and a norm where the family has them: (b, t, d)."""
    arch = run.arch
    h = run.lookup("embed.tokens", ids) if embeds is None else embeds
    h = run.at(f"{prefix}embed.tokens.out", h)  # virtual tokens may come in here, before positions
    if arch.positions == "learned":
        rows, last = tokens.position_ids(), tokens.past + tokens.t - 1 + arch.first_position
        if tokens.positions is not None:
            last, room = tokens.highest, arch.max_positions - tokens.offset - tokens.moved
            if arch.max_positions and not run.batch.ask("below", "position_ids", room):
                last = max(last, int(run.batch.host("position_ids").max()) + tokens.moved)
        elif arch.first_position and ids is not None and not tokens.virtual:
            real = ids != arch.pad_id  # RoBERTa: pads keep the padding position and do not count
            rows = xp.cumsum(real, axis=1) * real + arch.first_position - 1 + tokens.offset * real
            last = int((run.batch.host("input_ids") != arch.pad_id).sum(axis=1).max()) + arch.first_position - 1
        else:
            rows = rows + arch.first_position
        if arch.max_positions and last + tokens.offset >= arch.max_positions:
            raise Bad(
                f"sequence too long: the position table has {arch.max_positions} rows, token {tokens.t - 1} needs row "
                f"{last + tokens.offset}"
            )
        h = h + run.lookup("embed.positions", rows)
    if run.has("embed.types.weight"):
        h = h + run.lookup("embed.types", xp.zeros((1, tokens.t), int) if tokens.types is None else tokens.types)
    if run.has("embed.norm.weight"):
        h = norm(run, "embed.norm", h)
    return run.at(f"{prefix}embed.out", h)


def embed_image(run: Any, pixels: Any) -> Any:
    """Patches as tokens: (b, c, H, W) -> (b, 1 + patches, d), a class token first (Dosovitskiy 2020, arXiv 2010.11929, eq. 1)."""
    arch = run.arch
    b, c, H, W = pixels.shape
    p = arch.patch
    if (c, H, W) != (arch.channels, arch.image, arch.image):
        raise Bad(
            f"pixel_values: expected (b, {arch.channels}, {arch.image}, {arch.image}), found {tuple(pixels.shape)}"
        )
    if H % p or W % p:  # the convolution leaves the rest out
        pixels = pixels[:, :, : H // p * p, : W // p * p]
    x = ops.reshape(pixels, shape=(b, c, H // p, p, W // p, p))
    x = ops.reshape(ops.transpose(x, axes=(0, 2, 4, 1, 3, 5)), shape=(b, (H // p) * (W // p), c * p * p))
    h = run.linear("embed.patch", x)
    h = ops.concatenate(ops.broadcast_to(run.param("embed.cls"), shape=(b, 1, arch.d)), h, axis=1)
    return run.at("embed.out", h + run.param("embed.positions.weight"))


def pooled(run: Any, h: Any, tokens: Tokens) -> Any:
    """The one vector of each row (b, d) that a classifier reads."""
    arch = run.arch
    b = h.shape[0]
    if arch.pool == "mean":
        start = tokens.virtual
        if tokens.mask is None:
            return ops.mean(h[:, start:], axis=1)
        weight = tokens.mask.astype(h.dtype)
        weight[:, :start] = 0
        weight = weight / xp.maximum(weight.sum(axis=1, keepdims=True), 1)
        return ops.sum(h * weight[:, :, None], axis=1)
    if tokens.pool is not None:
        return h[:, tokens.pool]
    if arch.pool == "last" and tokens.ends is not None:
        return ops.getitem(h, index=(xp.arange(b), tokens.ends + tokens.virtual))
    if arch.pool == "first" or isinstance(tokens.last, int):
        return h[:, 0 if arch.pool == "first" else tokens.last]
    return ops.getitem(h, index=(xp.arange(b), tokens.last))


def head(run: Any, h: Any, tokens: Tokens) -> Any:
    """logits from the hidden state h (b, t, d), or None for a model without a head."""
    arch = run.arch
    if arch.head == "none":
        return None
    if arch.head in ("lm", "mlm"):
        if arch.transform:
            h = norm(run, "head.norm", ACTIVATIONS[arch.transform](run.linear("head.transform", h)))
        h = run.at("head.in", h)
        return run.linear("head", h if arch.head_scale == 1.0 else h * arch.head_scale)
    if arch.head == "classify":
        h = pooled(run, h, tokens)
        if run.has("pooler.weight"):
            h = ops.tanh(run.linear("pooler", h))
        if run.has("score.dense.weight"):
            h = ops.tanh(run.linear("score.dense", h))
    return run.linear("score", h)


def loss_of(arch: Arch, logits: Any, labels: Any) -> Any:
    """The mean cross-entropy; a causal language model's logits are compared with the next label.

    For a classifier of one label the mean squared error; for labels (b, classes) of floats the mean binary cross-entropy.
    """
    problem = arch.problem_of(labels.dtype.kind)
    if problem in ("regression", "multi_label_classification"):
        shape = (logits.shape[0],) if arch.labels == 1 else tuple(logits.shape)
        if tuple(labels.shape) != shape and tuple(labels.shape) != tuple(logits.shape):
            raise Bad(f"labels of a {problem}: expected shape {shape}, found {tuple(labels.shape)}")
        y = labels.astype(logits.dtype).reshape(logits.shape)
        if problem == "regression":
            return ops.mean((logits - y) * (logits - y))
        return ops.mean(ops.softplus(logits) - logits * y)  # −y log σ − (1 − y) log(1 − σ)
    if arch.head == "lm" and not arch.encoder_layers:  # move the labels, not the far larger logits
        last = xp.full((labels.shape[0], 1), IGNORE, labels.dtype)
        labels = xp.concatenate([labels[:, 1:], last], axis=1)
    if tuple(logits.shape[:-1]) != tuple(labels.shape):
        raise Bad(f"labels: expected shape {tuple(logits.shape[:-1])} like the logits, found {tuple(labels.shape)}")
    return ops.cross_entropy(logits, labels=labels, ignore=IGNORE)


def forward(run: Any, batch: Batch, past: int = 0) -> Output:
    """One pass over a batch; `past` tokens of it are in `run.cache` already."""
    arch = run.arch
    per_token = arch.head in ("lm", "mlm", "tokens")

    def wide(ids: Any) -> Any:  # so that −100, start tokens and moved positions fit
        return None if ids is None else ids if ids.dtype.kind == "f" else ids.astype(xp.int64, copy=False)

    labels = wide(batch.labels)

    def count(prefix: str, ids: Any, embeds: Any, mask_name: str, **given: Any) -> Tokens:
        t = (ids if embeds is None else embeds).shape[1]
        mask = getattr(batch, mask_name)
        mask = None if mask is None or batch.ask("all", mask_name) else mask.astype(bool)
        if prefix == "":
            given |= dict(past=past, at=None if run.cache is None else run.cache.at)
        return Tokens(t, mask, offset=run.offset(prefix), **given)

    if arch.patch:
        h = embed_image(run, batch.pixel_values)
        tokens = run.tokens = Tokens(h.shape[1])
        h = stack(run, "", h, tokens)
    else:
        first = "encoder." if arch.encoder_layers else ""
        ids, embeds = batch.input_ids, batch.inputs_embeds
        memory = memory_tokens = None
        if arch.encoder_layers:
            if run.cache is not None and run.cache.encoder is not None:
                memory, memory_tokens = run.cache.encoder
            else:
                memory_tokens = run.tokens = count(
                    first, ids, embeds, "attention_mask", positions=wide(batch.position_ids), types=batch.token_type_ids
                )
                memory = embed(run, first, ids, embeds, memory_tokens)
                memory = stack(run, first, memory, memory_tokens)
            if run.cache is not None:
                run.cache.encoder = memory, memory_tokens
            ids, embeds = batch.decoder_input_ids, batch.decoder_inputs_embeds
            if ids is None and embeds is None:
                if labels is None:
                    raise Bad("batch: an encoder-decoder needs decoder_input_ids or labels, found neither")
                ids = shifted_right(labels, arch.start_id, arch.pad_id)
            tokens = run.tokens = count("", ids, embeds, "decoder_attention_mask", labels=labels)
        else:
            tokens = run.tokens = count(
                "",
                ids,
                embeds,
                "attention_mask",
                positions=wide(batch.position_ids),
                types=batch.token_type_ids,
                labels=labels if per_token else None,
            )
        if arch.pool == "last" and ids is not None and arch.pad_id is not None:  # as in transformers, whatever the mask
            tokens.ends = (xp.arange(tokens.t) * (ids != arch.pad_id)).argmax(axis=1)
        h = embed(run, "", ids, embeds, tokens)
        h = stack(run, "", h, tokens, memory, memory_tokens)
    logits = head(run, h, tokens)
    labels = tokens.labels if per_token else labels
    loss = None if labels is None or logits is None else loss_of(arch, logits, labels)
    return Output(logits, h, tokens, loss)


def shifted_right(labels: Any, start: int | None, pad: int | None) -> Any:
    """Decoder inputs from labels (b, t): the start token first, the last label dropped, −100 replaced by padding."""
    if start is None or pad is None:
        raise Bad(
            "labels alone do not make decoder inputs: the checkpoint names no decoder_start_token_id or pad_token_id"
        )
    ids = xp.concatenate([xp.full((labels.shape[0], 1), start, labels.dtype), labels[:, :-1]], axis=1)
    return xp.where(ids == IGNORE, pad, ids)


def activation_sites(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Every activation site of this architecture and the width of what passes there (the last axis)."""
    sites: dict[str, tuple[int, ...]] = {}
    d, he, ge = arch.d, arch.heads * arch.dh, arch.kv * arch.dh
    for prefix, layers in arch.stacks.items():
        if not arch.patch:
            sites[f"{prefix}embed.tokens.out"] = (d,)
        sites[f"{prefix}embed.out"] = (d,)
        for n in range(layers):
            layer = f"{prefix}layers.{n}"
            sites[layer] = sites[f"{layer}.in"] = (d,)
            attends = ["attn", "cross"] if arch.encoder_layers and not prefix else ["attn"]
            for part in [*attends, "mlp"]:
                for end in ("in", "out", "res", "norm.out"):
                    sites[f"{layer}.{part}.{end}"] = (d,)
            for part in attends:
                fused = arch.fused_qkv and part == "attn"
                outs = {"qkv": he + 2 * ge, "o": d} if fused else {"q": he, "k": ge, "v": ge, "o": d}
                sites |= {f"{layer}.{part}.{m}.out": (width,) for m, width in outs.items()}
                sites[f"{layer}.{part}.kv"] = (arch.kv, arch.dh)
                sites[f"{layer}.{part}.heads"] = (he,)
            for m, width in {"up": arch.ff, "hidden": arch.ff, "down": d}.items():
                sites[f"{layer}.mlp.{m}" + (".out" if m != "hidden" else "")] = (width,)
            if arch.gated:
                sites[f"{layer}.mlp.gate.out"] = (arch.ff,)
            sites[f"{layer}.out"] = (d,)
        sites[f"{prefix}final.norm.out"] = sites[f"{prefix}final.out"] = (d,)
    if arch.head in ("lm", "mlm"):
        sites["head.in"], sites["head.out"] = (d,), (arch.vocab,)
    if arch.labels:
        sites["score.out"] = (arch.labels,)
    return sites


def shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by name, in the order of the forward pass."""
    d, ff, he, ge = arch.d, arch.ff, arch.heads * arch.dh, arch.kv * arch.dh
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, cols: int) -> None:
        out[f"{name}.weight"] = (rows, cols)
        if name in arch.biased or name.rpartition(".")[2] in arch.biased:
            out[f"{name}.bias"] = (rows,)

    def norm(name: str) -> None:
        out[f"{name}.weight"] = (d,)
        if arch.norm == "layer":
            out[f"{name}.bias"] = (d,)

    if arch.patch:
        linear("embed.patch", d, arch.channels * arch.patch**2)
        out["embed.cls"] = (1, 1, d)
        out["embed.positions.weight"] = (1 + (arch.image // arch.patch) ** 2, d)
    else:
        out["embed.tokens.weight"] = (arch.vocab, d)
        if arch.positions == "learned":
            out["embed.positions.weight"] = (arch.max_positions, d)
        if arch.types:
            out["embed.types.weight"] = (arch.types, d)
        if not arch.pre_norm:
            norm("embed.norm")
    for prefix, layers in arch.stacks.items():
        if arch.positions == "relative":
            out[f"{prefix}relbias.weight"] = (arch.buckets, arch.heads)
        for n in range(layers):
            layer = f"{prefix}layers.{n}"
            for part in ["attn", "cross"] if arch.encoder_layers and not prefix else ["attn"]:
                norm(f"{layer}.{part}.norm")
                rows = {"qkv": he + 2 * ge} if arch.fused_qkv else {"q": he, "k": ge, "v": ge}
                for m, width in rows.items():
                    linear(f"{layer}.{part}.{m}", width, d)
                linear(f"{layer}.{part}.o", d, he)
            norm(f"{layer}.mlp.norm")
            for m in ["gate", "up"] if arch.gated else ["up"]:
                linear(f"{layer}.mlp.{m}", ff, d)
            linear(f"{layer}.mlp.down", d, ff)
        if arch.pre_norm:
            norm(f"{prefix}final.norm")
    if arch.transform and arch.head in ("lm", "mlm"):
        out |= {"head.transform.weight": (d, d), "head.transform.bias": (d,)}
        norm("head.norm")
    if arch.head in ("lm", "mlm"):
        if not arch.tied:
            out["head.weight"] = (arch.vocab, d)
        if "head" in arch.biased:
            out["head.bias"] = (arch.vocab,)
    if arch.head == "classify":
        if arch.family == "bert":
            out |= {"pooler.weight": (d, d), "pooler.bias": (d,)}
        if arch.family == "roberta":
            out |= {"score.dense.weight": (d, d), "score.dense.bias": (d,)}
    if arch.head in ("classify", "tokens"):
        linear("score", arch.labels, d)
    return out
