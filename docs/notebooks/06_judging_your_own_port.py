# %% [markdown]
# # 6. Judging your own port
#
# Suppose you have written LoRA for another framework, another language, or just by hand. Is it right? Running without errors says nothing; a falling loss says
# little. The tests one writes oneself share one's own misunderstandings.
#
# minipeft comes with **recorded cases**: for every method arrays, settings, and what must come of them, computed in float64 and confirmed by a second, separately
# written witness. This notebook writes a LoRA in plain NumPy, makes the mistakes that real libraries made, and lets the cases judge it.

# %%
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from minipeft.conformance import cases
from minipeft.conformance.strategies import agree

recorded = [
    case
    for case in cases.load(cases.SHIPPED, ["lora"])
    if case.place == "linear"
    and case.ask in ("forward", "vjp", "merge")
    and "keep" not in case.tensors
]
print(
    len(recorded), "cases of LoRA ask for outputs, gradients or merged weights of a linear"
)
usual = next(case for case in recorded if case.id == "lora.forward.usual")
print(usual.id)
alpha, r = usual.config["alpha"], usual.config["r"]
print(f"α/r = {alpha / r:.1f}, α/√r = {alpha / math.sqrt(r):.1f}, α = {alpha:.1f}")
print(
    {name: array.shape for name, array in sorted(usual.tensors.items())},
    {name: array.shape for name, array in usual.want.items()},
    sep="\n→ ",
)

# %% [markdown]
# Look at the numbers that were chosen. All sizes differ. The three scales that one might confuse are different, and none is 1. $B$ and the bias are not zero. Every one of these is there because some
# library's error could not be seen otherwise.
#
# ## A first version
#
# Tensors come under the letters of the equation, settings under the names of the paper. `x` has the shape (batch, time, in); `g` is
# the gradient of the loss by $y$, and `c`, where there is one, a trained bias of $B$, scaled like the rest. Cases with dropout masks, files or training are left out here.


# %%
class Mine:
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ, by hand."""

    def scale(self, config):
        return config["alpha"]

    def forward(self, config, x, W, b, A, B, c=0.0):
        s = self.scale(config)
        return dict(y=x @ W.T + b + s * (x @ A.T @ B.T + c))

    def vjp(self, config, g, x, W, b, A, B, c=None):
        """The gradients of Σ g·y."""
        s = self.scale(config)
        G = np.einsum("bto,bti->oi", g, x)
        return dict(x=g @ W, A=s * B.T @ G, B=s * G @ A.T)

    def merge(self, config, W, b, A, B, c=0.0):
        return dict(W=W + self.scale(config) * B @ A, b=b)


def verdicts(mine):
    """Every case judged: a line for each that failed, and a count."""
    right = 0
    for case in recorded:
        given = {name.removesuffix(".y"): array for name, array in case.tensors.items()}
        if case.ask == "merge":
            del given["x"]
        try:
            agree(case, **getattr(mine, case.ask)(case.config, **given))
            right += 1
        except AssertionError as why:
            said, _, equals = str(why).split("}: ", 1)[1].partition("; it equals ")
            said, case_id = said.split(" at (")[0], case.id.removeprefix("lora.")
            print(f"{case_id:21} {said}{equals and ': '}{equals}")
    print(f"{right} of {len(recorded)} as wanted")


verdicts(Mine())

# %% [markdown]
# Nothing is right, but the verdicts say more than that. Each failure is compared with a collection of **mutants**: minipeft itself with one error planted, each after an incident in a real library. `alpha_undivided` behind a failure means: your output is, to the last digits,
# what one gets by forgetting to divide $\alpha$ by $r$. Where two are named, this case cannot tell them apart: with $\alpha/r = 3$ and $r = 2$ the forgotten division doubles the change, and so does merging twice. Where none is named,
# two errors are at work at once. What mutants there are, and where each was seen, stands in [mutants.md](../mutants.md).
#
# ## Mending
#
# The scale first.


# %%
class Mine2(Mine):
    def scale(self, config):
        return config["alpha"] / config["r"]


verdicts(Mine2())

# %% [markdown]
# The plain outputs pass. Four things are left, and each has a name or is plain from what is missing:
#
# - with `rslora` the scale is $\alpha/\sqrt r$, and we ignore the setting;
# - the gradient by $x$ runs through the adapter too, $g\,W'$, not only through the base; without it, layers further down would be trained on a wrong gradient, and nothing in this layer would look wrong;
# - with `lora_bias`, the bias `c` of $B$ has a gradient;
# - and it must be merged, with its scale.


# %%
class Mine3(Mine):
    def scale(self, config):
        return config["alpha"] / (
            math.sqrt(config["r"]) if config["rslora"] else config["r"]
        )

    def vjp(self, config, g, x, W, b, A, B, c=None):
        s = self.scale(config)
        grads = super().vjp(config, g, x, W, b, A, B)
        grads["x"] = g @ W + s * (g @ B @ A)
        return grads if c is None else grads | dict(c=s * g.sum(axis=(0, 1)))

    def merge(self, config, W, b, A, B, c=0.0):
        return super().merge(config, W, b, A, B) | dict(b=b + self.scale(config) * c)


verdicts(Mine3())

# %% [markdown]
# ## How equal is equal?
#
# Most test suites choose a relative tolerance, say $10^{-5}$, and loosen it until the tests pass. Here none is chosen. A case comes with a number `cond`: how far the largest element of the
# result moves if every number that goes in moves by one unit of its own size, measured. Rounding moves each by at most $u$, so a right result is off by a small multiple of
# $u \cdot \text{cond}$. The rule is $|\text{got} - \text{want}| \le K\,u\,\text{cond}$ with $K = 8$ as a rule, and the same in float64 and in float32.

# %%
usual_grad = next(case for case in recorded if case.id == "lora.grad.usual")
given = {name.removesuffix(".y"): array for name, array in usual_grad.tensors.items()}
for dtype in (np.float64, np.float32):
    case = cases.with_dtype(usual_grad, dtype)
    got = Mine3().vjp(case.config, **{k: v.astype(dtype) for k, v in given.items()})
    u = np.finfo(dtype).eps / 2
    ratios = {k: abs(got[k] - case.want[k]).max() / (u * case.cond[k]) for k in case.want}
    print(
        f"{np.dtype(dtype)}: all below K = {case.k:g}:",
        all(ratio < case.k for ratio in ratios.values()),
    )
    agree(case, **got)

sloppy = {
    k: v.astype(np.float32).astype(np.float64)
    for k, v in Mine3().vjp(usual_grad.config, **given).items()
}
try:
    agree(usual_grad, **sloppy)
except AssertionError as why:
    print("float64 that was float32 in between:", str(why).split("; ")[1])

# %% [markdown]
# ## A program of its own
#
# So far the port was an object in this process. In general it is a program, in any language, that reads a line of JSON for each case and answers with a line, and a file of tensors: [format.md](../format.md) has
# all that is needed. `minipeft verify new LANGUAGE FOLDER` writes one to start from, for C, Go, JavaScript, Rust, Swift, Python, PyTorch, JAX or MLX, and `minipeft verify -i …` judges it. A crash, a hang or garbage costs one case, not the run.
#
# The Python one knows LoRA already. We break its merge, and judge the checks of merging.


# %%
def minipeft(*words, folder="."):
    """The command line: what it prints, and its exit status."""
    plain = os.environ | {"FORCE_COLOR": ""}
    done = subprocess.run(
        [sys.executable, "-m", "minipeft", *words],
        cwd=folder,
        env=plain,
        capture_output=True,
        text=True,
    )
    print(done.stdout + f"exit status {done.returncode}")


folder = tempfile.TemporaryDirectory()
mine = Path(folder.name) / "mine"
subprocess.run(
    [sys.executable, "-m", "minipeft", "verify", "new", "python", mine],
    check=True,
    capture_output=True,
)
program = (mine / "harness.py").read_text()
right = "return W + s * (B @ A), b if c is None else b + s * c"
assert right in program
(mine / "harness.py").write_text(
    program.replace(right, "return W + s * s * (B @ A), b if c is None else b + s * c")
)
minipeft(
    "verify",
    "-i",
    "python:harness:implementation",
    "--case",
    "lora.merge.usual",
    folder=mine,
)

# %% [markdown]
# The panel has the equation, what is wrong in words and where it was seen before, the worst element, how far it is off in units of rounding, the mutant it equals, and the command that judges this case
# again. Mended, and with all cases of LoRA:

# %%
(mine / "harness.py").write_text(program)
minipeft("verify", "-i", "python:harness:implementation", "lora", folder=mine)
folder.cleanup()

# %% [markdown]
# What the program does not claim to have (files, training…) is not answered, and told apart from what is right and what is wrong. So a port can grow check by check.
#
# Further: `--html report.html` and `--junit report.xml` for a build server; `pytest -p minipeft.conformance.plugin --conformance python:mine:implementation` for a test for each case;
# `minipeft.conformance.strategies.case` draws new cases by Hypothesis; `-i peft` judges Hugging Face PEFT. [field.md](../field.md) is what came of doing this to every library there is a harness for.
#
# [Exercise 6](../../examples/exercises/README.md) goes the other way: a method of your own, and the laws that judge it.
