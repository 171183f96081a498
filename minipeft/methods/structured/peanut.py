"""PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers. Zhong et al. 2024, https://arxiv.org/abs/2410.01870

    W' = W + s B G_l,      H_0 = f(A W),     G_0 = H_l                        l = depth
    H_i = f(E_{i−1} H_{i−1}),    G_i = f(D_{i−1} G_{i−1}) + H_{l−i}           i = 1 … l

The change is a small network of the weight itself: each column of W, all that one input feeds, goes in, and a column
of the change comes out. Without depth it is s B f(A W), and with f="linear" too it is s B A W.

Merges   exactly: W' is an ordinary weight.
Differs  The paper writes the transpose, f(W Θ_1) Θ_2, for x W; nothing else differs in HF peft. There f may be any of
         transformers' functions; of these "laplace" and the two with arrays of their own are not here.

>>> PEANuT(r=1).weight(np.array([[1., 2.], [3., 1.]]), A=np.array([[1., -1.]]), B=np.array([[1.], [10.]]))
array([[ 1.,  3.],
       [ 3., 11.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, count, each, free, trained, uniform
from minipeft.model.activations import ACTIVATIONS


@dataclass(frozen=True)
class PEANuT(Method):
    """A change that a small network makes of the weight."""

    name = "peanut"
    targets: str = QUERY_VALUE
    takes = "matrices"
    r: int = count(32, small=4, tried=3)
    depth: int = count(0, least=0, most=64, tried=2, also=(0,))  # l
    f: str = choice(*ACTIVATIONS, default="relu", varied=False, also=("gelu", "silu", "tanh", "linear"))
    scale: float = free(1.0, tried=1.75)  # s

    A = trained("r", "out", start=uniform("out"))
    inner = each("depth", E=trained("r", "r", start=uniform("r")), D=trained("r", "r", start=uniform("r")))
    B = trained("out", "r")

    def weight(self, W: Any, *, A: Any, B: Any, **inner: Any) -> Any:
        f = ACTIVATIONS[self.f]
        H = [f(A @ W)]
        for i in range(self.depth):
            H.append(f(inner[f"E{i}"] @ H[-1]))
        G = H.pop()
        for i in range(self.depth):
            G = f(inner[f"D{i}"] @ G) + H.pop()
        return W + self.scale * (B @ G)
