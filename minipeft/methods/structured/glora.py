"""GLoRA: One-for-All: Generalized LoRA for Parameter-Efficient Fine-Tuning. Chavan et al. 2023, https://arxiv.org/abs/2306.07967

    W' = W + W ∘ A + B                                                        (paper)
    b' = b + b ∘ D + E + W C

Each letter has a path: "lora", A = Ad Au of rank r; "vector", a number for each output, or input (C); "constant", one for all; "none", 0.

Merges   exactly: W' and b' are ordinary.
Differs  The paper searches paths for every layer; here, as in HF peft, they are chosen. A linear without a bias has no C, D and E.

>>> change = GLoRA(path_AB="constant").change(A=1., B=0., D=0., E=np.array([5.]), Cd=np.eye(2), Cu=np.array([[1.], [2.]]))
>>> change.onto(np.array([[1., 3.]])), change.bias_over(np.array([0.]), lambda: np.array([[1., 3.]]))
(array([[2., 6.]]), array([12.]))
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, count, fact, mapped, requires, size, trained, uniform


@dataclass(frozen=True)
class GLoRA(Method):
    """Weight and bias scaled, shifted, and the weight's columns added to the bias."""

    name = "glora"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(8, tried=2)
    path_AB: str = choice("lora", "vector", "constant", "none")
    path_C: str = choice("lora", "vector", "none")
    path_DE: str = choice("constant", "vector", "none")

    some = requires("not (path_AB == path_C == path_DE == 'none')", "one path must be another than 'none'")
    b = fact(lambda method, site: site.name.removesuffix("weight") + "bias" in site.params)
    Ad, Bd = (trained("out", "r", when="path_AB == 'lora'") for _ in "AB")
    Au, Bu = (trained("r", "in", start=uniform("in"), when="path_AB == 'lora'") for _ in "AB")
    whole = size("path_AB == 'vector' or path_AB == 'constant'")
    A, B = (trained("out if path_AB == 'vector' else 1", 1, when="whole") for _ in "AB")
    Cd = trained("in", "r", when="b and path_C == 'lora'")
    Cu = trained("r", 1, start=uniform(bound=1.0), when="b and path_C == 'lora'")
    C = trained("in", 1, when="b and path_C == 'vector'")
    D, E = (trained("out if path_DE == 'vector' else 1", when="b and path_DE != 'none'") for _ in "DE")

    def change(self, *, D: Any = 0.0, E: Any = 0.0, **paths: Any) -> Any:
        A, B, C = (paths[f"{n}d"] @ paths[f"{n}u"] if f"{n}d" in paths else paths.get(n) for n in "ABC")
        return mapped(
            lambda W: W if A is None else W + W * A + B,
            lambda b, W: b if b is None else b + b * D + E + (0.0 if C is None else (W @ C)[:, 0]),
        )
