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
from minipeft.model.batch import Batch
from minipeft.model.blocks import stack
from minipeft.model.ends import embed, embed_image, head, loss_of, shifted_right
from minipeft.model.tokens import Tokens


@dataclass
class Output:
    """logits (b, t, V), (b, labels) or None for a model without a head; hidden (b, t, d) after the final norm."""

    logits: Any
    hidden: Any
    tokens: Tokens
    loss: Any = None


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
