"""TwoScales: every row and every column of a weight scaled. An exercise, https://example.org

    W' = diag(1 + u) W diag(1 + v)

Merges   exactly: W' is an ordinary weight.
Differs  nowhere: it is an exercise.
"""

# Exercise 6: a method of your own. A method declares its trained arrays and says what becomes of a weight; the guide's section 4 has the
# words. Here they are u, one number for each row ("out"), and v, one for each column ("in"). Before training the model must be what it
# was. W is (out, in); u and v are Tensors during training and work like arrays.
#
#     python examples/exercises/check.py 6

from dataclasses import dataclass

from minipeft.declare import QUERY_VALUE, Method, trained


@dataclass(frozen=True)
class TwoScales(Method):
    """Checked by its equation, and by the laws that every method obeys."""

    targets: str = QUERY_VALUE
    takes = "linears"

    u = trained("out")
    v = trained("in")

    def weight(self, W, *, u, v):
        return (1 + u)[:, None] * W * (1 + v)
