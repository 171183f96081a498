"""LoReFT: ReFT, Representation Finetuning for Language Models. Wu et al. 2024, https://arxiv.org/abs/2404.03592

    h' = h + Rᵀ (W h + b − R h),   R Rᵀ = I                                   (paper, eq. 2)

on the hidden state h that leaves a layer, at the first n_pre and the last n_suf tokens of each row.

Merges     no: it acts at some positions.
Positions  Counted among the tokens that the mask shows; a token that is both is among the last. In generation only
           tokens of the prompt are edited.
Dropout    acts on the whole edited state, h included, as in the authors' code.
Differs    Authors and AdapterHub keep R orthonormal by a parametrisation, which weight decay destroys. Here the gradient
           of R is projected on the directions that keep R Rᵀ = I to first order, and R is set to the nearest such matrix
           after every step. AdapterHub's default is r = 1 at the first three tokens.

>>> class Here: prefill, tokens, dropout = True, Tokens(2), staticmethod(lambda x, p: x)
>>> W, b, R = np.array([[0., 0.]]), np.array([7.]), np.array([[0., 1.]])
>>> LoReFT(r=1, n_pre=1).apply(np.array([[[1., 2.], [3., 4.]]]), Here, W=W, b=b, R=R)
array([[[1., 7.],
        [3., 4.]]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Bad, Here, Method, Step, at_least, count, orthonormal, requires, trained, uniform, within
from minipeft.engine import factors, ops
from minipeft.engine.backend import xp

TWO = "n_suf > 0 and not tied"


@dataclass(frozen=True)
class LoReFT(Method):
    """An edit of the hidden state within a subspace, at some tokens."""

    name = "loreft"
    identity = False
    targets: str = r"re:(encoder\.)?layers\.\d+\.out"
    takes = "vectors"
    r: int = count(4, tried=2)
    n_pre: int = at_least(0, 3, tried=2)
    n_suf: int = at_least(0, 0, tried=1)
    tied: bool = False  # one edit for the first and the last tokens
    dropout: float = within("[0, 1)", 0.0)

    some = requires("n_pre + n_suf > 0", "n_pre and n_suf must not both be 0")
    rank = requires("r <= d", "r must be at most {d}, the width, found {r}")
    W = trained("r", "d", start=uniform("d"))
    b = trained("r", start=uniform("d"))
    R = trained("r", "d", start=orthonormal())
    W_s = trained("r", "d", start=uniform("d"), when=TWO)
    b_s = trained("r", start=uniform("d"), when=TWO)
    R_s = trained("r", "d", start=orthonormal(), when=TWO)

    def apply(
        self, h: Any, here: Here, *, W: Any, b: Any, R: Any, W_s: Any = None, b_s: Any = None, R_s: Any = None
    ) -> Any:
        if not here.prefill:
            return h
        if h.ndim != 3:
            raise Bad(f"{self.name}: {here.site} must see one vector for each token, found {tuple(h.shape)}")
        at = xp.arange(h.shape[1])[None]
        first, last = (n if isinstance(n, int) else n[:, None] for n in (here.tokens.first, here.tokens.last))
        late = (at > last - self.n_suf) & (at <= last) & (at >= first)
        early = (at < first + self.n_pre) & (at >= first) & (at <= last)
        if W_s is None:
            return self._edit(h, early | late, here, W, b, R)
        return self._edit(self._edit(h, early & ~late, here, W, b, R), late, here, W_s, b_s, R_s)

    def _edit(self, h: Any, where: Any, here: Here, W: Any, b: Any, R: Any) -> Any:
        edited = here.dropout(h + (ops.linear(h, W, b) - ops.linear(h, R)) @ R, self.dropout)
        return ops.where(edited, h, condition=where[:, :, None])

    def after_backward(self, step: Step) -> None:
        """G ← G − sym(G Rᵀ) R: the part along which R Rᵀ does not change."""
        for site, grads in step.grads.items():
            for name in grads.keys() & {"R", "R_s"}:
                G, R = grads[name], step.theta[site][name]
                S = G @ R.T
                grads[name] = G - (S + S.T) @ R / 2

    def after_step(self, step: Step) -> None:
        """R ← the nearest matrix with orthonormal rows."""
        for site, arrays in step.theta.items():
            for name in arrays.keys() & {"R", "R_s"}:
                arrays[name] = factors.orthonormal(f"{self.name}: {name} of {site} after step {step.t}", arrays[name])
