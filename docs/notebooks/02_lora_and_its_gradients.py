# %% [markdown]
# # 2. LoRA and its gradients
#
# A language model is made mostly of linear layers $y = x W^\top + b$. Fine-tuning all of $W$ means a gradient, and with Adam two running averages
# more, for every number in it. LoRA ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) leaves $W$ as it is and adds a matrix of low rank,
#
# $$W' = W + s\,B A, \qquad A \in \mathbb{R}^{r \times \text{in}},\quad B \in \mathbb{R}^{\text{out} \times r},\quad s = \alpha / r .$$
#
# Only $A$ and $B$ are trained. This notebook derives their gradients, checks them in three ways, and looks at the consequences: what happens at the first
# step, what the scale $s$ does, what a frozen weight costs, and how the change is folded into $W$ in the end.
#
# Weights are (out, in) throughout, and the rows of $x$ are tokens.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

import minipeft
from minipeft.engine import Tensor, gradcheck, ops, value_and_grad
from minipeft.methods.lowrank.lora import LoRA

rng = np.random.default_rng(0)
out, n_in, r = 4096, 4096, 8
whole, low = out * n_in, r * (out + n_in)
print(f"W has {whole:,} numbers; A and B of rank {r} have {low:,}, {low / whole:.2%}")
full_MB, lora_MB = (3 * 4 * numbers / 1e6 for numbers in (whole, low))
print(f"gradient and Adam's averages in float32: {full_MB:.0f} against {lora_MB:.2f} MB")

# %% [markdown]
# ## By hand
#
# Let $g = \partial L/\partial y$ be given, one row a token, as in notebook 1. If $W'$ itself were trained, its gradient would be
#
# $$G = \frac{\partial L}{\partial W'} = g^\top x, \qquad G_{oi} = \sum_{\text{tokens } t} g_{to}\, x_{ti} .$$
#
# Now $W'_{oi} = W_{oi} + s \sum_k B_{ok} A_{ki}$. The number $B_{ok}$ appears in row $o$ of $W'$, with the factor $s A_{ki}$ at every $i$;
# and $A_{ki}$ in column $i$, with the factor $s B_{ok}$ at every $o$. Hence
#
# $$\frac{\partial L}{\partial B} = s\, G A^\top, \qquad \frac{\partial L}{\partial A} = s\, B^\top G, \qquad
# \frac{\partial L}{\partial x} = g\, W' .$$
#
# Each gradient of a factor contains the *other* factor. Everything particular about training LoRA follows from that.


# %%
def by_hand(theta, x, W, g, s):
    """The gradients of Σ g·y by A, B and x, for y = x (W + s B A)ᵀ."""
    A, B = theta["A"], theta["B"]
    G = g.T @ x
    return dict(A=s * B.T @ G, B=s * G @ A.T, x=g @ (W + s * B @ A))


r, alpha = 2, 6.0
s = alpha / r
W, x, g = (
    rng.standard_normal((5, 7)),
    rng.standard_normal((3, 7)),
    rng.standard_normal((3, 5)),
)
theta = dict(A=rng.standard_normal((r, 7)), B=rng.standard_normal((5, r)), x=x)


def loss(t):
    return ops.sum(g * ops.linear(t["x"], W + s * (t["B"] @ t["A"])))


hand = by_hand(theta, x, W, g, s)
_, tape = value_and_grad(loss)(theta)


def by_differences(f, theta, name, h=1e-5):
    """Every element moved by itself: slow, and independent of all of the above."""
    grad = np.zeros_like(theta[name])
    for at in np.ndindex(grad.shape):
        moved = np.zeros_like(grad)
        moved[at] = h
        grad[at] = (
            f(theta | {name: theta[name] + moved}) - f(theta | {name: theta[name] - moved})
        ) / (2 * h)
    return grad


print("largest difference, relative to the largest element:")
for name in theta:
    size = abs(hand[name]).max()
    engine = abs(hand[name] - tape[name]).max() / size
    differences = abs(hand[name] - by_differences(loss, theta, name)).max() / size
    print(f"  {name}: by hand and by the engine below 1e-14: {engine < 1e-14}")
    print(f"     by hand and by differences below 1e-8: {differences < 1e-8}")
assert all(check.ok for check in gradcheck(loss, theta))

# %% [markdown]
# Note the sizes: 5, 7, 3 and 2 are all different, $\alpha \ne r$, and neither factor is zero. With a square $W$ a transposed gradient would go unseen, with
# $\alpha = r$ a forgotten scale, with $B = 0$ almost everything. Tests of real libraries have failed to see errors for each of these reasons.
#
# Nobody needs the matrix $G$, nor $BA$, both as large as $W$. Group the products differently, $y = xW^\top + s\,(xA^\top)B^\top$ and
# $\partial L/\partial A = s\,(gB)^\top x$, and no such matrix is made.

# %%
A, B = theta["A"], theta["B"]
narrow = x @ W.T + s * (x @ A.T) @ B.T
print("the same outputs:      ", np.allclose(narrow, x @ (W + s * B @ A).T, rtol=1e-14))
print("the same gradient of A:", np.allclose(s * (g @ B).T @ x, hand["A"], rtol=1e-13))

# %% [markdown]
# ## Where training begins
#
# LoRA starts with $A$ random and $B = 0$. Then $BA = 0$, and the adapted model is the base model exactly. Put $B = 0$ into the gradients:
# $\partial L/\partial A = s B^\top G = 0$, while $\partial L/\partial B = s\,G A^\top$ is not. At the first step **only $B$ moves**. At the
# second, $B$ is no longer zero, and $A$ begins to move too.
#
# Starting both at zero would be fatal: each gradient contains the other factor, so both would be zero for ever. Starting both at random
# would change the model before training.

# %%
x = rng.standard_normal((200, 7))
aim = x @ (W + rng.standard_normal(W.shape)).T  # outputs of a weight that we do not have


def distance(t):
    error = ops.linear(x, W + s * (t["B"] @ t["A"])) - aim
    return ops.mean(error * error)


starts = {
    "A random, B = 0": dict(A=rng.uniform(-1, 1, (r, 7)) / np.sqrt(7), B=np.zeros((5, r))),
    "A = 0, B = 0": dict(A=np.zeros((r, 7)), B=np.zeros((5, r))),
}
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained", sharey=True)
for ax, (name, t) in zip(axes, starts.items()):
    sizes = []
    for _ in range(40):
        _, grads = value_and_grad(distance)(t)
        sizes.append({k: np.linalg.norm(v) for k, v in grads.items()})
        t = {k: v - 0.02 * grads[k] for k, v in t.items()}
    for k in "AB":
        ax.plot([size[k] for size in sizes], ".-", label=f"gradient of {k}")
    ax.set(title=name, xlabel="step")
    if name.startswith("A random"):
        assert sizes[0]["A"] == 0 < sizes[1]["A"] and sizes[0]["B"] > 0
    else:
        assert all(size["A"] == size["B"] == 0 for size in sizes)
axes[0].set_ylabel("norm")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# This is a common false alarm. "A has no gradient" at the first step is right; at the second step it would be a bug. A test of gradients
# should therefore move the arrays away from where they start.
#
# ## What the scale is for
#
# Why $s = \alpha/r$, and not just a learning rate? So that the rank can be changed without tuning again. Whether that works can be
# computed for the first step. Take one token $x$, and a gradient $g$ of its output. With $B = 0$ a step of size $\eta$ of gradient descent gives $B = -\eta s\, g\, (Ax)^\top$,
# and the output of the same token moves by
#
# $$\Delta y = s B A x = -\eta\, s^2\, \lVert A x \rVert^2 g .$$
#
# $Ax$ has $r$ components, so $\lVert Ax \rVert^2$ grows in proportion to $r$, and the step in the output to $s^2 r$. With $s = \alpha/r$ that is
# $\alpha^2/r$: the larger the rank, the smaller the step. With $s = \alpha/\sqrt r$ it is $\alpha^2$, whatever the rank. This is the scale of rsLoRA
# ([Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)).
#
# Adam's first step is another: it moves every element by $\eta$ against the sign of its gradient, whatever the gradient's size. Then $\Delta y = -\eta\, s\, \lVert Ax \rVert_1\, \mathrm{sign}(g)$, which
# grows as $s r$; and now $\alpha/r$ keeps it the same.

# %%
width, eta, alpha = 256, 0.01, 8.0
ranks = 2 ** np.arange(9)
x1, g1 = rng.standard_normal(width), rng.standard_normal(width)
moves = {}
for rank in ranks:
    Ax = (
        rng.uniform(-1, 1, (20, rank, width)) @ x1 / np.sqrt(width)
    )  # of twenty A drawn at random
    for scale, s1 in {"α/r": alpha / rank, "α/√r": alpha / np.sqrt(rank)}.items():
        grad = s1 * g1[:, None] * Ax[:, None]  # of B, which is 0
        for rule, step in {
            "gradient descent": -eta * grad,
            "Adam": -eta * np.sign(grad),
        }.items():
            move = s1 * (step @ Ax[:, :, None])
            moves.setdefault((rule, scale), []).append(np.linalg.norm(move, axis=1).mean())

fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
for ax, rule in zip(axes, ["gradient descent", "Adam"]):
    for scale, style in {"α/r": "o-", "α/√r": "s--"}.items():
        ax.loglog(ranks, moves[rule, scale], style, label=f"s = {scale}")
    ax.set(title=rule, xlabel="rank $r$", ylabel="first move of the output")
    ax.legend(fontsize=8)
plt.show()
for (rule, scale), move in moves.items():
    power = np.polyfit(np.log(ranks), np.log(move), 1)[0]
    print(f"{rule:17} s = {scale:5} the move grows as r^{power:.1f}")

# %% [markdown]
# So, as far as the first step tells, neither scale is right in itself; it belongs to an optimiser. What is certainly wrong is to take one for the other, or to forget it:
# an adapter trained with one scale and loaded with another computes something else, and no error is raised. That happened to several
# libraries; notebook 6 shows how it is caught.
#
# In the package `LoRA(r=8, alpha=16)` has $s = \alpha/r$, and `LoRA(r=8, alpha=16, rslora=True)` has $s = \alpha/\sqrt r$.
#
# ## What is frozen
#
# `value_and_grad` was given $A$ and $B$ only. No gradient of $W$ was computed and thrown away: $W$ is a plain array, so the VJP that would have made one was
# dropped when the product was taped.

# %%
t = {k: Tensor(theta[k]) for k in "AB"}
frozen_product = ops.linear(x, W)
change = ops.linear(ops.linear(x, t["A"]), t["B"])
print(
    "the frozen product is",
    type(frozen_product).__name__,
    "and the change a",
    type(change).__name__,
)
print("gradients:", sorted(value_and_grad(distance)({k: theta[k] for k in "AB"})[1]))

# %% [markdown]
# What LoRA does *not* save at an adapted layer is its input: the gradient of $A$ is $s\,(gB)^\top x$, and needs $x$. The layers in between that have no adapter keep no
# input for their weights.
#
# ## Merging
#
# After training, $W' = W + sBA$ can be written over $W$. The model is then an ordinary one and as fast as before. In exact arithmetic nothing changes; in
# floating point the two orders of summation differ by roundings. Taking the change out again by subtraction is another matter: the sum was
# rounded, and the bits that were lost do not come back.

# %%
W32 = rng.standard_normal((512, 512)).astype(np.float32)
change32 = (0.1 * rng.standard_normal((512, 8)) @ rng.standard_normal((8, 512))).astype(
    np.float32
)
x32 = rng.standard_normal((64, 512)).astype(np.float32)
merged = W32 + change32
separate = x32 @ W32.T + x32 @ change32.T
apart = abs(x32 @ merged.T - separate).max()
rounding = (
    2**-24 * (abs(x32) @ (abs(W32) + abs(change32)).T).max()
)  # if every number that is summed were rounded once
print(
    "merged and separate differ by less than three roundings of every number:",
    apart < 3 * rounding,
)
other = np.mean((merged - change32) != W32)
print(f"after merging and subtracting again, {other:.0%} of the weights have other bits")

# %% [markdown]
# In the package, therefore, nothing is merged in place. `merge` returns a new model and the base stays what it was, bit for bit.
#
# ## On a whole model
#
# The decoder that comes with the package has three layers of width 128. LoRA on its queries and values, a few steps of training, and everything said above:

# %%
from minipeft.adapted import Adapted
from minipeft.data import BASE
from minipeft.text import encode, load_tokenizer
from minipeft.train import AdamW

model = minipeft.load(BASE)
assert (model.arch.layers, model.arch.d) == (3, 128)
adapted = minipeft.attach(model, LoRA(r=4, alpha=8.0), targets="q_proj v_proj")
print(f"{model.size:,} numbers in the base, {adapted.adapters[0].size:,} trained")

texts = [
    "a gradient stops at a frozen weight",
    "and what is not trained cannot move",
    "the film was better than the book",
]
ids, mask = encode(load_tokenizer(BASE), texts, 16)
batch = minipeft.batch(
    input_ids=ids, attention_mask=mask, labels=np.where(mask == 1, ids, -100)
)

_, grads = adapted.value_and_grad(batch)
print(
    "the adapted model begins as the base:",
    np.array_equal(adapted.logits(batch), Adapted(model).logits(batch)),
)
print(
    "gradients of A at the first step are all zero:",
    not any(v.any() for k, v in grads.items() if k.endswith(":A")),
)
print("gradients of B are not:", all(v.any() for k, v in grads.items() if k.endswith(":B")))

before = model.digest()
trained = minipeft.fit(adapted, [batch], steps=30, optimiser=AdamW(lr=0.01))
print(f"loss at the first and last step: {trained.losses[0]:.2f}, {trained.losses[-1]:.2f}")
print("the base has the same bits:", model.digest() == before)

whole = minipeft.merge(trained.adapted)
apart = abs(Adapted(whole).logits(batch) - trained.adapted.logits(batch)).max()
print("the merged model computes the same, to 1e-4 in the logits:", bool(apart < 1e-4))

# %% [markdown]
# All of this is one line in the method's file; where it attaches, how it is initialised, trained, merged and saved follows from declarations.

# %%
print(inspect.getsource(LoRA.scale.fget))
print(inspect.getsource(LoRA.change))

# %% [markdown]
# `lowrank(B, A)` is a change that knows its factors: a linear layer multiplies by them one after the other, as above, and `merge` asks for the matrix. `shift(c)` is
# an optional change of the bias.
#
# [Exercise 2](../../examples/exercises/README.md) is to write these gradients without looking back at this page.
