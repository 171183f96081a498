"""Generation: greedy, or sampling with temperature, top-k and top-p; with or without a cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.engine.backend import explained, to_host
from minipeft.engine.tensor import value
from minipeft.errors import Bad
from minipeft.model.batch import Batch
from minipeft.model.cache import Fixed, Growing
from minipeft.model.graph import Replay, recorder
from minipeft.model.tokens import Tokens
from minipeft.settings import at_least, check, within


def pick(logits: np.ndarray, rng: np.random.Generator, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The next token (b,) from logits (b, V): the most probable if temperature is 0, else one drawn at random.

    top_k > 0 keeps the k most probable; top_p < 1 keeps the fewest most probable whose probabilities sum to at least
    top_p (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, §3.1).
    """
    if temperature == 0:
        return logits.argmax(axis=-1)
    x = logits.astype(np.float64) / temperature
    order = np.argsort(-x, axis=-1, kind="stable")
    x = np.take_along_axis(x, order, axis=-1)
    p = np.exp(x - x[:, :1])
    if top_k:
        p[:, top_k:] = 0
    p /= p.sum(axis=-1, keepdims=True)
    p *= (np.cumsum(p, axis=-1) - p) < top_p  # what comes before is not yet enough
    total = np.cumsum(p, axis=-1)
    drawn = (total < rng.random((len(x), 1)) * total[:, -1:]).sum(axis=-1)
    return np.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]


@dataclass(frozen=True)
class _Asked:
    """What `generate` is asked for, in numbers."""

    new_tokens: int = at_least(0, 1)
    temperature: float = at_least(0, 0.0)
    top_k: int = at_least(0, 0)
    top_p: float = within("(0, 1]", 1.0)


@explained()
def generate(
    adapted: Any,
    batch: Batch,
    new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
    graph: bool = False,
) -> np.ndarray:
    """Continue each row of the batch (padded on the left, if at all) by up to `new_tokens` tokens; (b, ≤ new_tokens) on the host.

    For an encoder-decoder the batch is what the encoder reads. A row that has produced an end token goes on with
    padding; when all have, generation ends. Positions follow the mask, so padding changes nothing. With `graph`, on a GPU, the
    pass of one token is recorded once and replayed as one CUDA graph. Raises `Bad` for settings out of range, right padding, a
    model without a language-model head, or a graph of what needs a pass over all tokens.
    """
    arch = adapted.model.arch
    if arch.head != "lm":
        raise Bad(f"generate needs a language-model head; this model's head is {arch.head!r}")
    check(_Asked(new_tokens, temperature, top_k, top_p), "generate")
    batch.check(arch)
    if batch.input_ids is None and not arch.encoder_layers:
        raise Bad("generate: expected input_ids, found inputs_embeds alone")
    without = adapted.uncached + ["use_cache=False"] * (not use_cache)
    if graph:
        recorder()
        if without:
            raise Bad(f"graph: generation by a graph keeps keys and values, and {without[0]} does not")
    use_cache = not without
    rng = np.random.default_rng(seed)
    rows = batch.rows
    seq2seq = bool(arch.encoder_layers)
    if seq2seq:
        if arch.start_id is None:
            raise Bad("generate: the checkpoint names no decoder_start_token_id")
        ids = np.full((rows, 1), arch.start_id)
        mask = None
    else:
        ids, mask = batch.host("input_ids"), batch.host("attention_mask")
        if mask is not None and not mask[:, -1].all():
            raise Bad("generate: expected padding on the left, found rows that end in padding")
        mask = None if mask is None else mask.astype(bool)

    done = np.zeros(rows, bool)
    made: list[np.ndarray] = []
    ends = arch.eos_ids
    fill = next((x for x in (arch.fill_id, arch.pad_id, *ends) if x is not None), 0)
    run, past, fresh = adapted.run(cache=Growing() if use_cache else None), 0, ids
    positions = None if mask is None else counted(mask)
    replay: Replay | None = None
    for _ in range(new_tokens):
        text = dict(input_ids=fresh, attention_mask=mask, position_ids=positions)
        step = batch.having(labels=None, **(dict(decoder_input_ids=fresh) if seq2seq else text))
        if replay is not None:
            run.cache.at.fill(past)
            logits = replay(step)
        else:
            out = run.forward(step, past)
            logits = _last(out)
        following = pick(to_host(logits), rng, temperature, top_k, top_p)
        if ends:
            following = np.where(done, fill, following)
            done |= np.isin(following, ends)
        made.append(following)
        if done.all():
            break
        new = np.minimum(following, arch.vocab - 1)[:, None]  # what fills a row need be no token of the model
        if replay is not None:  # the mask shows all room that there will be
            past, fresh, positions = past + 1, new, None if positions is None else positions + 1
        elif use_cache:
            fresh = new
            past, mask, positions = carried(out.tokens, past, mask, positions, new_tokens if graph else 1)
            if graph:
                if positions is None and not seq2seq:
                    positions = np.full((rows, 1), past)
                run.cache = Fixed(run.cache, new_tokens)
                replay = _token_by_token(run, past + new_tokens)
        else:
            run, fresh = adapted.run(), np.concatenate([fresh, new], axis=1)
            run.made = len(made)
            mask = None if mask is None else grown(mask)
            positions = None if mask is None else counted(mask)
    return np.stack(made, axis=1) if made else np.zeros((rows, 0), int)


def carried(tokens: Tokens, past: int, mask: Any, positions: Any, more: int = 1) -> tuple[int, Any, Any]:
    """After a pass, of which these are the tokens: how many there are in the cache, the mask with `more` visible ones, and the position
    of the next token (b, 1); None where no mask, or no position, was given."""
    if tokens.virtual:  # they are in the bookkeeping of the pass
        mask, positions = (None if x is None else to_host(x) for x in (tokens.mask, tokens.positions))
    mask = None if mask is None else grown(mask, more)
    return past + tokens.t, mask, None if positions is None else positions[:, -1:] + 1


def _token_by_token(run: Any, room: int) -> Replay:
    """Passes of one token each, by graph: batch -> logits (b, V), where the cache of the run has so much room."""
    past = room - 1  # for the shapes alone: the token stands at `run.cache.at`
    return Replay(run.arch, lambda batch, rng: _last(run.forward(batch, past)), past=past)


def _last(out: Any) -> Any:
    """The logits (b, V) of the last token."""
    return value(out.logits)[:, -1]


def counted(mask: np.ndarray) -> np.ndarray:
    """Positions (b, t) that count only the tokens the mask (b, t) shows."""
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def grown(mask: np.ndarray, more: int = 1) -> np.ndarray:
    """The mask with that many more visible tokens in every row."""
    return np.concatenate([mask, np.ones((len(mask), more), bool)], axis=1)
