"""Trainable tokens: a few rows of an embedding. Hugging Face PEFT 2025, https://huggingface.co/docs/peft/package_reference/trainable_tokens

    W'[tokens_i] = T[i],    W'[v] = W[v] for every other v

Merges   exactly: W' is an ordinary table.
Differs  Rows are replaced, not added to. A head that is tied to the table has the new rows too, and keeps its bias: head_bias="keep".
         HF peft 0.21 loses the bias of such a head until it merges: head_bias="drop". HF peft takes a token given twice,
         and gives no gradient to the padding token's row where it is looked up; we refuse the first and give the second.

>>> TrainableTokens(tokens=(1,)).change(T=np.array([[5., 6.]])).onto(np.zeros((3, 2)))
array([[0., 0.],
       [5., 6.],
       [0., 0.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Method, choice, fact, found, replaced, requires, size, such_that, trained


def outside(method: Any, site: Any) -> str:
    """The token ids that the table does not have."""
    return ", ".join(str(v) for v in method.tokens if not 0 <= v < site.shape[0])


@dataclass(frozen=True)
class TrainableTokens(Method):
    """New rows for chosen tokens."""

    targets: str = "embed.tokens.weight"
    takes = "matrices"
    tokens: tuple[int, ...] = such_that(
        lambda ids: len(set(ids)) == len(ids),
        "differ",
        (),
        small=lambda a: tuple(range(2, min(a.vocab, 258))),
        tried=(2, 5, 7),
    )
    head_bias: str = choice("keep", "drop", reading=True)  # of a tied head

    n = size("len(tokens)")
    strange = fact(outside)
    some = requires("n > 0", "tokens must name at least one token id, found none")
    inside = requires("not strange", "tokens must lie in 0 … {out - 1}, found {strange}")
    T = trained("n", "in", start=found(lambda method, facts: facts.W[list(method.tokens)], "the rows W[tokens]"))

    def change(self, *, T: Any) -> Any:
        return replaced(T, self.tokens, keeps_bias=self.head_bias == "keep")
