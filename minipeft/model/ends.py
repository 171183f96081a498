"""Both ends of the model: what goes into the first layer, what comes of the last, and the loss."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.errors import Bad
from minipeft.model.activations import ACTIVATIONS
from minipeft.model.arch import Arch
from minipeft.model.batch import IGNORE
from minipeft.model.blocks import norm
from minipeft.model.parts import BEFORE_SCORE
from minipeft.model.tokens import Tokens


def embed(run: Any, prefix: str, ids: Any, embeds: Any, tokens: Tokens) -> Any:
    """Token embeddings, then positions, types and a norm where the family has them: (b, t, d)."""
    arch = run.arch
    h = run.lookup("embed.tokens", ids) if embeds is None else _typed(run, embeds)
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
    x = ops.reshape(_typed(run, pixels), shape=(b, c, H // p, p, W // p, p))
    x = ops.reshape(ops.transpose(x, axes=(0, 2, 4, 1, 3, 5)), shape=(b, (H // p) * (W // p), c * p * p))
    h = run.linear("embed.patch", x)
    h = ops.concatenate(ops.broadcast_to(run.param("embed.cls"), shape=(b, 1, arch.d)), h, axis=1)
    return run.at("embed.out", h + run.param("embed.positions.weight"))


def _typed(run: Any, x: Any) -> Any:
    """What a batch has of floats, in the model's own type; a Tensor as it is."""
    return x if hasattr(x, "node") else x.astype(run.dtype, copy=False)


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
    if arch.predicts_tokens:
        if arch.transform:
            h = norm(run, "head.norm", ACTIVATIONS[arch.transform](run.linear("head.transform", h)))
        h = run.at("head.in", h)
        return run.linear("head", h if arch.head_scale == 1.0 else h * arch.head_scale)
    if arch.head == "classify":
        h = pooled(run, h, tokens)
        if dense := BEFORE_SCORE.get(arch.family):
            h = ops.tanh(run.linear(dense, h))
    return run.linear("score", h)


def loss_of(arch: Arch, logits: Any, labels: Any, weights: Any = None) -> Any:
    """The mean cross-entropy; a causal language model's logits are compared with the next label.

    With weights, like the labels, each term of the mean is multiplied by its label's.

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
        weights = None if weights is None else xp.concatenate([weights[:, 1:], 0 * weights[:, :1]], axis=1)
    if tuple(logits.shape[:-1]) != tuple(labels.shape):
        raise Bad(f"labels: expected shape {tuple(logits.shape[:-1])} like the logits, found {tuple(labels.shape)}")
    if weights is None:
        return ops.cross_entropy(logits, labels=labels, ignore=IGNORE)
    kept = labels != IGNORE
    at = (*xp.indices(labels.shape), xp.where(kept, labels, 0))
    share = (weights * kept / xp.maximum(kept.sum(), 1)).astype(logits.dtype)
    return -ops.sum(ops.getitem(ops.log_softmax(logits), index=at) * share)


def shifted_right(labels: Any, start: int | None, pad: int | None) -> Any:
    """Decoder inputs from labels (b, t): the start token first, the last label dropped, −100 replaced by padding."""
    if start is None or pad is None:
        raise Bad(
            "labels alone do not make decoder inputs: the checkpoint names no decoder_start_token_id or pad_token_id"
        )
    ids = xp.concatenate([xp.full((labels.shape[0], 1), start, labels.dtype), labels[:, :-1]], axis=1)
    return xp.where(ids == IGNORE, pad, ids)
