"""How arrays start: what a declaration says after `start=`. What is drawn comes from the adapter's generator, on the host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minipeft.engine.backend import to_host
from minipeft.engine.factors import finite, leading, principal, sketched
from minipeft.errors import Bad
from minipeft.expressions import plainly
from minipeft.shown import described
from minipeft.torch_random import permutation

if TYPE_CHECKING:
    from minipeft.drawing import Facts


@dataclass(frozen=True)
class Start:
    """How an array begins: `draw(facts, shape, name)` makes it, `says` tells it. `needs` is what is measured before."""

    says: str
    draw: Callable[[Facts, tuple[int, ...], str], Any] = field(repr=False)
    needs: tuple[str, ...] = ()
    together: Callable[..., Any] | None = field(default=None, repr=False)  # decides for all sites at once
    chosen: tuple[str, Start, Start] | None = None  # the condition, and the starts where it holds and where not
    law: Callable[[Facts], tuple[str, float] | None] = field(default=lambda facts: None, repr=False)
    # by which numbers are drawn one by one: ("uniform", b) on ±b, ("normal", its deviation); None for what is not so

    __repr__ = described

    @property
    def is_zero(self) -> bool:
        """Whether every number is 0."""
        return self.says == "0"


def fill(number: float) -> Start:
    """Every element this number."""
    return Start(f"{number:g}", lambda facts, shape, name: np.full(shape, float(number)))


ZERO = fill(0)


def setting(name: str) -> Start:
    """Every element what this setting says."""
    return Start(name, lambda facts, shape, _: np.full(shape, float(facts[name])))


def inverse(n: str) -> Start:
    """Every element 1/n, n being an expression."""
    return Start(f"1/{_factor(n)}", lambda facts, shape, _: np.full(shape, 1 / facts.value(n)))


def distinct(n: str) -> Start:
    """Along the last axis distinct whole numbers below n, an expression, uniformly chosen."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return np.argsort(facts.rng.random((*shape[:-1], facts.value(n))), axis=-1)[..., : shape[-1]]

    return Start(f"distinct, below {n}", draw)


def normal(deviation: float = 1.0, over: str = "") -> Start:
    """N(0, deviation²), or N(0, (deviation/over)²) with an expression `over`."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        drawn = facts.rng.standard_normal(shape)
        size = wide(facts)
        return drawn if size == 1.0 else size * drawn

    def wide(facts: Facts) -> float:
        return deviation / facts.value(over) if over else deviation

    told = f"({deviation:g}/{over})²" if over else "1" if deviation == 1.0 else f"{deviation:g}²"
    return Start(f"N(0, {told})", draw, law=lambda facts: ("normal", wide(facts)))


def uniform(fan: str = "", bound: float | None = None, gain: float = 1.0) -> Start:
    """U(±gain/√fan), `fan` being an expression; or U(±bound)."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return facts.rng.uniform(-most(facts), most(facts), shape)

    def most(facts: Facts) -> float:
        return bound if bound is not None else gain * float(facts.value(fan)) ** -0.5

    told = f"±{bound:g}" if bound is not None else f"±{gain:.3g}/√{_factor(fan)}"
    return Start(f"U({told})", draw, law=lambda facts: ("uniform", most(facts)))


def _factor(expression: str) -> str:
    """In brackets, unless it is a name."""
    return expression if re.fullmatch(r"[A-Za-z_]+", expression) else f"({expression})"


def xavier(fan_in: str, fan_out: str) -> Start:
    """N(0, 2/(fan_in + fan_out)), the fans being expressions (Glorot & Bengio 2010)."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return wide(facts) * facts.rng.standard_normal(shape)

    def wide(facts: Facts) -> float:
        return (2.0 / (facts.value(fan_in) + facts.value(fan_out))) ** 0.5

    return Start(f"N(0, 2/({fan_in} + {fan_out}))", draw, law=lambda facts: ("normal", wide(facts)))


def orthonormal() -> Start:
    """Orthonormal rows, uniform among such."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        Q, U = np.linalg.qr(facts.rng.standard_normal(shape[::-1]))
        return (Q * np.sign(np.diag(U))).T

    return Start("orthonormal rows, uniform among such", draw)


def either(condition: str, one: Start, other: Start = ZERO) -> Start:
    """The one where a condition holds, else the other."""

    def meant(facts: Facts) -> Start:
        return one if facts.value(condition) else other

    says = f"{one.says} with {plainly(condition)}, else {other.says}"
    return Start(
        says, lambda facts, *rest: meant(facts).draw(facts, *rest), one.needs + other.needs, chosen=(condition, one, other),
        law=lambda facts: meant(facts).law(facts),
    )  # fmt: skip


def by(setting: str, usual: Start, **others: Start) -> Start:
    """The start that a setting names, `usual` for words that are not among the others."""

    def meant(facts: Facts) -> Start:
        return others.get(facts[setting], usual)

    told = "".join(f"; {start.says} with {plainly(f'{setting} == {word!r}')}" for word, start in others.items())
    return Start(
        usual.says + told, lambda facts, *rest: meant(facts).draw(facts, *rest),
        tuple(n for s in (usual, *others.values()) for n in s.needs), law=lambda facts: meant(facts).law(facts),
    )  # fmt: skip


def zero_if(condition: str, start: Start) -> Start:
    """0 where a condition holds, else the start, which is drawn in either case: what is drawn after it stays the same."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return start.draw(facts, shape, name) * (not facts.value(condition))

    law = lambda facts: None if facts.value(condition) else start.law(facts)
    return Start(f"{start.says}; 0 with {plainly(condition)}", draw, start.needs, law=law)


def same(name: str) -> Start:
    """As an array declared before begins."""
    return Start(name, lambda facts, shape, _: facts.drawn[name])


def found(f: Callable[..., Any], says: str, needs: tuple[str, ...] = ()) -> Start:
    """What `f(method, facts)` returns: an array, or {name: array} for all that start by it; called once at a site."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        made = facts.once(f)
        return made[name] if isinstance(made, dict) else made

    return Start(says, draw, needs)


def found_together(f: Callable[..., Any], says: str, needs: tuple[str, ...] = ()) -> Start:
    """What `f(method, [facts of every site])` returns: {site: {name: array, or the value of a setting there}}.

    A site that it leaves out is given up.
    """
    return Start(says, lambda facts, shape, name: facts.decided[name], needs, together=f)


# --- from the base, or by a seed --------------------------------------------------------------------------------------


def _svd_part(method: Any, facts: Facts) -> dict[str, Any]:
    A, B = principal(finite(f"{method.name}: {facts['site']}", facts.W), method.r)
    share = getattr(method, "scale", 1.0) ** -0.5
    return dict(A=share * A, B=share * B)


def _fast_part(method: Any, facts: Facts) -> dict[str, Any]:
    A, B = sketched(finite(f"{method.name}: {facts['site']}", facts.W), method.r, method.niter, facts.rng)
    return dict(A=method.scale**-0.5 * A, B=method.scale**-0.5 * B)


def _qr_part(method: Any, facts: Facts) -> dict[str, Any]:
    A, B = leading(finite(f"{method.name}: {facts['site']}", facts.W), method.r)
    return dict(A=A, B=B)


def _opposed(method: Any, facts: Facts) -> dict[str, Any]:
    r, normal = method.r, facts.rng.standard_normal
    Q, _ = np.linalg.qr(normal((r, r)))
    A = normal((facts["in"], (r + 1) // 2)) @ Q[::2]
    return dict(A=A.T / 10, B=normal((r // 2, facts["out"])).T @ Q[1::2] / 10)


SVD_PART = found(_svd_part, "√(Σ_r/s) V_rᵀ or U_r √(Σ_r/s), of W's first r triples")  # s B A is that part of W = U Σ Vᵀ
FAST_PART = found(_fast_part, "nearly those, from random directions")  # by `niter` rounds of subspace iteration
QR_PART = found(_qr_part, "R_r or Q_r, W = Q R")  # the first r rows of R, and columns of Q
OPPOSED = found(_opposed, "normal, A's rows and B's columns in opposite halves of a basis")  # neither is 0, but B A is
DRAWN = by("start", uniform("in"), gaussian=normal(over="r"), orthogonal=OPPOSED)
DOWN = either("embedding", normal(), DRAWN)  # the factor A, as a setting `start` has it on a linear
UP = either("not embedding", by("start", ZERO, orthogonal=OPPOSED))  # and B


def norms(axis: int) -> Start:
    """‖W‖ along an axis: 1 of every output of a linear, 0 of every dimension of a table."""
    what = "‖W‖, row by row" if axis else "‖E‖, column by column"
    return found(lambda method, facts: np.sqrt((facts.W * facts.W).sum(axis=axis)), what)


def places(n: str, in_order: bool = False) -> Start:
    """`rows` and `cols` of n distinct elements of W, the first in an order that the setting `seed` fixes; sorted `in_order`."""

    def draw(method: Any, facts: Facts) -> dict[str, Any]:
        chosen = permutation(method.seed, facts["size"])[: facts.value(n)]
        rows, cols = np.divmod(np.sort(chosen) if in_order else chosen, facts["in"])
        return dict(rows=rows, cols=cols)

    return found(draw, f"distinct elements{', in row-major order' if in_order else ''}, drawn from `seed`")


def extremes(n: str, top: str) -> Start:
    """Places in W, counted row by row, of the n largest |W|, the largest first; of the smallest where `top` does not hold."""

    def draw(method: Any, facts: Facts) -> Any:
        size = abs(facts.W.reshape(-1))
        return np.argsort(-size if facts.value(top) else size, kind="stable")[: facts.value(n)]

    return found(draw, f"places of the {n} largest |W|, row by row; of the smallest without {plainly(top)}")


def words(n: str, text: str = "") -> Start:
    """n rows of the token table: those of the ids in the setting `text` over and over, or, without any, uniformly chosen."""

    def draw(method: Any, facts: Facts) -> Any:
        table, many = facts.param("embed.tokens.weight"), facts.value(n)
        ids = facts[text] if text else ()
        if not ids:
            return table[facts.rng.integers(table.shape[0], size=many)]
        if wrong := [i for i in ids if not 0 <= i < len(table)]:
            raise Bad(f"{method.name}: {text} must lie in 0 … {len(table) - 1}, found {wrong[0]}")
        return table[np.resize(ids, many)]

    return found(
        draw, f"rows of the token table, {f'those of `{text}` over and over, or ' if text else ''}uniformly chosen"
    )


def memory(text: str, first: str = "0") -> Start:
    """Keys and values that the base's attention blocks have of the ids in the setting `text`: a row for every token from `first` on,

    in it those of one site after the other, keys before values; 0 where there is room for more sites.
    """

    def whole(method: Any, facts: Facts) -> Any:
        from minipeft.adapted import Adapted
        from minipeft.model.base import Model
        from minipeft.model.batch import batch
        from minipeft.model.cache import Growing

        run = Adapted(Model(facts.site.arch, facts.site.params)).run(cache=Growing())
        run.forward(batch(input_ids=[facts[text]]))
        pairs = [to_host(x)[0] for site in facts.sites for x in run.cache.held[site.name]]  # (G, s, e) each
        return np.concatenate([x.swapaxes(0, 1).reshape(len(facts[text]), -1) for x in pairs], axis=1)

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        out, found = np.zeros(shape), facts.once(whole)[facts.value(first) :][: shape[0]]
        out[:, : found.shape[1]] = found
        return out

    return Start(f"the base's keys and values of `{text}`", draw)
