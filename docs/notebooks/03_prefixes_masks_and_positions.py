# %% [markdown]
# # 3. Prefixes, masks and positions
#
# A linear layer does not care where in a sentence it is used. A method that puts something *into the sequence* does: prompt tuning
# ([Lester et al. 2021](https://arxiv.org/abs/2104.08691)) places $p$ trained vectors, virtual tokens, in front of the embedded text, and prefix tuning
# ([Li & Liang 2021](https://arxiv.org/abs/2101.00190)) $p$ trained keys and values in front of those of every attention block. The equations take one line. What goes wrong
# in practice is the bookkeeping: positions, masks, labels, and what is kept between the tokens of a generation.
#
# To see what each of these must be, we write a decoder that reads **one token at a time**. It needs no mask and no padding, so it cannot get
# them wrong. Whatever the batched model computes must be what this one computes.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np

import minipeft
from minipeft.adapted import Adapted
from minipeft.conformance import tiny
from minipeft.data import BASE
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.text import encode, load_tokenizer

rng = np.random.default_rng(0)
model = minipeft.load(BASE).astype(np.float64)
arch, params, tokenizer = model.arch, model.params, load_tokenizer(BASE)
texts = ["the film was better than the book", "i liked the book"]
rows = [np.array(tokenizer.encode_one(t)) for t in texts]
print([list(map(int, row)) for row in rows])

# %% [markdown]
# ## A decoder, token by token
#
# A Llama-shaped decoder, for one sentence. A token enters as a vector $h$. In each layer it makes a query, a key and a value for each head; key and value join those of
# the tokens before it, the **cache**, and the query looks at all of them. Nothing about the future exists yet, so causality comes by itself.
#
# A token's position enters in one place: query and key are rotated by angles proportional to it
# ([rotary positions](https://arxiv.org/abs/2104.09864)). The product of a query at position $m$ and a key at position $n$ then depends on $m - n$ only.


# %%
def linear(name, x):
    return params[f"{name}.weight"] @ x + params.get(f"{name}.bias", 0)


def rms(name, x):
    return params[f"{name}.weight"] * x / np.sqrt(np.mean(x * x) + arch.eps)


def rotated(x, position):
    """x (heads, width), its halves rotated in pairs."""
    half = x.shape[1] // 2
    angle = position * arch.rope_theta ** (-np.arange(half) / half)
    lo, hi = x[:, :half], x[:, half:]
    return np.concatenate(
        [lo * np.cos(angle) - hi * np.sin(angle), hi * np.cos(angle) + lo * np.sin(angle)],
        axis=1,
    )


def step(h, position, cache):
    """One token (d,) in, the logits of the next one out. The cache grows; it holds
    a list of (keys, values) for each layer."""
    for n in range(arch.layers):
        u = rms(f"layers.{n}.attn.norm", h)
        q, k, v = (linear(f"layers.{n}.attn.{x}", u).reshape(-1, arch.dh) for x in "qkv")
        cache[n].append((rotated(k, position), v))
        keys, values = (
            np.repeat(np.stack(x), arch.heads // arch.kv, axis=1) for x in zip(*cache[n])
        )  # (s, heads, e)
        scores = np.einsum("he,she->hs", rotated(q, position), keys) / np.sqrt(arch.dh)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        h = h + linear(
            f"layers.{n}.attn.o", np.einsum("hs,she->he", weights, values).ravel()
        )
        u = rms(f"layers.{n}.mlp.norm", h)
        gate = linear(f"layers.{n}.mlp.gate", u)
        h = h + linear(
            f"layers.{n}.mlp.down",
            gate / (1 + np.exp(-gate)) * linear(f"layers.{n}.mlp.up", u),
        )
    return linear("head", rms("final.norm", h))


def read(vectors, start=0, cache=None):
    """The logits (t, V) after each of the vectors (t, d), whose positions begin at `start`."""
    cache = [[] for _ in range(arch.layers)] if cache is None else cache
    return np.stack([step(h, start + i, cache) for i, h in enumerate(vectors)])


def embedded(ids):
    return params["embed.tokens.weight"][ids]


def same(a, b):
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-9))


ids, mask = encode(tokenizer, texts, 16)
batch = minipeft.batch(
    input_ids=ids, attention_mask=mask, labels=np.where(mask == 1, ids, -100)
)
base = Adapted(model)
print("ids, padded on the right:\n", ids, sep="")
for row, got, m in zip(rows, base.logits(batch), mask):
    print("the batched model computes the same:", same(got[m == 1], read(embedded(row))))

# %% [markdown]
# ## A virtual token
#
# Prompt tuning is now easy to state without any bookkeeping: read the $p$ trained vectors first, as if they were tokens, and then the text.

# %%
p = 3
prompted = minipeft.attach(model, PromptTuning(p=p))
P = prompted.theta["default/embed.tokens.out:P"]
print("the trained array P has shape", P.shape)
by_token = [read(np.concatenate([P, embedded(row)])) for row in rows]
batched = prompted.logits(batch)
print("the text has", ids.shape[1], "tokens, the logits cover", batched.shape[1])
for n, (row, want) in enumerate(zip(rows, by_token)):
    print("the adapted model computes the same:", same(batched[n, : p + len(row)], want))

# %% [markdown]
# So what does a batched model have to change? Four things, each of which the token-by-token reader got for nothing:
#
# - **length**: hidden states and logits have $p$ more entries in front;
# - **positions**: the virtual tokens take $0 \dots p-1$, and the text starts at $p$;
# - **mask**: everybody sees the virtual tokens, in every row, however short its text;
# - **labels**: virtual tokens have no right answer, $-100$ by convention, and the text's labels move with the text.
#
# `Tokens.insert` in `minipeft/model/tokens.py` does these in one place, so a method only says `here.tokens.insert(h, P)`.
#
# The mask is best seen. A row of a picture is a query, a column a key; dark is what the query sees. Virtual tokens are causal among themselves, as
# they go through the layers like any other token. Pale are the queries of padding, whose results nobody uses.

# %%
from minipeft.model.tokens import Tokens, visibility


def seen(mask, p):
    """(b, p + t, p + t): which keys each query sees, with p virtual tokens in front."""
    tokens = Tokens(mask.shape[1], mask.astype(bool))
    tokens.insert(np.zeros((*mask.shape, 1)), np.zeros((p, 1)))
    return (
        visibility(tokens, tokens.t, 0, causal=True, window=None, dtype=np.dtype(float))[
            :, 0
        ]
        == 0
    )


sides = {side: encode(tokenizer, texts, 16, side=side) for side in ("right", "left")}
fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.6), layout="constrained")
shown = {
    "the long row": (0, "right"),
    "the short row, right": (1, "right"),
    "the short row, left": (1, "left"),
}
for ax, (title, (row, side)) in zip(axes, shown.items()):
    pads = np.concatenate([np.zeros(p), 1 - sides[side][1][row]]).astype(bool)
    picture = seen(sides[side][1], p)[row] * 1.0
    picture[pads] *= 0.35  # what padding sees does not matter
    ax.imshow(picture, cmap="Blues", vmin=0, vmax=1.3)
    ax.axvline(p - 0.5, color="tab:orange")
    ax.axhline(p - 0.5, color="tab:orange")
    ax.set(title=title, xlabel="key")
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# Orange separates virtual tokens from text. In the third picture the padding, columns 3 and 4, stands *between* the prompt and the text. Does
# that matter?
#
# ## Padding on the left, and positions
#
# To generate, rows are padded on the left, so that all of them end with their last real token. Let us count positions as before, $0, 1, 2 \dots$ along the row, padding
# included. For the base model nothing changes: all positions of a row are shifted by the same number, and rotary positions only know differences. But
# with virtual tokens in front, the text moves and the prompt does not.

# %%
left_ids, left_mask = sides["left"]
left = minipeft.batch(input_ids=left_ids, attention_mask=left_mask)
short = len(rows[1])
print(
    "short row, base:                  ",
    same(base.logits(left)[1, -short:], read(embedded(rows[1]))),
)
wrong = prompted.logits(left)[1, -short:]
print(
    "short row, prompted, as it stands:",
    "the same" if same(wrong, by_token[1][p:]) else "something else,",
    end=" ",
)
print(f"by up to {abs(wrong - by_token[1][p:]).max():.2f} in a logit")

counted = np.maximum(np.cumsum(left_mask, axis=1) - 1, 0)
print("positions that count real tokens only:", counted[1])
left = dataclasses.replace(left, position_ids=counted)
print(
    "short row, prompted, counted:     ",
    same(prompted.logits(left)[1, -short:], by_token[1][p:]),
)
assert not same(wrong, by_token[1][p:])

# %% [markdown]
# The model was not told where the text begins, and took the padding for a distance. With `position_ids` the row is what it should be: the
# insertion moves given positions by $p$ too. Generation in minipeft always gives them. In your own training code, give them wherever you pad on the left,
# or pad on the right.
#
# A model with a *learned* vector for every position does not even forgive it without a prompt:

# %%
gpt2 = tiny.model("gpt2")
given = tiny.example(gpt2, padding="left")
m = given.attention_mask
plain = Adapted(gpt2).logits(given)[1, m[1] == 1]
with_positions = Adapted(gpt2).logits(
    dataclasses.replace(given, position_ids=np.maximum(np.cumsum(m, axis=1) - 1, 0))
)[1, m[1] == 1]
alone = Adapted(gpt2).logits(minipeft.batch(input_ids=given.input_ids[1:2, m[1] == 1]))[0]
print(
    "learned positions, padded on the left, as it stands: ",
    "the same" if same(plain, alone) else "something else",
)
print(
    "learned positions, padded on the left, counted:      ",
    "the same" if same(with_positions, alone) else "something else",
)
assert same(with_positions, alone) and not same(plain, alone)

# %% [markdown]
# ## Labels
#
# A causal model's logits at token $i$ are compared with token $i + 1$. The first token of a text is therefore never predicted: nothing stands
# before it. With a prompt, something does. The last virtual token predicts the first token of the text, and the loss has one term more in
# each row.


# %%
def loss_by_token(logits, ids, before):
    """The terms of the loss of a text with `before` virtual tokens in front."""
    targets = np.concatenate([np.full(before, -100), ids])[1:]
    logits = logits[:-1]
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return [-logp[i, target] for i, target in enumerate(targets) if target != -100]


with_prompt = [
    term for row, logits in zip(rows, by_token) for term in loss_by_token(logits, row, p)
]
without = [term for row in rows for term in loss_by_token(read(embedded(row)), row, 0)]
print(f"terms without a prompt: {len(without)}, with one: {len(with_prompt)};", end=" ")
print(f"real tokens: {mask.sum()}")
print(
    "the base's loss is the mean of the former:  ",
    same(base.loss(None, batch), np.mean(without)),
)
print(
    "the adapted loss is the mean of the latter: ",
    same(prompted.loss(None, batch), np.mean(with_prompt)),
)
cut = [
    term
    for row, logits in zip(rows, by_token)
    for term in loss_by_token(logits[p:], row, 0)
]
print(
    "with the first p logits cut off, it is not: ",
    not same(np.mean(cut), np.mean(with_prompt)),
)

# %% [markdown]
# Cutting the first $p$ logits off before comparing is a natural thing to write, and loses the term. Neither is wrong, but they are different losses, and two
# implementations that differ here cannot be compared.
#
# Padding on the left has a trap of its own for training: what stands before the first real token is then a *padding* token, and its prediction of the first
# token counts, unless the label there is set to $-100$.

# %%
labelled = left.having(labels=np.where(left_mask == 1, left_ids, -100))
print(
    "the loss padded on the left, counted positions: ",
    "the same" if same(prompted.loss(None, labelled), np.mean(with_prompt)) else "another",
)
labels = np.where(left_mask == 1, left_ids, -100)
labels[1, left_mask[1].argmax()] = -100  # the first real token of the row that has padding
fewer = left.having(labels=labels)
kept = with_prompt[: len(rows[0])] + with_prompt[len(rows[0]) + 1 :]
print(
    "without the first label of the padded row:      ",
    "the same" if same(prompted.loss(None, fewer), np.mean(kept)) else "another",
)

# %% [markdown]
# ## The cache
#
# During generation each new token is one `step`: the keys and values of all earlier tokens, virtual ones among them, are in the cache. So a virtual token is put in
# **once**, in the first pass. And the position of the next token is the number of keys in the cache, not the number of text tokens: that
# would be $p$ too small.


# %%
def continued(ids, new, shift=p, forced=None):
    """A text's most probable continuation, and the last logits.

    `shift` is how far the prompt moves positions while generating; `forced` are tokens to
    go on with, whatever is probable.
    """
    cache = [[] for _ in range(arch.layers)]
    logits, made = read(np.concatenate([P, embedded(ids)]), cache=cache)[-1], []
    for i in range(new):
        made.append(int(logits.argmax()) if forced is None else forced[i])
        logits = step(embedded(made[-1]), len(ids) + shift + i, cache)
    return made, logits


row = rows[0]
made, logits = continued(row, 8)
generated = [
    int(i) for i in minipeft.generate(prompted, minipeft.batch(input_ids=row[None]), 8)[0]
]
print("token by token:", made)
print("by generate:   ", generated)
again = read(np.concatenate([P, embedded(np.concatenate([row, made]))]))[-1]
print("with a cache the same as without:  ", same(logits, again))
_, off = continued(row, 8, shift=0, forced=made)
print(
    f"with positions that forget the prompt off by {abs(off - logits).max():.1f} in a logit"
)
assert generated == made and not same(off, logits)

# %% [markdown]
# ## Prefixes
#
# Prefix tuning goes around the layers: it writes straight into the cache. Before the first token is read, every layer's cache already holds $p$
# trained keys and values. Nothing is inserted into the sequence, so the logits cover the text alone, the labels are untouched, and the loss has no additional term.
# The keys are trained as they are used, so they are not rotated. All queries see all of them.
#
# One decision remains: at which position does the text start? The prefix carries no position, yet $p$ things stand before the text. Hugging Face PEFT starts at $p$,
# AdapterHub at 0. Because the prefix's keys are not rotated and the queries are, it makes a difference.

# %%
for positions, start in {"after": p, "zero": 0}.items():
    prefixed = minipeft.attach(model, PrefixTuning(p=p, positions=positions))
    E = prefixed.theta["default/:E"].reshape(p, arch.layers, 2, arch.kv, arch.dh)
    got = prefixed.logits(batch)
    for n, row in enumerate(rows):
        cache = [
            [(E[i, layer, 0], E[i, layer, 1]) for i in range(p)]
            for layer in range(arch.layers)
        ]
        want = read(embedded(row), start=start, cache=cache)
        print(
            f"positions={positions!r:8} row {n}: the same as token by token:",
            same(got[n, : len(row)], want),
        )
print("the logits cover the text alone:", got.shape[1] == ids.shape[1])

# %% [markdown]
# | | prompt tuning | prefix tuning |
# |---|---|---|
# | what is trained | $p$ vectors at the input | $p$ keys and values in every layer |
# | goes through the layers | yes, and is changed by them | no |
# | length of the hidden states | $p + t$ | $t$ |
# | position of the text | from $p$ | from $p$ or 0, a choice |
# | labels | $-100$ in front | untouched |
# | mask | visible to all, causal among themselves | visible to all |
# | cache | put in with the first pass | there before it |
#
# The methods' files say these under *Positions*: [prompt_tuning.py](../../minipeft/methods/prompt/prompt_tuning.py) and
# [prefix_tuning.py](../../minipeft/methods/prompt/prefix_tuning.py).
#
# [Exercise 3](../../examples/exercises/README.md) is to write this bookkeeping yourself.
