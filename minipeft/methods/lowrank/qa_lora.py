"""QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models. Xu et al. 2023, https://arxiv.org/abs/2309.14717

    W' = W + s c B A P,    s = α/r as LoRA,    A (r, in/g)                    (paper, §3.3)
    (P x)_l = x_{l g} + … + x_{l g + g − 1}                                   the sum of each group of g inputs
    c = 1,    or in/g²                                                        with pool="peft"

Every row of W' − W is constant within a group of inputs. So where W is quantised in these groups, α_l (q − β_l), the adapter
merges into the zero points: β_l ← β_l − s c (B A)_l / α_l, and q stays as it is.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of P.
Differs  HF peft multiplies the mean of a group by how many groups there are, in/g, where paper and authors' code multiply it by g:
         pool="peft", which is (in/g²) times as much. It has QA-LoRA on GPTQ's layers only, and cannot merge it; on other
         layers it passes use_qalora over, and trains LoRA.

>>> A, B = np.array([[1., 2.]]), np.array([[1.], [3.]])
>>> QALoRA(r=1, alpha=1, group=2).change(A=A, B=B).onto(np.zeros((2, 4)))
array([[1., 1., 2., 2.],
       [3., 3., 6., 6.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import choice, count, lowrank, requires, size, trained, uniform
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.methods.lowrank.lora import LoRA


@dataclass(frozen=True)
class QALoRA(LoRA):
    """LoRA of sums over groups of inputs."""

    name = "qa_lora"
    takes = "linears"
    group: int = count(16, small=2, tried=lambda arch: 7 if arch.d == 14 else 4)  # g
    pool: str = choice("sum", "peft", reading=True)

    no_bias = requires("not lora_bias", "lora_bias is not part of it; expected False")
    even = requires("in % group == 0", "group must divide the width {in}, found {group},")
    L = size("in / group")
    A = trained("r", "L", start=uniform("L"))
    B = trained("out", "r")

    def change(self, *, A: Any, B: Any) -> Any:
        (r, L), g = A.shape, self.group
        AP = ops.reshape(A[:, :, None] * xp.ones(g, A.dtype), shape=(r, L * g))
        return self.scale * (1.0 if self.pool == "sum" else L / g) * lowrank(B, AP)
