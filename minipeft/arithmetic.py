"""Arithmetic of adapters: several made one, any change of weights made low-rank, a different adapter for every row.

With weights w, adapters whose change at a site is ΔW_k = s_k B_k A_k, and c_k = w_k s_k, the one that comes of them has s = 1 and

    linear             A = Σ sign(c_k) √|c_k| A_k,  B = Σ √|c_k| B_k             not the sum of changes: B_i A_j is in it too
    cat                A = [A_1; A_2; …],  B = [c_1 B_1, c_2 B_2, …]             exactly Σ w_k ΔW_k; the ranks add up
    svd                B A nearest to Σ w_k ΔW_k, of some rank                   any change of a weight, low-rank or not
    magnitude_prune    linear, of factors of which the largest `density` are kept
    dare_linear        linear, of factors whose numbers are kept with probability `density`, and divided by it
    ties, dare_ties    linear, of factors thinned so, but every element is the mean of those that have the elected sign
    …_svd              the same done to the changes ΔW_k, with w_k in place of c_k, then as svd

TIES: Yadav et al. 2023, https://arxiv.org/abs/2306.01708. DARE: Yu et al. 2023, https://arxiv.org/abs/2311.03099. The sign
of an element is elected by all, "total" by the sum of their numbers, "frequency" by the number of signs, without the weights;
where neither wins it is +. A bias that is changed too is summed: b' = b + Σ w_k s_k c_k; so is what is trained whole, and stays so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import declared
from minipeft.changes import Change, Sum
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.factors import singular
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, change_of, is_weight, is_whole, load_methods, ties
from minipeft.model.batch import Batch
from minipeft.model.parts import tied
from minipeft.settings import Settings, check, choice, such_that, within

Lookup = Callable[[str], Any]  # a parameter of the base by its name
THINNED = ("magnitude_prune", "dare_linear", "ties", "dare_ties")
RANK = such_that(
    lambda r: (type(r) is int and r >= 1) or (type(r) is float and 0 < r <= 1),
    "be an integer from 1 on, or a share in (0, 1]",
    None,
)


@dataclass(frozen=True)
class Combination(Settings):
    """How adapters are made one.

    `rank`, of the kinds with svd, is an integer or the share of Σ σ² to be kept; None: the largest of the adapters at a site.
    `density` is what the kinds that thin keep. `clamp` cuts what the svd gives at ± that quantile of its numbers, signs
    and all. `seed` draws what DARE keeps. Raises `Bad` for what is out of range or has no meaning for the kind.
    """

    kind: str = choice("linear", "cat", "svd", *THINNED, *(f"{kind}_svd" for kind in THINNED))
    rank: int | float | None = RANK
    density: float | None = within("(0, 1]", None)
    votes: str = choice("total", "frequency")
    clamp: float | None = within("[0.5, 1]", None)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "combine")
        if self.thins != (self.density is not None):
            raise Bad(f"combine: {self.kind} {'needs a' if self.thins else 'has no'} density")
        for name in ("rank", "clamp"):
            if getattr(self, name) is not None and not self.decomposes:
                raise Bad(f"combine: {self.kind} has no {name}; the kinds with svd have")

    @property
    def thins(self) -> bool:
        """Whether it keeps a part of the numbers."""
        return self.kind.startswith(THINNED)

    @property
    def decomposes(self) -> bool:
        """Whether the sum is that of changes, decomposed anew."""
        return self.kind.endswith("svd")


def combine(
    adapted: Adapted, weights: Mapping[str, float], how: Combination = Combination(), *, name: str = "combined"
) -> Adapted:
    """The base with one low-rank adapter in place of those that `weights` names; a weight may be negative.

    Raises `Bad` for an adapter that is not attached, a change that is of no matrix, and, but for the kinds with svd, one that is
    no B A, or ranks that differ where factors are added up.
    """
    if not weights:
        raise Bad("combine: expected at least one adapter with its weight, found none")
    adapted.using(**weights)  # refuses names and weights
    base = adapted.using().run().base
    rng, changes = np.random.default_rng(how.seed), {n: _changes(adapted.adapter(n)) for n in weights}
    at: dict[str, Method] = {}
    arrays: dict[str, Any] = {}
    made: dict[str, Any]
    for site in dict.fromkeys(site for own in changes.values() for site in own):
        own = {n: found[site] for n, found in changes.items() if site in found}
        w = np.array([weights[n] for n in own])
        if (whole := _whole(base, adapted, site, own, w)) is not None:
            at[site], arrays[f"{site}:{whole[1]}"] = whole[0], to_device(np.asarray(whole[2], adapted.model.dtype))
            continue
        A, B = _decomposed(base, site, own, w, how, rng) if how.decomposes else _factored(site, own, w, how, rng)
        made = dict(A=A, B=B)
        if (c := _shifted(base, site, own, w)) is not None:
            made["c"] = c
        at[site] = low_rank_method()(r=len(A), alpha=float(len(A)), lora_bias=c is not None)  # type: ignore[call-arg]
        arrays |= {f"{site}:{k}": to_device(np.ascontiguousarray(a, adapted.model.dtype)) for k, a in made.items()}
    first = next((m for m in at.values() if not is_whole(m)), next(iter(at.values())))
    options = {k: v for n in weights for k, v in adapted.adapter(n).options.items()} | _tied(adapted, weights, at)
    adapter = Adapter(name, first, at, arrays, frozenset(arrays), options)
    return Adapted(adapted.model, (adapter,))


def low_rank_method() -> type[Method]:
    """The method of the package of which W' = W + s B A and b' = b + s c are all: what adapters are made into when they are combined."""
    load_methods()
    trio = {"A": ("r", "in"), "B": ("out", "r"), "c": ("out",)}
    for cls in METHODS.values():
        arrays = {k: a.shape for k, a in declared(cls).arrays.items() if a.trained}
        if cls.__mro__[1] is Method and cls.__module__.startswith(f"{__package__}.") and arrays == trio:
            return cls
    raise LookupError("no method trains A (r, in), B (out, r) and c (out) alone")


def _tied(adapted: Adapted, names: Iterable[str], at: Mapping[str, Method]) -> dict[str, Any]:
    """Whether a tied head follows the sum at its table. Raises `Bad` where it follows some of the adapters alone."""
    table = next((t for t in tied(adapted.model.arch).values() if t in at), None)
    if table is None:
        return {}
    follows = {a.name: a.tied or ties(a.at[table]) for a in map(adapted.adapter, names) if table in a.at}
    if len(set(follows.values())) > 1:
        one, other = (next(n for n in follows if follows[n] is way) for way in (True, False))
        raise Bad(f"combine: the head that is tied to {table} follows the change of {one!r} and not that of {other!r}")
    return dict(tied=any(follows.values()) and not is_whole(at[table]))


def low_rank(adapted: Adapted, name: str = "default", rank: int | float | None = None) -> Adapted:
    """One adapter as a plain low-rank one on the same base: exactly where its change is a sum of B A and no rank is given.

    So one that began as a part of the base becomes one of twice the rank, on the base that holds this part still. Any other change of a weight is
    decomposed; `rank` is an integer or a share, as in `Combination`. Raises `Bad` as `combine`.
    """
    return combine(adapted, {name: 1.0}, Combination("cat" if rank is None else "svd", rank), name=name)


def without_intruders(
    adapted: Adapted, name: str = "default", *, first: int = 10, below: float = 0.5, keep: float = 0.0
) -> Adapted:
    """A low-rank adapter of the same ranks in which intruder dimensions of W' = W + ΔW are scaled by `keep`.

    An intruder is a left singular vector u_i of W', one of the `first`, whose cosine with every one of W is less than `below`:

        ΔW + (keep − 1) Σ σ_i u_i v_iᵀ over the intruders, then the nearest of the adapter's rank

    Source: Shuttleworth et al. 2024, https://arxiv.org/abs/2410.21228. Raises `Bad` as `combine`, and where a change is no B A.
    """
    base, adapter = adapted.using().run().base, adapted.adapter(name)
    plain = low_rank(adapted, name)
    arrays = dict(plain.adapters[0].arrays)
    for site, change in _changes(adapter).items():
        W, D = _weight(base, site), _delta(base, site, change)
        U0, _, _ = singular(site, W)
        U, S, Vt = singular(site, W + D)
        foreign = np.abs(U[:, :first].T @ U0).max(axis=1) < below
        D = D + (keep - 1) * (U[:, :first] * (S[:first] * foreign)) @ Vt[:first]
        A, B = _nearest(site, D, _rank_of(site, name, change))
        kind = arrays[f"{site}:A"].dtype
        arrays |= {f"{site}:A": to_device(A.astype(kind)), f"{site}:B": to_device(B.astype(kind))}
    return Adapted(adapted.model, (dataclasses.replace(plain.adapters[0], arrays=arrays),))


def by_row(
    adapted: Adapted, names: Sequence[str | None], batch: Batch, compute: Callable[[Adapted, Batch], Any]
) -> Any:
    """`compute(adapted, batch)` with another adapter in use for every row, the base alone for None; an array with a row for each.

    Rows of one adapter are computed together, each as if it were alone: `by_row(adapted, ["a", "b", None], batch, Adapted.logits)`.
    Raises `Bad` for a name that is not attached, and where there is not one for every row.
    """
    if len(names) != batch.rows:
        raise Bad(f"by_row: expected a name or None for each of {batch.rows} rows, found {len(names)}")
    found: dict[int, Any] = {}
    for name in dict.fromkeys(names):
        own = [i for i, n in enumerate(names) if n == name]
        rows = compute(adapted.using(*([] if name is None else [name])), batch.part(own))
        found |= dict(zip(own, to_host(rows), strict=True))
    return to_device(np.stack([found[i] for i in range(len(names))]))


# --- changes of an adapter --------------------------------------------------------------------------------------------


def _changes(adapter: Adapter) -> dict[str, Change]:
    """What it changes, by site. Raises `Bad` for what is no change of a matrix."""
    arrays = adapter.grouped()
    common, out = arrays.get("", {}), {}
    for site, method in adapter.at.items():
        if not is_weight(method) or not (site.endswith(".weight") or is_whole(method)):
            raise Bad(
                f"combine: adapter {adapter.name!r} ({method.name}) changes {site}, which is not by a matrix of its size"
            )
        shared = common if type(method) is type(adapter.method) else {}
        out[site] = change_of(method, {**shared, **arrays.get(site, {})})
    return out


def _whole(
    base: Lookup, adapted: Adapted, site: str, own: Mapping[str, Change], w: Any
) -> tuple[Method, str, Any] | None:
    """The method, the name and the array of what is trained whole: W + Σ w (W'_k − W); None where nothing is."""
    methods = [adapted.adapter(n).at[site] for n in own]
    if not any(map(is_whole, methods)):
        return None
    if not all(map(is_whole, methods)):
        raise Bad(f"combine: {site} is trained whole by one adapter, and changed by another")
    W = np.asarray(to_host(base(site)))
    total = W + sum(
        k * (np.asarray(to_host(change.onto(to_device(W)))) - W) for k, change in zip(w, own.values(), strict=True)
    )
    return methods[0], next(iter(adapted.adapter(next(iter(own))).grouped()[site])), total


def _weight(base: Lookup, site: str) -> np.ndarray:
    W = np.asarray(to_host(base(site)))
    if W.ndim != 2:
        raise Bad(f"combine: expected matrices, found {site} of shape {W.shape}")
    return W


def _delta(base: Lookup, site: str, change: Change) -> np.ndarray:
    """ΔW of an adapter, measured from the base."""
    W = _weight(base, site)
    return np.asarray(to_host(change.onto(to_device(W)))) - W


def _shifted(base: Lookup, site: str, own: Mapping[str, Change], w: Any) -> Any:
    """Σ w Δb, None where no bias is changed."""
    b = base(site.removesuffix("weight") + "bias")
    total: Any = None
    for weight, change in zip(w, own.values(), strict=True):
        if (new := change.bias(b)) is not b:
            by = weight * np.asarray(to_host(new if b is None else new - b))
            total = by if total is None else total + by
    return total


def _terms(site: str, name: str, change: Change) -> tuple[Any, ...]:
    if not isinstance(change, Sum) or not change.terms:
        raise Bad(
            f"combine: the change of adapter {name!r} at {site} is no product of two factors; the kinds with svd take it"
        )
    return change.terms


def _rank_of(site: str, name: str, change: Change) -> int:
    return sum(t.B.shape[1] for t in _terms(site, name, change))


# --- sums -------------------------------------------------------------------------------------------------------------


def _factored(site: str, own: Mapping[str, Change], w: Any, how: Combination, rng: Any) -> tuple[Any, Any]:
    """A and B, of the factors."""
    terms = [(weight, t) for weight, (n, change) in zip(w, own.items()) for t in _terms(site, n, change)]
    c = np.array([weight * t.s for weight, t in terms])
    B = [np.asarray(to_host(t.B)) for _, t in terms]
    A = [np.asarray(to_host(t.over(t.A.shape[1]))) for _, t in terms]
    if how.kind == "cat":
        return np.concatenate(A), np.concatenate([ck * b for ck, b in zip(c, B)], axis=1)
    if len({len(a) for a in A}) > 1 or len(terms) > len(own):
        ranks = ", ".join(f"{n!r} {_rank_of(site, n, change)}" for n, change in own.items())
        raise Bad(
            f"combine: {how.kind} adds up factors of one rank, found {ranks} at {site}; cat and the kinds with svd take any"
        )
    root = np.sqrt(np.abs(c))
    return _mixed(A, np.sign(c) * root, how, rng), _mixed(B, root, how, rng)


def _decomposed(
    base: Lookup, site: str, own: Mapping[str, Change], w: Any, how: Combination, rng: Any
) -> tuple[Any, Any]:
    """A and B, of the changes."""
    rank = how.rank or max(_rank_of(site, n, change) for n, change in own.items())
    A, B = _nearest(site, _mixed([_delta(base, site, change) for change in own.values()], w, how, rng), rank)
    if how.clamp is not None:
        most = np.quantile(np.concatenate([B.ravel(), A.ravel()]), how.clamp)
        A, B = np.clip(A, -most, most), np.clip(B, -most, most)
    return A, B


def _nearest(site: str, D: np.ndarray, rank: int | float) -> tuple[np.ndarray, np.ndarray]:
    """A and B: the r largest singular triples, σ with the left ones; r at most the smaller side, at least 1."""
    U, S, Vt = singular(site, D)
    if isinstance(rank, float):
        there = np.where(max(D.shape) * np.finfo(S.dtype).eps * S[0] < S, S, 0)  # what rounding made is no direction
        kept = np.cumsum(there**2)
        rank = int((kept < rank * kept[-1]).sum()) + 1
    r = min(rank, len(S))
    return Vt[:r], U[:, :r] * S[:r]


def _mixed(terms: Sequence[np.ndarray], w: np.ndarray, how: Combination, rng: Any) -> np.ndarray:
    """Σ w_k T_k, of terms that are thinned and voted on as the kind says."""
    kind, d = how.kind.removesuffix("_svd"), how.density
    if kind in ("magnitude_prune", "ties"):
        terms = [largest(t, d) for t in terms]
    elif kind.startswith("dare"):
        terms = [dropped(t, d, rng) for t in terms]
    if kind.endswith("ties"):
        return elected(terms, w, how.votes)
    return sum(weight * t for weight, t in zip(w, terms, strict=True))  # type: ignore[return-value]


def largest(a: np.ndarray, density: Any) -> np.ndarray:
    """a with its ⌊density · size⌋ largest numbers, without regard to sign, and 0 elsewhere; of equals the first are kept."""
    keep = np.argsort(-np.abs(a), axis=None, kind="stable")[: int(density * a.size)]
    out = np.zeros_like(a)
    out.flat[keep] = a.flat[keep]
    return out


def dropped(a: np.ndarray, density: Any, rng: np.random.Generator) -> np.ndarray:
    """a with each number kept with probability `density`, and divided by it."""
    return a * (rng.random(a.shape) < density) / density


def elected(terms: Sequence[np.ndarray], w: np.ndarray, votes: str) -> np.ndarray:
    """The mean of w_k T_k over those k whose element has the elected sign, 0 where none has."""
    T = np.stack(terms)
    sign = np.where((np.sign(T) if votes == "frequency" else T).sum(axis=0) >= 0, 1, -1)
    agree = np.sign(T) == sign
    return np.einsum("k,k...,k...->...", w, T, agree) / np.maximum(agree.sum(axis=0), 1)
