"""VeRA: Vector-based Random Matrix Adaptation. Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454

    W' = W + Λb B Λd A,    Λb = diag(lambda_b), Λd = diag(lambda_d)           (paper, eq. 2)

where A and B are the first `in` columns and the first `out` rows of one random pair that all adapted matrices share. Its
sizes in_max and out_max are the largest `in` and the largest `out` among these, taken separately.

Merges   exactly: W' is an ordinary weight.
Differs  The paper has a pair for each shape of matrix (§3.1); HF peft cuts all from one, as here: other targets give other
         random matrices from the same seed. The pair is stored, never drawn again.

>>> A, B = np.array([[1., 2., 9.]]), np.array([[1.], [3.], [9.]])
>>> VeRA(r=1).change(A=A, B=B, lambda_d=np.array([2.]), lambda_b=np.array([10.])).onto(np.zeros((1, 2)))
array([[20., 40.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, count, found, free, lowrank, setting, size, stored, trained, within
from minipeft.torch_random import TorchGenerator


def pair(method: Any, facts: Any) -> dict[str, Any]:
    """A and B, Kaiming-uniform with gain √2, drawn and rounded in this order."""
    random, shapes = TorchGenerator(method.seed), dict(A=("rows", "in_max"), B=("out_max", "r"))
    bounds = {k: 3.0**0.5 * (2.0**0.5 / facts[columns] ** 0.5) for k, (_, columns) in shapes.items()}
    return {k: random.uniform((facts[m], facts[n]), -bounds[k], bounds[k]) for k, (m, n) in shapes.items()}


@dataclass(frozen=True)
class VeRA(Method):
    """Two trained vectors around one random pair of matrices."""

    name = "vera"
    targets: str = QUERY_VALUE
    takes = "matrices"
    r: int = count(256, small=lambda arch: arch.d, tried=2)
    d_initial: float = free(0.1)
    seed: int = free(0)
    dropout: float = within("[0, 1)", 0.0)

    rows = size("r")
    A = stored("rows", "in_max", start=found(pair, "U(±√(6/columns)), from `seed`"), shared=True)
    B = stored("out_max", "r", start=A.start, shared=True)
    lambda_d = trained("rows", start=setting("d_initial"))
    lambda_b = trained("out")

    def change(self, *, A: Any, B: Any, lambda_d: Any, lambda_b: Any) -> Any:
        return lowrank(lambda_b[:, None] * B[: lambda_b.shape[0]], lambda_d[:, None] * A, wide=True)
