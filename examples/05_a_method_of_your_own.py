"""Gain: a learned factor on every feed-forward. An example, https://example.org

    a' = (1 + g) ⊙ a

Merges   no: it acts on an activation.
Differs  nowhere: it is an example.

>>> Gain().apply(np.array([1., 2.]), None, g=np.array([0., 1.]))
array([1., 4.])
"""

from dataclasses import dataclass

from minipeft.conformance.laws import check
from minipeft.declare import Method, trained


@dataclass(frozen=True)
class Gain(Method):
    """Registers itself by being defined; the laws read the docstring above."""

    targets: str = "mlp.out"

    g = trained("d")

    def apply(self, a, here, *, g):
        return (1 + g) * a


if __name__ == "__main__":
    for verdict in check(Gain, ["llama", "bert"]):
        print(f"{verdict.family:6} {verdict.law:11} {verdict.outcome} {verdict.reason}")
