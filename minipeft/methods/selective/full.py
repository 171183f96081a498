"""Full fine-tuning: the baseline. Every parameter is trained.

    W' = W₁

Merges   exactly: W' is an ordinary weight.
Differs  Nothing is frozen, yet the base is not written to: the trained copy stands beside it. A head that is tied to a
         trained token table stays tied: head="follows". HF peft's modules_to_save leaves it as it was: head="stays".

>>> Full().weight(np.zeros((1, 2)), W1=np.array([[3., 4.]]))
array([[3., 4.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Method, choice, found, trained


@dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning of the targeted parameters."""

    targets: str = "*.weight *.bias *.cls"
    head: str = choice("follows", "stays", reading=True)  # of a tied head

    W1 = trained(..., start=found(lambda method, facts: facts.W.copy(), "W"))

    @property
    def takes(self) -> str:  # type: ignore[override]
        """Whether a tied head is one parameter with the table."""
        return "parameters" if self.head == "follows" else "parameters one by one"

    def weight(self, W: Any, *, W1: Any) -> Any:
        return W1
