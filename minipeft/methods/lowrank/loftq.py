"""LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models. Li et al. 2023, https://arxiv.org/abs/2310.08659

    D = 0;  T times:   Q = deq(quant(W − D)),   D = U_r Σ_r V_rᵀ  of  W − Q = U Σ Vᵀ      (paper, algorithm 1)
    W' = Q + s B A,    s B A = D at first, A = √(Σ_r/s) V_rᵀ, B = U_r √(Σ_r/s);  s as LoRA

Merges   exactly: to Q + s B A in full precision, as QLoRA.
Dropout  as LoRA; what four bits lost is added in the change, and dropped with it.
Differs  The paper has no s; reading="paper" makes up for what quantising lost whatever s is. reading="peft" leaves s out of A
         and B, as the authors' code and HF peft do: then W' is near W only where s = 1, and with s = 2 no nearer than Q. T is
         `rounds`. HF peft writes Q over the base; here it is held in its four bits, or eight with code="int8"; HF peft refuses
         the two bits of the paper, as is done here. The base must be at hand in full precision: one that is quantised
         already is refused.

>>> from minipeft.drawing import Facts
>>> site = Site("q.weight", (2, 2), "linear", None, np.array([[0.5, 1.0], [-1.0, 0.1]]))
>>> Q, found = alternated(LoftQ(r=1, alpha=1.), Facts(LoftQ(r=1), site))
>>> Q.dequantize().round(2) + 0, (found["B"] @ found["A"]).round(2) + 0
(array([[ 0.44,  1.  ],
       [-1.  ,  0.08]]), array([[0.06, 0.  ],
       [0.  , 0.  ]]))
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Bad, choice, count, found, held, positive, requires, trained
from minipeft.engine.factors import finite, principal
from minipeft.engine.weight import quantised
from minipeft.methods.lowrank.qlora import QLoRA
from minipeft.model.parts import tied


def alternated(method: Any, facts: Any) -> tuple[Any, dict[str, Any]]:
    """Q, and A and B as they start."""
    what = f"{method.name}: {facts['site']}"
    if quantised(facts.site.W) or (facts.site.arch and facts["site"] in tied(facts.site.arch)):
        raise Bad(f"{what}: expected a weight of its own in full precision, found one that is tied or quantised")
    W = finite(what, facts.W)
    D, s = 0 * W, method.scale if method.reading == "paper" else 1.0
    for _ in range(method.rounds):
        Q = method.quantized((W - D).astype(facts.W.dtype))
        A, B = principal(W - finite(what, Q.dequantize()), method.r)
        D = B @ A
    return Q, dict(A=s**-0.5 * A, B=s**-0.5 * B)


PART = found(lambda method, facts: alternated(method, facts)[1], "√(Σ_r/s) V_rᵀ or U_r √(Σ_r/s), of W − Q")


@dataclass(frozen=True)
class LoftQ(QLoRA):
    """LoRA that starts from what quantising loses."""

    name = "loftq"
    identity = False
    alpha: float = positive(8.0, tried=6.0)
    double_quant: bool = False
    rounds: int = count(1, most=100)  # T
    reading: str = choice("paper", "peft", reading=True)

    drawn = requires("not lora_bias and start == 'uniform'", "lora_bias and start go with factors that are drawn")
    rank = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}")
    W = held(lambda method, facts: alternated(method, facts)[0])
    A = trained("r", "in", start=PART)
    B = trained("out", "r", start=PART)
