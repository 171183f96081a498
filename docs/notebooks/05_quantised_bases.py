# %% [markdown]
# # 5. Quantised bases
#
# LoRA trains few numbers, but the base has to lie in memory all the same. QLoRA ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)) holds it in four bits a number. This
# notebook derives its code, NF4, quantises by hand, counts bits and errors, and then answers two questions that come up in practice: what are the gradients when
# the base is quantised, and what is lost when the adapter is merged?

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import ndtri  # Φ⁻¹, the quantiles of the normal distribution

import minipeft
from minipeft.adapted import Adapted
from minipeft.data import BASE
from minipeft.engine import ops, value_and_grad
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.lowrank.qlora import QLoRA
from minipeft.quantize import FP4_CODEBOOK, NF4_CODEBOOK, quantize
from minipeft.text import encode, load_tokenizer
from minipeft.train import AdamW

rng = np.random.default_rng(0)

# %% [markdown]
# ## Sixteen values
#
# Four bits tell sixteen values apart. Which sixteen? Trained weights look roughly normal. If the values are the normal distribution's quantiles at evenly spaced
# probabilities, each of them is nearest to about as many weights as any other, and no code is wasted.
#
# Two wishes stand in the way of plain quantiles. Zero must be among the values, exactly, since padding and pruned weights are zero. And both $-1$ and $1$ must be, since a block will be divided by its
# largest absolute value. The paper takes the halves apart: eight values above zero, seven below, zero between. Each half starts at the outermost probability $\delta$
# and goes to one half in even steps, eight or seven of them; then everything is divided by the largest.

# %%
delta = 1 - (1 / 30 + 1 / 32) / 2  # between the ends that 15 and 16 even steps would have
above = ndtri(np.linspace(delta, 0.5, 9)[:-1])
below = -ndtri(np.linspace(delta, 0.5, 8)[:-1])
derived = np.sort(np.concatenate([below, [0.0], above])) / above[0]
print(derived.round(4))
apart = abs(derived - NF4_CODEBOOK).max()
print(
    f"δ = {delta:.4f}; from the values of every NF4 checkpoint less than 2e-7:",
    apart < 2e-7,
)

# %% [markdown]
# The checkpoints' values were computed in float32 once and copied since; they are constants now. Whoever derives them afresh in float64 gets other bits.
#
# Here are the values under the curve, and how often each is used for normal numbers in blocks of 64. The ends are different from the rest: in each block one number, the largest, lands exactly on
# $-1$ or $1$.


# %%
def nearest(x, codebook):
    """The index of the nearest value, for each x."""
    return np.searchsorted((codebook[1:] + codebook[:-1]) / 2, x)


blocks = rng.standard_normal((4000, 64)).astype(np.float32)
constants = abs(blocks).max(axis=1, keepdims=True)
codes = nearest(blocks / constants, NF4_CODEBOOK)
used = np.bincount(codes.ravel(), minlength=16) / codes.size

fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained")
grid = np.linspace(-1.2, 1.2, 200)
left.plot(grid, np.exp(-((grid * above[0]) ** 2) / 2))
left.vlines(
    NF4_CODEBOOK, 0, np.exp(-((NF4_CODEBOOK * above[0]) ** 2) / 2), color="tab:orange"
)
left.set(title="the sixteen values", yticks=[])
right.bar(range(16), used)
right.axhline(1 / 16, color="k", linestyle=":")
right.set(title="how often each is used", xlabel="code")
plt.show()
print(
    f"inner codes are used by {used[1:15].min():.1%} to {used[1:15].max():.1%} of the numbers,"
)
print(f"the ends by {used[0]:.1%} and {used[15]:.1%}; even would be {1 / 16:.1%}")

# %% [markdown]
# Use is not even. The values are quantiles of a distribution whose end, 1, stands for $\Phi^{-1}(\delta)$; but the largest of 64 normal numbers is larger than that, so that
# dividing by it brings more numbers to the middle.

# %%
of_8 = abs(blocks[:, :8]).max(axis=1)
print(
    f"1 stands for {above[0]:.2f}; the largest of 64 is on average {constants.mean():.2f},",
    end=" ",
)
print(f"of 8 {of_8.mean():.2f}")

# %% [markdown]
# What counts in the end is the error. Compare with two other sets of values: even steps, and FP4, a tiny floating-point format.


# %%
def relative_error(codebook):
    codebook = np.sort(np.unique(codebook))
    back = codebook[nearest(blocks / constants, codebook)] * constants
    return np.linalg.norm(back - blocks) / np.linalg.norm(blocks)


errors = {
    "NF4": relative_error(NF4_CODEBOOK),
    "even steps": relative_error(np.arange(-7, 8) / 7),
    "FP4": relative_error(FP4_CODEBOOK),
}
for name, error in errors.items():
    print(f"{name:10} root mean square error {error:.1%} of the numbers' own size")
assert errors["NF4"] < errors["even steps"] < errors["FP4"]

# %% [markdown]
# ## Blocks
#
# The whole of it: cut the weight into blocks of 64 consecutive numbers, divide each block by its largest absolute value $c$, store the nearest code for each number and $c$ for each
# block. Back: $\hat W_i = t[q_i]\, c$. In NumPy, bit for bit what the package and bitsandbytes hold:


# %%
def by_hand(W, block=64):
    flat = W.reshape(-1, block)
    c = abs(flat).max(axis=1)
    q = nearest(flat * (np.float32(1) / c)[:, None], NF4_CODEBOOK)
    return q, c, (NF4_CODEBOOK[q] * c[:, None]).reshape(W.shape)


model = minipeft.load(BASE)
W = np.array(model.params["layers.0.mlp.up.weight"])
q, c, back = by_hand(W)
held = quantize(W)
packed = (q.ravel()[::2] << 4 | q.ravel()[1::2]).astype(
    np.uint8
)  # two codes a byte, the first in the high half
print("the same codes:    ", np.array_equal(packed, held.codes))
print("the same constants:", np.array_equal(c, held.absmax))
print("the same values:   ", np.array_equal(back, held.dequantize()))
print(f"{8 * held.nbytes / W.size:.2f} bits a number")

gap = np.diff(NF4_CODEBOOK).max() / 2
worst = abs(back - W).reshape(-1, 64).max(axis=1) / c
print(f"half the widest gap is {gap:.3f} c; the worst number is off by {worst.max():.3f} c")
assert worst.max() <= gap * (1 + 1e-6)

# %% [markdown]
# Why blocks, and why so small? Because of the largest number in each. One outlier makes $c$ large, and all its neighbours are then coded by the few values around zero. Small blocks confine the damage, but
# each costs 32 bits for its $c$.

# %%
normal = rng.standard_normal(4096).astype(np.float32)
spoilt = normal.copy()
spoilt[17] = 50.0
for name, x in {"normal numbers": normal, "one of them 50": spoilt}.items():
    rest = np.arange(len(x)) != 17
    told = [
        np.linalg.norm((by_hand(x, b)[2] - x)[rest]) / np.linalg.norm(x[rest])
        for b in (64, 4096)
    ]
    print(
        f"{name}: error of the others {told[0]:.1%} in blocks of 64, {told[1]:.1%} in one"
    )

sizes = 2 ** np.arange(3, 13)
x = rng.standard_normal(2**17).astype(np.float32)
error = [np.linalg.norm(by_hand(x, b)[2] - x) / np.linalg.norm(x) for b in sizes]
fig, ax = plt.subplots(figsize=(4.8, 2.7), layout="constrained")
ax.plot(4 + 32 / sizes, error, "o-")
for b, e in zip(sizes, error):
    if b in (8, 16, 64, 4096):
        ax.annotate(
            f"{b}", (4 + 32 / b, e), textcoords="offset points", xytext=(5, 4), fontsize=8
        )
ax.set(xlabel="bits a number", ylabel="error", title="block sizes, normal numbers")
plt.show()

# %% [markdown]
# ## Quantising the constants
#
# At 64 a block the constants cost half a bit a number. Double quantisation holds them in eight bits: subtract their mean, divide by the largest in a group of 256, take the
# nearest of 256 values that are dense near zero.

# %%
double = quantize(W, double=True)
formula = 4 + 8 / 64 + 32 / (64 * 256)
bits = [8 * kept.nbytes / W.size for kept in (held, double)]
print(
    f"bits a number: {bits[0]:.3f}, doubly quantised {bits[1]:.3f}; if large {formula:.3f}"
)
for name, kept in {"once": held, "doubly": double}.items():
    error = np.linalg.norm(kept.dequantize() - W) / np.linalg.norm(W)
    print(f"quantised {name:7} error {error:.2%}")

# %% [markdown]
# The second rounding cannot be seen beside the first.
#
# ## Gradients over a quantised base
#
# The base is frozen, so nobody asks for a gradient of its codes. That is fortunate, because there is none: $\hat W$ as a function of $W$ is a staircase.

# %%
w = np.linspace(-1, 1, 801, dtype=np.float32)
fig, ax = plt.subplots(figsize=(4.2, 2.6), layout="constrained")
ax.plot(w, NF4_CODEBOOK[nearest(w, NF4_CODEBOOK)])
ax.plot(w, w, ":", color="gray")
ax.set(xlabel="$W/c$", ylabel=r"$\hat{W}/c$")
plt.show()

# %% [markdown]
# Its derivative is zero almost everywhere and infinite at fifteen places. Trained are $A$ and $B$ in $W' = \hat W + s B A$, and their gradients are those of notebook 2 with $\hat W$ in the place of $W$.
# $\hat W$ enters them through $\partial L/\partial x = g W'$ alone: it is made a matrix again for each use, forward and backward, and thrown away.

# %%
x, g = rng.standard_normal((3, 128)), rng.standard_normal((3, 352))
arrays = dict(A=rng.standard_normal((4, 128)), B=rng.standard_normal((352, 4)), x=x)
Wq = double.dequantize().astype(np.float64)


def loss(t):
    return ops.sum(g * ops.linear(t["x"], Wq + 2.0 * (t["B"] @ t["A"])))


_, grads = value_and_grad(loss)(arrays)
G = g.T @ x
print(
    "A:",
    np.allclose(grads["A"], 2.0 * arrays["B"].T @ G),
    " B:",
    np.allclose(grads["B"], 2.0 * G @ arrays["A"].T),
    end=" ",
)
print(" x:", np.allclose(grads["x"], g @ (Wq + 2.0 * arrays["B"] @ arrays["A"])))

# %% [markdown]
# On a whole model, this means: QLoRA over $W$ is LoRA over $\hat W$. The adapter that comes out is an ordinary LoRA; the base alone is special.

# %%
texts = [
    "a gradient stops at a frozen weight",
    "the film was better than the book",
    "we liked it very much",
]
ids, mask = encode(load_tokenizer(BASE), texts, 16)
batch = minipeft.batch(
    input_ids=ids, attention_mask=mask, labels=np.where(mask == 1, ids, -100)
)

qlora = minipeft.attach(model, QLoRA(r=4, alpha=8.0))
weights = list(qlora.adapters[0].at)
for name, base in {"in float32": model, "in four bits": qlora.model}.items():
    size = sum(base.params[n].nbytes for n in weights) / 1e3
    found = float(Adapted(base).loss(None, batch))
    print(f"{len(weights)} weights {name:12} {size:5.0f} kB, the base's loss {found:.3f}")

opened = {n: v.dequantize() if n in weights else v for n, v in qlora.model.params.items()}
rounded = dataclasses.replace(model, params=opened)
lora = minipeft.attach(rounded, LoRA(r=4, alpha=8.0), targets=weights).replace(qlora.theta)
a, b = qlora.value_and_grad(batch)[1], lora.value_and_grad(batch)[1]
print(
    "the gradients are those of LoRA over the rounded weights:",
    all(np.allclose(a[k], b[k], rtol=1e-4, atol=1e-6) for k in a),
)

# %% [markdown]
# ## Merging
#
# After training, the adapter can be folded into the base. There are several ways to do it, and one gives what was trained:
#
# 1. $\hat W + sBA$ in full precision. Exact, but no longer four bits.
# 2. $W + sBA$ with the *original* weight. The adapter was trained beside $\hat W$, errors and all; it may have learnt to correct them.
# 3. $\hat W + sBA$, quantised again.
# 4. $W + sBA$, quantised.

# %%
trained = minipeft.fit(qlora, [batch], steps=25, optimiser=AdamW(lr=0.0005)).adapted
exact = minipeft.merge(trained)
change = {n: exact.params[n] - trained.model.params[n].dequantize() for n in weights}


def with_weights(f):
    """The model whose weights are f(name)."""
    return Adapted(
        dataclasses.replace(
            exact, params={n: f(n) if n in weights else v for n, v in exact.params.items()}
        )
    )


ways = {
    "the base in four bits": Adapted(qlora.model),
    "with its adapter": trained,
    "1. merged in full precision": Adapted(exact),
    "2. onto the original weight": with_weights(lambda n: model.params[n] + change[n]),
    "3. as 1, quantised again": with_weights(
        lambda n: quantize(exact.params[n], double=True)
    ),
    "4. as 2, quantised": with_weights(
        lambda n: quantize(model.params[n] + change[n], double=True)
    ),
}
losses = {name: float(m.loss(None, batch)) for name, m in ways.items()}
for name, found in losses.items():
    print(f"{name:28} loss {found:.3f}")
apart = abs(Adapted(exact).logits(batch) - trained.logits(batch)).max()
print("1 computes what was trained, to 1e-4 in the logits:", bool(apart < 1e-4))

# %% [markdown]
# The third is nearly the untrained base. Where did the training go? Compare the change that is left with the change that was trained, and count codes.

# %%
size = np.mean(
    [np.linalg.norm(change[n]) / np.linalg.norm(model.params[n]) for n in weights]
)
print(f"the trained change is {size:.1%} of its weight's size, on average")
for name in ("3. as 1, quantised again", "4. as 2, quantised"):
    codes, cosines = [], []
    for n in weights:
        before, after = trained.model.params[n], ways[name].model.params[n]
        left = after.dequantize() - before.dequantize()
        nibbles = [np.stack([held.codes >> 4, held.codes & 15]) for held in (before, after)]
        codes.append(np.mean(nibbles[0] != nibbles[1]))
        cosines.append(
            (left * change[n]).sum() / np.linalg.norm(left) / np.linalg.norm(change[n])
        )
    print(f"{name:24} codes changed: {np.mean(codes):4.1%};", end=" ")
    print(f"cosine with what was trained: {np.mean(cosines):.2f}")
assert (
    losses["1. merged in full precision"]
    < losses["4. as 2, quantised"]
    < losses["3. as 1, quantised again"]
)

# %% [markdown]
# Every number of $\hat W$ *is* one of the sixteen values times its constant. A change by less than half a step is rounded back to where it came from, and a fine-tuned change is less than half a step nearly everywhere. So it does not
# become noisy, it disappears. The numbers of the original $W$ lie anywhere between two values; the change carries some of them over a midpoint, and on average survives, under the
# same rounding error that $\hat W$ had.
#
# So: keep the adapter beside the quantised base, or merge in full precision. In minipeft `merge` gives the first way; `minipeft merge` on the command line writes it and tells what each rounding costs; and `QLoRA.requantized` gives the third, which
# is what bitsandbytes' merge does.
#
# [Exercise 5](../../examples/exercises/README.md) is to write the four bits yourself.
