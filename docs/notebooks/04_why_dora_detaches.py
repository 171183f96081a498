# %% [markdown]
# # 4. Why DoRA detaches
#
# DoRA ([Liu et al. 2024](https://arxiv.org/abs/2402.09353)) takes a weight apart into lengths and directions, row by row, and trains both: the lengths $m$ as they are, the
# directions by LoRA.
#
# $$V = W + s B A, \qquad W' = \mathrm{diag}\!\left(\frac{m}{\lVert V \rVert}\right) V .$$
#
# $\lVert V \rVert$ is a vector, the norm of every row. It depends on $A$ and $B$, so the gradient of the loss runs through it. The paper, in §4.3, says: treat it as a
# constant. Some libraries do so and others do not, and their outputs are the same. This notebook shows what is lost and what is saved, and why this was
# hard to notice.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np

import minipeft
from minipeft.conformance import cases
from minipeft.conformance.strategies import agree
from minipeft.data import BASE
from minipeft.engine import (
    Tensor,
    gradcheck,
    gradients_flow,
    ops,
    stop_gradient,
    value,
    value_and_grad,
)
from minipeft.methods.lowrank.dora import DoRA
from minipeft.text import encode, load_tokenizer
from minipeft.train import AdamW

minipeft.use(fast=False)  # the plain text of every op, so that what is kept can be counted
rng = np.random.default_rng(0)

# %% [markdown]
# ## Two gradients
#
# Take one row. Let $v$ be a row of $V$, $n = \lVert v \rVert$, $\hat v = v/n$, and $\gamma$ the gradient of the loss by the row $w' = m\,\hat v$ of $W'$. The gradient of $m$ is $\gamma \cdot \hat v$,
# a number. For $v$, use the product rule and $\partial n / \partial v = \hat v$:
#
# $$\frac{\partial L}{\partial v} = \frac{m}{n}\left(\gamma - (\gamma \cdot \hat v)\,\hat v\right)
# \qquad\text{and with } n \text{ held constant}\qquad \frac{m}{n}\,\gamma .$$
#
# The first is the second without its part along $v$. That makes sense: $w'$ does not depend on how long $v$ is, so moving along $v$ does not change the loss. The
# true gradient has no such part, the detached one keeps it. In the plane:

# %%
target, m = np.array([0.6, 1.6]), 1.5


def row_loss(v):
    w = m * v / np.linalg.norm(v, axis=-1, keepdims=True)
    return ((w - target) ** 2).sum(axis=-1)


v = np.array([1.4, 0.5])
n = np.linalg.norm(v)
gamma = 2 * (m * v / n - target)
detached = m / n * gamma
full = m / n * (gamma - (gamma @ v / n) * v / n)
assert abs(full @ v) < 1e-12

grid = np.stack(
    np.meshgrid(np.linspace(-0.3, 2.6, 200), np.linspace(-0.3, 2.2, 200)), axis=-1
)
fig, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
ax.contour(*np.moveaxis(grid, -1, 0), row_loss(grid), levels=12, linewidths=0.6)
for step, colour, label in (
    (full, "tab:blue", "full"),
    (detached, "tab:orange", "detached"),
):
    ax.arrow(*v, *(-0.35 * step), color=colour, width=0.015, head_width=0.08, label=label)
ax.plot(*v, "ko")
ax.annotate("v", v, xytext=(1.48, 0.32))
ax.set(title="loss over v, and a step from it", aspect="equal")
ax.legend()
plt.show()

# %% [markdown]
# Contours are rays: the loss depends on the direction of $v$ alone. The full step is at right angles to $v$. The detached one has the same part across, and lengthens or shortens
# $v$ besides, which costs nothing by itself.
#
# But we do not train $v$. We train $A$ and $B$, and what moves a row along itself moves other things too. The gradients of $A$ and $B$ differ in earnest:

# %%
W, x, g = (
    rng.standard_normal((5, 7)),
    rng.standard_normal((3, 7)),
    rng.standard_normal((3, 5)),
)
theta = dict(
    A=rng.standard_normal((2, 7)), B=rng.standard_normal((5, 2)), m=rng.uniform(1, 3, 5)
)


def dora_loss(grad):
    method = DoRA(r=2, alpha=6.0, grad=grad)
    return lambda t: ops.sum(g * ops.linear(x, method.weight(W, **t)))


results = {grad: value_and_grad(dora_loss(grad))(theta) for grad in ("detached", "full")}
print("the same loss:", results["detached"][0] == results["full"][0])
for name in theta:
    a, b = (results[grad][1][name] for grad in ("detached", "full"))
    print(f"gradients of {name} differ by {np.linalg.norm(a - b) / np.linalg.norm(b):.0%}")

# %% [markdown]
# The magnitude's gradient is the same: it does not pass through the norm. For this small, random layer the others are far apart.
#
# ## Only one of them is the derivative
#
# Finite differences know nothing of detaching. They confirm the full gradient and reject the other:

# %%
gradcheck(dora_loss("full"), theta)
print("full: equal to differences")
try:
    gradcheck(dora_loss("detached"), theta)
except AssertionError as why:
    print("detached: differences and gradient are", str(why).split(", ")[-2])

# %% [markdown]
# So how does one test an implementation that detaches? In two steps. With `gradients_flow()` the package's `stop_gradient` does nothing, and the rest of the
# gradient can be compared with differences. That it *does* detach is then a test of its own: hold the norm at its value and difference the function that remains.

# %%
with gradients_flow():
    print(
        "let through: ", all(check.ok for check in gradcheck(dora_loss("detached"), theta))
    )

norms = np.linalg.norm(W + 3.0 * theta["B"] @ theta["A"], axis=1)


def held(t):
    V = W + 3.0 * (t["B"] @ t["A"])
    return ops.sum(g * ops.linear(x, V * (t["m"] / norms)[:, None]))


_, constant = value_and_grad(held)(theta)
print("norm held:   ", all(check.ok for check in gradcheck(held, theta)))
print(
    "its gradient is the detached one:",
    all(np.allclose(constant[k], results["detached"][1][k]) for k in theta),
)

# %% [markdown]
# ## How large is the difference?
#
# What is left out is the part of $\gamma$ along $\hat v$. If the two have nothing to do with each other, a random direction in a space of $d$ dimensions shares about $1/\sqrt d$ of its length with any
# given one. Real layers are wide.

# %%
widths = 2 ** np.arange(2, 13)
along = []
for width in widths:
    gammas, directions = rng.standard_normal((2, 400, width))
    parts = (
        (gammas * directions).sum(axis=1)
        / np.linalg.norm(directions, axis=1)
        / np.linalg.norm(gammas, axis=1)
    )
    along.append(np.sqrt(np.mean(parts**2)))
fig, ax = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
ax.loglog(widths, along, "o", label="drawn at random")
ax.loglog(widths, widths**-0.5, "--", label=r"$1/\sqrt{d}$")
ax.set(xlabel="width $d$", ylabel="share left out")
ax.legend(fontsize=8)
plt.show()
print(f"of a layer of width {widths[-1]}: {along[-1]:.1%}")
assert np.allclose(along, widths**-0.5, rtol=0.15)

# %% [markdown]
# Gradients of a real model are not random, so we measure there as well: the decoder of the package, real text, DoRA at all linears; at the start, where $B = 0$, and after some training.

# %%
model = minipeft.load(BASE)
texts = [
    "a gradient stops at a frozen weight",
    "the film was better than the book",
    "we liked it very much",
]
ids, mask = encode(load_tokenizer(BASE), texts, 16)
batch = minipeft.batch(
    input_ids=ids, attention_mask=mask, labels=np.where(mask == 1, ids, -100)
)


def reading(adapted, grad):
    """The same adapter, its norm read as `grad` says."""
    (adapter,) = adapted.adapters
    at = {
        site: dataclasses.replace(method, grad=grad) for site, method in adapter.at.items()
    }
    adapter = dataclasses.replace(
        adapter, method=dataclasses.replace(adapter.method, grad=grad), at=at
    )
    return dataclasses.replace(adapted, adapters=(adapter,))


def difference(adapted, name):
    """‖detached − full‖ / ‖full‖ and the cosine, over an array's gradients at all sites."""
    a, b = (
        np.concatenate(
            [
                v.ravel()
                for k, v in reading(adapted, grad).value_and_grad(batch)[1].items()
                if k.endswith(name)
            ]
        )
        for grad in ("detached", "full")
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b), a @ b / np.linalg.norm(
        a
    ) / np.linalg.norm(b)


start = minipeft.attach(model, DoRA(r=4, alpha=8.0), targets="all-linear")
trained = {
    grad: minipeft.fit(reading(start, grad), [batch], steps=15, optimiser=AdamW(lr=0.005))
    for grad in ("detached", "full")
}
for when, adapted in {
    "at the start": start,
    "after 15 steps": trained["detached"].adapted,
}.items():
    for name in "AB":
        if (when, name) == ("at the start", "A"):
            continue  # both are zero
        apart, cosine = difference(adapted, name)
        print(f"{when}, {name}: they differ by {apart:.0%}, their cosine is {cosine:.3f}")
losses = {grad: f"{t.losses[0]:.2f} → {t.losses[-1]:.2f}" for grad, t in trained.items()}
print("loss over 15 steps:", losses)

# %% [markdown]
# ## What is saved
#
# The reason the paper gives is memory. Whether any is saved depends on how the layer is computed. Hugging Face PEFT never forms $W'$; it scales outputs,
#
# $$y = c \odot \left(x W^\top + s\,(x A^\top) B^\top\right), \qquad c = m / \lVert V \rVert .$$
#
# Detached, $V$ is needed for its norm only, and can be thrown away at once. Differentiated, the VJP of the norm is $g\,\hat v$, and needs $V$ on the way back: a matrix as large as $W$, for every adapted layer,
# kept from the forward pass to the backward pass. We count what the closures of the tape hold, as in notebook 1.


# %%
def arrays_in(f, besides):
    """The arrays that a closure remembers, through the functions that it mentions."""
    for cell in f.__closure__ or ():
        content = cell.cell_contents
        if isinstance(content, np.ndarray) and not any(content is a for a in besides):
            yield content
        elif callable(content) and getattr(content, "__closure__", None):
            yield from arrays_in(content, besides)


def kept(root, besides):
    """Bytes of all arrays on the tape, each counted once, besides some there anyway."""
    seen, held, stack = set(), {}, [root.node]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.extend(node.parents)
        held |= {id(a): a.nbytes for vjp in node.vjps for a in arrays_in(vjp, besides)}
    return sum(held.values())


def scaling_outputs(x, W, A, B, m, s, grad):
    n = ops.norm(W + s * (B @ A), axis=1)
    c = m / (stop_gradient(n) if grad == "detached" else n)
    return c * (ops.linear(x, W) + s * ops.linear(ops.linear(x, A), B))


def scaling_rows(x, W, A, B, m, s, grad):
    return ops.linear(
        x, DoRA(r=A.shape[0], alpha=s * A.shape[0], grad=grad).weight(W, A=A, B=B, m=m)
    )


width, tokens, rank = 512, 64, 8
W = rng.standard_normal((width, width)).astype(np.float32)
x = rng.standard_normal((tokens, width)).astype(np.float32)
arrays = dict(
    A=rng.standard_normal((rank, width)),
    B=rng.standard_normal((width, rank)),
    m=np.ones(width),
)
arrays = {k: Tensor(a.astype(np.float32)) for k, a in arrays.items()}
print(f"W takes {W.nbytes / 1e3:.0f} kB; kept on the tape:")
sizes = {}
for form in (scaling_outputs, scaling_rows):
    for grad in ("detached", "full"):
        y = form(x, W, **arrays, s=2.0, grad=grad)
        sizes[form, grad] = kept(ops.mean(y), besides=[W, x, *map(value, arrays.values())])
        print(f"  {form.__name__:16} {grad:9} {sizes[form, grad] / 1e3:6.0f} kB")
extra = sizes[scaling_outputs, "full"] - sizes[scaling_outputs, "detached"]
assert 0.9 * W.nbytes < extra < 1.1 * W.nbytes
print(f"a matrix of 4096 × 4096 in float32 is {4 * 4096**2 / 1e6:.0f} MB")

# %% [markdown]
# In PEFT's form detaching saves one matrix of $W$'s size in each layer. In the other form, `scaling_rows`, which is the equation as it is written, and the package's, it saves next to nothing: $V$ is needed for the gradient of $m$ in any case. That
# form pays for being plain, and is what a reference should compute.
#
# ## Who does what
#
# Hugging Face PEFT, torchtune and mlx-lm detach. LyCORIS and adapters do not. Neither is an error: they are two readings of one equation, and their outputs agree to the last digits. But training differs,
# and a test of outputs can never show it. minipeft makes it a **reading**, a named setting: `DoRA(grad="detached")` or `DoRA(grad="full")`. The recorded cases hold the gradients of both.
#
# Suppose somebody ports DoRA and differentiates the norm without thinking. The case `dora.grad.usual` has the detached gradients:

# %%
recorded = {case.id: case for case in cases.load(cases.SHIPPED, ["dora"], ["grad"])}


def port(case):
    """DoRA in the engine's ops, its norm differentiated."""
    t, s = case.tensors, case.config["alpha"] / case.config["r"]

    def loss(theta):
        V = t["W"] + s * (theta["B"] @ theta["A"])
        y = ops.linear(theta["x"], V * (theta["m"] / ops.norm(V, axis=1))[:, None], t["b"])
        return ops.sum(t["g.y"] * y)

    return value_and_grad(loss)({k: t[k] for k in "xABm"})[1]


for name in ("dora.grad.usual", "dora.grad.grad=full"):
    try:
        agree(recorded[name], **port(recorded[name]))
        print(f"{name}: as wanted")
    except AssertionError as why:
        said, _, equals = str(why).split("}: ")[1].partition("; ")
        print(f"{name}: {said.split(' at ')[0]}; {equals}")

# %% [markdown]
# The first verdict names the mistake, or the reading: this port computes what minipeft computes with `dora_norm_differentiated`. A library that declares the reading `grad: full` is judged by the second case and passes. [deviations.md](../deviations.md#lycoris-dora)
# has what was found in real ones.
#
# [Exercise 4](../../examples/exercises/README.md) is to detach the right thing.
