"""LoReFT: ReFT, Representation Finetuning for Language Models. Wu et al. 2024, https://arxiv.org/abs/2404.03592

    h' = h + Rᵀ (W h + b − R h),   R Rᵀ = I                                   (paper, eq. 2)

on the hidden state h that leaves a layer, at the first n_pre and the last n_suf tokens of each row.

    W    (r, d)  trained   U(±1/√d)
    b    (r)     trained   U(±1/√d)
    R    (r, d)  trained   orthonormal rows, uniform among such
    W_s  (r, d)  trained   the same for the last tokens; only with n_suf and not tied
    b_s  (r)     trained   U(±1/√d); only with n_suf and not tied
    R_s  (r, d)  trained   orthonormal rows; only with n_suf and not tied

Size       edits (2 r d + r) numbers per site, one site a layer; edits is 2 with n_suf and not tied, else 1.
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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import backend, ops
from minipeft.engine.backend import xp
from minipeft.engine.factors import singular
from minipeft.errors import Bad
from minipeft.method import Here, Method, Site, Step
from minipeft.model.transformer import Tokens  # noqa: F401  (the example above uses it)
from minipeft.settings import at_least, count, within


@dataclass(frozen=True)
class LoReFT(Method):
    """An edit of the hidden state within a subspace, at some tokens."""

    targets: str = r"re:(encoder\.)?layers\.\d+\.out"
    r: int = count(4)
    n_pre: int = at_least(0, 3)
    n_suf: int = at_least(0, 0)
    tied: bool = False  # one edit for the first and the last tokens
    dropout: float = within("[0, 1)", 0.0)
    takes: ClassVar[str] = "vectors"
    name: ClassVar[str] = "loreft"
    identity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.n_pre + self.n_suf:
            raise Bad(f"{self.name}: n_pre and n_suf must not both be 0")

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(edits=2 if self.n_suf and not self.tied else 1)

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        (d,) = site.shape
        if self.r > d:
            raise Bad(f"{self.name}: r must be at most {d}, the width of {site.name}, found {self.r}")
        arrays = {}
        for end in ("", "_s") if self.n_suf and not self.tied else ("",):
            arrays["W" + end], arrays["b" + end] = (
                rng.uniform(-(d**-0.5), d**-0.5, (self.r, d)),
                rng.uniform(-(d**-0.5), d**-0.5, self.r),
            )
            Q, U = np.linalg.qr(rng.standard_normal((d, self.r)))
            arrays["R" + end] = (Q * np.sign(np.diag(U))).T
        return arrays

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
                R = arrays[name].astype(xp.float64)
                if backend.name() == "numpy":
                    U, _, Vt = singular(f"{self.name}: {name} of {site} after step {step.t}", R)
                else:  # a device is not waited for, and its decomposition ends in any case
                    U, _, Vt = xp.linalg.svd(R, full_matrices=False)
                arrays[name] = (U @ Vt).astype(arrays[name].dtype)
