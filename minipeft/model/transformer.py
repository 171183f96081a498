"""One transformer for every checkpoint family, as pure functions.

`run` hands out weights (`run.param`, `run.linear`, `run.lookup`) and lets methods touch activations
(`run.at(site, h)`, `run.around(site, f, h)`); nothing else here knows that adapters exist. Letters in shape comments:
b rows, t tokens, s keys, d width, h heads, g key/value heads, e width of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minipeft.engine.backend import xp
from minipeft.errors import Bad
from minipeft.model.arch import Arch
from minipeft.model.batch import Batch
from minipeft.model.blocks import stack
from minipeft.model.ends import embed, embed_image, head, loss_of, shifted_right
from minipeft.model.tokens import Tokens
from minipeft.shown import described


@dataclass
class Output:
    """logits (b, t, V), (b, labels) or None for a model without a head; hidden (b, t, d) after the final norm."""

    logits: Any
    hidden: Any
    tokens: Tokens
    loss: Any = None

    __repr__ = described


def forward(run: Any, batch: Batch, past: int = 0) -> Output:
    """One pass over a batch; `past` tokens of it are in `run.cache` already."""
    arch, labels = run.arch, _wide(batch.labels)
    if arch.patch:
        h = embed_image(run, batch.pixel_values)
        tokens = run.tokens = Tokens(h.shape[1])
        h = stack(run, "", h, tokens)
    elif arch.encoder_layers:
        memory, memory_tokens = _encoded(run, batch)
        ids, embeds = batch.decoder_input_ids, batch.decoder_inputs_embeds
        if ids is None and embeds is None:
            if labels is None:
                raise Bad("batch: an encoder-decoder needs decoder_input_ids or labels, found neither")
            ids = shifted_right(labels, arch.start_id, arch.pad_id)
        tokens, h = _begun(run, batch, "", ids, embeds, "decoder_attention_mask", past=past, labels=labels)
        h = stack(run, "", h, tokens, memory, memory_tokens)
    else:
        given = _placed(batch) | dict(labels=labels if arch.per_token else None)
        tokens, h = _begun(run, batch, "", batch.input_ids, batch.inputs_embeds, "attention_mask", past=past, **given)
        h = stack(run, "", h, tokens)
    logits = head(run, h, tokens)
    return Output(logits, h, tokens, None if logits is None else judged(run.arch, logits, tokens, labels))


def judged(arch: Arch, logits: Any, tokens: Tokens, labels: Any) -> Any:
    """The loss of logits, None without labels; those of tokens are with the tokens."""
    labels = tokens.labels if arch.per_token else _wide(labels)
    return None if labels is None else loss_of(arch, logits, labels, tokens.weights)


def _wide(ids: Any) -> Any:
    """Integers so wide that −100, start tokens and moved positions fit."""
    return None if ids is None else ids if ids.dtype.kind == "f" else ids.astype(xp.int64, copy=False)


def _placed(batch: Batch) -> dict[str, Any]:
    return dict(positions=_wide(batch.position_ids), types=batch.token_type_ids)


def _begun(
    run: Any, batch: Batch, prefix: str, ids: Any, embeds: Any, mask_name: str, **given: Any
) -> tuple[Tokens, Any]:
    """The tokens of a stack and their embeddings, what goes into its first layer."""
    arch = run.arch
    mask = getattr(batch, mask_name)
    mask = None if mask is None or batch.ask("all", mask_name) else mask.astype(bool)
    if prefix == "":
        given |= dict(at=None if run.cache is None else run.cache.at)
    t = (ids if embeds is None else embeds).shape[1]
    tokens = run.tokens = Tokens(t, mask, offset=run.offset(prefix), **given)
    if prefix == "" and arch.pool == "last" and ids is not None and arch.pad_id is not None:
        tokens.ends = (xp.arange(t) * (ids != arch.pad_id)).argmax(axis=1)  # as in transformers, whatever the mask
    return tokens, embed(run, prefix, ids, embeds, tokens)


def _encoded(run: Any, batch: Batch) -> tuple[Any, Tokens]:
    """What the encoder makes of its inputs, once for all passes over one cache."""
    if run.cache is not None and run.cache.encoder is not None:
        return run.cache.encoder
    first = "encoder."
    tokens, h = _begun(run, batch, first, batch.input_ids, batch.inputs_embeds, "attention_mask", **_placed(batch))
    made = stack(run, first, h, tokens), tokens
    if run.cache is not None:
        run.cache.encoder = made
    return made
