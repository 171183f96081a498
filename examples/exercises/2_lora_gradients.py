"""Exercise 2: LoRA's gradients by hand (notebook 2).

    y = x W'ᵀ,    W' = W + s B A

with x (tokens, in), W (out, in), A (r, in), B (out, r). Given g (tokens, out), the gradient of the loss by y, write the
gradients by A, B and x.

    python examples/exercises/check.py 2
"""


def gradients(g, x, W, A, B, s):
    """The gradients by A, B and x, each in the shape of what it belongs to."""
    return dict(
        A=None,  # yours
        B=None,  # yours
        x=None,  # yours
    )
