"""Exercise 5: four bits a number (notebook 5).

    c_b = max |W_i| over block b,    q_i = the k whose t_k is nearest to W_i / c_b,    Ŵ_i = t[q_i] c_b

A block is `block` consecutive numbers of W, rows first; `codebook` has the sixteen t, ascending. W.size is a multiple of `block`.

    python examples/exercises/check.py 5
"""


def quantise(W, codebook, block):
    """The codes, integers (blocks, block), and the constants c (blocks,)."""
    flat = W.reshape(-1, block)
    constants = abs(flat).max(axis=1)
    codes = abs(flat[:, :, None] / constants[:, None, None] - codebook).argmin(axis=-1)
    return codes, constants


def dequantise(codes, constants, codebook, shape):
    """Ŵ, of this shape."""
    return (codebook[codes] * constants[:, None]).reshape(shape)
