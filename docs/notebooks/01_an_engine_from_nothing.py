# %% [markdown]
# # 1. An engine from nothing
#
# To train a model is to change its numbers so that a loss falls. Which way to change them is told by the gradient, the
# derivative of the loss by each of them. This notebook builds the machine that computes gradients, in a page of NumPy,
# checks it, trains with it, and then finds the same page in `minipeft/engine`.
#
# You need NumPy and partial derivatives, and about an hour.

# %%
import inspect
import itertools

import matplotlib.pyplot as plt
import numpy as np

rng = np.random.default_rng(0)

# %% [markdown]
# ## One step backwards
#
# Let $y = f(x)$ be one step of a longer computation that ends in a single number $L$, the loss. Suppose somebody has told us
# $g = \partial L / \partial y$, one number for each element of $y$. The chain rule gives the gradient by $x$:
#
# $$\frac{\partial L}{\partial x_j} = \sum_i g_i \, \frac{\partial y_i}{\partial x_j}
# \qquad\text{that is,}\qquad g^\top J .$$
#
# $J$ is the Jacobian, the matrix of all partial derivatives, and $g \mapsto g^\top J$ is called the **vector–Jacobian product**, VJP.
# The point of the name is that we need the product and never the matrix. For $y = \tanh x$, element by element, $J$ is diagonal with
# $1 - y_i^2$ in it, so the VJP is $g \odot (1 - y^2)$, a product of two vectors.

# %%
x, g = rng.standard_normal(5), rng.standard_normal(5)
y = np.tanh(x)
J = np.diag(1 - y**2)
print("with the matrix   ", (g @ J).round(4))
print("without the matrix", (g * (1 - y**2)).round(4))

# %% [markdown]
# For a product of matrices, $Y = X W$, write out one element: $Y_{ij} = \sum_k X_{ik} W_{kj}$. An element $X_{ik}$ appears in row $i$
# of $Y$ only, each time with the factor $W_{kj}$, so $\partial L/\partial X_{ik} = \sum_j G_{ij} W_{kj}$, which is $G W^\top$. In the same
# way $\partial L/\partial W = X^\top G$. If you forget which is which, the shapes tell: the gradient has the shape of what it belongs to.
#
# So an operation is two things: its value, and for each argument the way back. We write them side by side.


# %%
def add(x, y):
    return x + y, (lambda g: g, lambda g: g)


def mul(x, y):
    return x * y, (lambda g: g * y, lambda g: g * x)


def matmul(x, y):
    return x @ y, (lambda g: g @ y.T, lambda g: x.T @ g)


def tanh(x):
    y = np.tanh(x)
    return y, (lambda g: g * (1 - y * y),)


def mean(x):
    shape, size = x.shape, x.size
    return x.mean(), (lambda g: np.full(shape, g / size),)


# %% [markdown]
# Each `lambda` is a closure: a function that remembers the variables it mentions. The VJP of `mul` by `x` remembers `y`, that of `mean`
# only a shape and a size. What the way back will need is thereby kept, and nothing else. We come back to that.
#
# ## The tape
#
# Now we need to remember which operations were done, on what, and in which order. A `Tensor` is an array that knows the Tensors it came
# from and the way back to each. All Tensors of a computation together are called the tape.


# %%
class Tensor:
    """An array, the Tensors it was computed from, and for each of them the way back."""

    order = itertools.count()

    def __init__(self, value, parents=(), vjps=()):
        self.value, self.parents, self.vjps = value, parents, vjps
        self.order = next(Tensor.order)


def op(f):
    """Make of a function on arrays one that takes Tensors too."""

    def call(*args):
        y, vjps = f(*[a.value if isinstance(a, Tensor) else a for a in args])
        kept = [(a, vjp) for a, vjp in zip(args, vjps) if isinstance(a, Tensor)]
        if not kept:
            return y  # nothing here is being differentiated
        parents, vjps = zip(*kept)
        return Tensor(y, parents, vjps)

    return call


add, mul, matmul, tanh, mean = map(op, (add, mul, matmul, tanh, mean))

# %% [markdown]
# `op` has one decision in it, the line with `kept`. A plain array among the arguments is a constant: its VJP is dropped on the spot. If all
# arguments are plain arrays, no Tensor is made at all. Remember this line; it is the reason why a frozen weight has no
# gradient, in notebook 2 and everywhere else.
#
# ## A trap: broadcasting
#
# NumPy adds a row $b$ of shape (3,) to a matrix of shape (4, 3) by repeating the row four times. The VJP of our `add` did not think of it: it
# hands back a gradient of shape (4, 3), and the gradient of a bias must have the shape of the bias.
#
# Repeating is a step of its own, $y_{ij} = b_j$ for every $i$. Each $b_j$ was used four times, so its gradient is the sum over $i$ of what
# arrives. It would be tedious to say so in every operation; it is enough to undo broadcasting in one place, where gradients arrive.


# %%
def unbroadcast(g, shape):
    """Sum g over the axes along which an array of `shape` was repeated."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True)


g = rng.standard_normal((4, 3))
print("for b of shape (3,): ", unbroadcast(g, (3,)).shape)
print("for a column (4, 1): ", unbroadcast(g, (4, 1)).shape)
print("for a single number: ", unbroadcast(g, ()).shape)

# %% [markdown]
# ## All the way back
#
# Start at the loss, where $\partial L/\partial L = 1$. Visit the tape from the end to the beginning. At each Tensor, hand its gradient to
# each parent through the VJP, and **add** what arrives: if $x$ was used twice, it moves the loss in two ways, and the two add up.


# %%
def backward(root):
    """The gradients of `root`: {order of a Tensor it was computed from: gradient}."""
    found, stack = {}, [root]
    while stack:
        t = stack.pop()
        if t.order not in found:
            found[t.order] = t
            stack.extend(t.parents)
    grads = {root.order: np.ones_like(root.value)}
    for order in sorted(found, reverse=True):
        t = found[order]
        for parent, vjp in zip(t.parents, t.vjps):
            part = unbroadcast(vjp(grads[order]), parent.value.shape)
            grads[parent.order] = grads.get(parent.order, 0) + part
    return grads


x = Tensor(np.array([1.0, 2.0, 3.0]))
loss = mean(add(mul(x, x), x))  # the mean of x² + x, whose gradient is (2x + 1)/3
grads = backward(loss)
print("by the tape:", grads[x.order])
assert np.allclose(grads[x.order], (2 * x.value + 1) / 3)

# %% [markdown]
# Here $x$ is used three times, twice by `mul` and once by `add`, and its gradient is complete only when all three have handed over their part.
# That is why we go from the youngest Tensor to the oldest: whatever uses $x$ was created after $x$, so it comes before $x$ on the way back.
# No other search for the right order is needed.
#
# One more function makes all of this pleasant to use. A model's trained arrays are a dictionary; `value_and_grad` takes a function of such a
# dictionary and returns one that gives the loss and a dictionary of gradients with the same names.


# %%
def value_and_grad(f):
    """f(theta) -> loss, made into theta -> (loss, gradients)."""

    def call(theta):
        leaves = {name: Tensor(array) for name, array in theta.items()}
        root = f(leaves)
        grads = backward(root)
        return root.value, {
            name: grads.get(t.order, np.zeros_like(t.value)) for name, t in leaves.items()
        }

    return call


# %% [markdown]
# ## Is it right?
#
# A wrong gradient raises no error. The loss often still falls, only more slowly, and nobody notices. So gradients are compared with
# something that cannot share their mistakes: the definition of the derivative. Move the arrays by a small step $h$ in a random direction $d$ and see
# how the loss changes:
#
# $$\frac{f(\theta + h d) - f(\theta - h d)}{2h} \;=\; \nabla f \cdot d \;+\; O(h^2) \;+\; O(u |f| / h) .$$
#
# The first error is truncation, and shrinks with $h$. The second is rounding: each $f$ is known to about $u = 1.1 \cdot 10^{-16}$ of its
# size in float64, and we divide by $h$. One number compares a whole gradient: an error anywhere in it
# shows, unless the random direction happens to be at right angles to it.

# %%
theta = dict(
    W=rng.standard_normal((3, 4)),
    b=rng.standard_normal(4),
    V=rng.standard_normal((4, 1)),
    c=rng.standard_normal(1),
)
X, target = rng.standard_normal((8, 3)), rng.standard_normal((8, 1))


def loss(t):
    hidden = tanh(add(matmul(X, t["W"]), t["b"]))
    error = add(add(matmul(hidden, t["V"]), t["c"]), -target)
    return mean(mul(error, error))


def slope(f, theta, direction, h):
    """The derivative of f along a direction, by a difference of two values."""
    up, down = (
        {k: v + sign * h * direction[k] for k, v in theta.items()} for sign in (1, -1)
    )
    return (f(up) - f(down)) / (2 * h)


_, grads = value_and_grad(loss)(theta)
direction = {k: rng.standard_normal(v.shape) for k, v in theta.items()}
by_tape = sum((grads[k] * direction[k]).sum() for k in theta)

steps = 10.0 ** -np.arange(0.5, 13, 0.25)
errors = np.array([abs(slope(loss, theta, direction, h) - by_tape) for h in steps])
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.loglog(steps, errors, ".-", label="difference from the tape's")
ax.loglog(
    steps[4:22], errors[8] * (steps[4:22] / steps[8]) ** 2, "--", label="$h^2$: truncation"
)
ax.loglog(steps[16:], 2**-53 * loss(theta) / steps[16:], ":", label="$u|f|/h$: rounding")
ax.set(xlabel="step $h$", ylabel="error")
ax.legend(fontsize=8)
plt.show()
assert 1e-7 < steps[errors.argmin()] < 1e-5 and errors.min() < 1e-9 * abs(by_tape)

# %% [markdown]
# The two errors meet near $h = 10^{-6}$, and there the two derivatives agree to nine digits and more. This figure is also how a tolerance is derived
# rather than chosen: we know how large each error may be. `gradcheck` below uses that.
#
# A check is worth something only if it can fail. So we plant an error, the wrong sign in the derivative of tanh, and see it found.


# %%
def gradcheck(f, theta, h=1e-5):
    """Raise AssertionError unless the tape's slope and that of differences agree."""
    rng = np.random.default_rng(1)
    direction = {k: rng.standard_normal(v.shape) for k, v in theta.items()}
    value, grads = value_and_grad(f)(theta)
    by_tape = sum((grads[k] * direction[k]).sum() for k in theta)
    fine, coarse = slope(f, theta, direction, h), slope(f, theta, direction, 2 * h)
    allowed = (
        abs(coarse - fine) + 64 * 2**-53 * abs(value) / h
    )  # truncation as two steps show it, and rounding
    assert abs(by_tape - fine) <= allowed, (
        f"by the tape {by_tape:.6f}, by differences {fine:.6f}"
    )


gradcheck(loss, theta)
print("the tape's gradient passes")

right = tanh
tanh = op(lambda x: (np.tanh(x), (lambda g: g * (1 + np.tanh(x) ** 2),)))
try:
    gradcheck(loss, theta)
except AssertionError as why:
    print("with the wrong sign:", why)
tanh = right

# %% [markdown]
# ## Training
#
# The network above is $x \mapsto \tanh(xW + b)\,V + c$. Given sixteen hidden units it can learn a curve. A step of gradient descent is
# $\theta \leftarrow \theta - \eta \, \partial L/\partial\theta$, in one line.

# %%
X = np.linspace(-1, 1, 40)[:, None]
target = np.sin(4 * X)
theta = dict(
    W=3 * rng.standard_normal((1, 16)),
    b=rng.standard_normal(16),
    V=0.1 * rng.standard_normal((16, 1)),
    c=np.zeros(1),
)
losses = []
for _ in range(1500):
    value, grads = value_and_grad(loss)(theta)
    theta = {k: v - 0.1 * grads[k] for k, v in theta.items()}
    losses.append(float(value))

fig, (left, curve) = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained")
left.semilogy(losses)
left.set(xlabel="step", ylabel="loss")
curve.plot(X, target, "k--")
curve.plot(X, np.tanh(X @ theta["W"] + theta["b"]) @ theta["V"] + theta["c"])
curve.set(title="$\\sin 4x$, dashed, and what was learnt", xlabel="x")
plt.show()
assert losses[-1] < 0.02 * losses[0]

# %% [markdown]
# ## What is not trained costs nothing
#
# Fine-tuning with adapters trains few arrays and freezes the rest. In this engine freezing needs no flag: what is not in `theta` is a plain
# array. Let us see what that saves, by looking into the closures of a tape. The model is a chain of ten layers $h \leftarrow h + h W_n$.


# %%
def kept(root, besides):
    """Bytes of the arrays that a tape's closures remember, besides some there anyway."""
    seen, arrays, stack = set(), {}, [root]
    while stack:
        t = stack.pop()
        if t.order not in seen:
            seen.add(t.order)
            stack.extend(t.parents)
            cells = [cell.cell_contents for vjp in t.vjps for cell in vjp.__closure__ or ()]
            arrays |= {id(a): a.nbytes for a in cells if isinstance(a, np.ndarray)}
    return sum(size for i, size in arrays.items() if i not in map(id, besides))


weights = [rng.standard_normal((64, 64)) / 64 for _ in range(10)]
start = rng.standard_normal((100, 64))
held = {}
for name, trained in dict(all=range(10), last=[9], first=[0]).items():
    h = start
    for n, W in enumerate(weights):
        h = add(h, matmul(h, Tensor(W) if n in trained else W))
    held[name] = kept(mean(h), besides=weights) / start.nbytes
print("arrays as large as h that are kept, by which layers are trained:")
print(held)
assert held == dict(all=10, last=1, first=1)

# %% [markdown]
# To train all ten layers the tape keeps all ten inputs. To train one, it keeps one, whichever it is. If it is the first, the gradient has to
# travel back through nine frozen layers, but the VJP of $hW$ by $h$ is $g W^\top$ and needs $W$ only, which exists anyway. The input $h$
# would be needed by the VJP of $W$, and that was dropped by the line with `kept`.
#
# A nonlinearity is another matter: `tanh` needs its output whenever a gradient passes. Frozen layers are cheap, not free, if something in
# front of them is trained. And our `Tensor` still holds its value while the tape lives; the package's tape holds none, so that
# what no closure mentions is freed.
#
# ## The same in minipeft
#
# The engine of the package has the same parts with the same names. Here is its `mul`, and how it
# makes an op of any function of one element, `tanh` among them.

# %%
from minipeft import engine
from minipeft.engine import ops

print(inspect.getsource(ops.mul))
print(inspect.getsource(ops._of_each))

# %% [markdown]
# `ops.mul` is our `mul`, word for word. Operators are written as usual on its Tensors, `x @ W + b`, and mean these ops. Here is our loss once more,
# in the package's words, and its gradient beside ours.

# %%
X, target = rng.standard_normal((8, 1)), rng.standard_normal((8, 1))


def same_loss(t):
    error = ops.tanh(X @ t["W"] + t["b"]) @ t["V"] + t["c"] - target
    return ops.mean(error * error)


_, ours = value_and_grad(loss)(theta)
_, theirs = engine.value_and_grad(same_loss)(theta)
apart = max(abs(ours[k] - theirs[k]).max() / abs(ours[k]).max() for k in theta)
print("gradients agree to a relative 1e-14:", apart < 1e-14)
print(
    "so does its own check:", all(check.ok for check in engine.gradcheck(same_loss, theta))
)

# %% [markdown]
# Where to look in `minipeft/engine`:
#
# | here | there | what it does beyond |
# |---|---|---|
# | `Tensor` | `tensor.Tensor`, `tensor.Node` | a node on the tape holds no value, so that what no VJP needs can be freed |
# | `op` | `tensor.op`, `tensor._taped` | constants by keyword; a faster function may stand in for an op |
# | `unbroadcast` | `tensor.unbroadcast` | |
# | `backward` | `tensor.backward` | frees closures as it goes, adds into arrays that are its own, keeps the dtype |
# | `value_and_grad` | `tensor.value_and_grad` | the function may return something besides the loss |
# | `gradcheck` | `gradcheck.gradcheck` | fourth-order differences, each array by itself, and it refuses a function too rough to judge |
# | `add` … `mean` | `ops.py` | the other ops of a transformer, among them attention and the cross-entropy |
#
# One thing there has no counterpart here: `stop_gradient(x)`, which makes a constant of a Tensor. Notebook 4 is about it.
#
# [Exercise 1](../../examples/exercises/README.md) is a VJP of your own.
