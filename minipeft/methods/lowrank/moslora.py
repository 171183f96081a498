"""MoSLoRA: Mixture-of-Subspaces in Low-Rank Adaptation. Wu et al. 2024, https://arxiv.org/abs/2406.11909

    W' = W + s B M A,    s = α/r                                              (paper, §3: M mixes the subspaces)

Merges   exactly: W' is an ordinary weight.
Differs  With M = I it is LoRA. M starts Kaiming-uniformly, as A does, or orthogonal: mixer="orthogonal"; B = 0, so that W' is W
         before training with either.

>>> A, M, B = np.array([[1., 0.], [0., 1.]]), np.array([[0., 2.], [1., 0.]]), np.array([[1., 1.]])
>>> MoSLoRA(r=2, alpha=2.).change(A=A, M=M, B=B).onto(np.zeros((1, 2)))
array([[1., 2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import choice, either, lowrank, orthonormal, requires, shift, trained, uniform
from minipeft.methods.lowrank.lora import LoRA


@dataclass(frozen=True)
class MoSLoRA(LoRA):
    """LoRA with a trained mixer between its factors."""

    name = "moslora"
    mixer: str = choice("uniform", "orthogonal")

    zero = requires("start != 'orthogonal'", "start='orthogonal' goes with factors that nothing stands between")
    M = trained("r", "r", start=either("mixer == 'orthogonal'", orthonormal(), uniform("r")))

    def change(self, *, A: Any, B: Any, M: Any, c: Any = None) -> Any:
        return self.scale * (lowrank(B @ M, A) + shift(c))
