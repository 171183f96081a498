"""How arrays start: what a declaration says after `start=`. What is drawn comes from the adapter's generator, on the host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minipeft.engine.factors import finite, leading, principal
from minipeft.expressions import plainly
from minipeft.torch_random import permutation

if TYPE_CHECKING:
    from minipeft.drawing import Facts


@dataclass(frozen=True)
class Start:
    """How an array begins: `draw(facts, shape, name)` makes it, `says` tells it. `needs` is what is measured before."""

    says: str
    draw: Callable[[Facts, tuple[int, ...], str], Any]
    needs: tuple[str, ...] = ()
    together: Callable[..., Any] | None = None  # decides for all sites at once
    chosen: tuple[str, Start, Start] | None = None  # the condition, and the starts where it holds and where not

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


def normal(deviation: float = 1.0) -> Start:
    """N(0, deviation²)."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        drawn = facts.rng.standard_normal(shape)
        return drawn if deviation == 1.0 else deviation * drawn

    return Start("N(0, 1)" if deviation == 1.0 else f"N(0, {deviation:g}²)", draw)


def uniform(fan: str = "", bound: float | None = None, gain: float = 1.0) -> Start:
    """U(±gain/√fan), `fan` being an expression; or U(±bound)."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        most = bound if bound is not None else gain * float(facts.value(fan)) ** -0.5
        return facts.rng.uniform(-most, most, shape)

    told = (
        f"±{bound:g}"
        if bound is not None
        else f"±{gain:.3g}/√{fan if re.fullmatch(r'[A-Za-z_]+', fan) else f'({fan})'}"
    )
    return Start(f"U({told})", draw)


def xavier(fan_in: str, fan_out: str) -> Start:
    """N(0, 2/(fan_in + fan_out)), the fans being expressions (Glorot & Bengio 2010)."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return (2.0 / (facts.value(fan_in) + facts.value(fan_out))) ** 0.5 * facts.rng.standard_normal(shape)

    return Start(f"N(0, 2/({fan_in} + {fan_out}))", draw)


def orthonormal() -> Start:
    """Orthonormal rows, uniform among such."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        Q, U = np.linalg.qr(facts.rng.standard_normal(shape[::-1]))
        return (Q * np.sign(np.diag(U))).T

    return Start("orthonormal rows, uniform among such", draw)


def either(condition: str, one: Start, other: Start = ZERO) -> Start:
    """The one where a condition holds, else the other."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return (one if facts.value(condition) else other).draw(facts, shape, name)

    says = f"{one.says} with {plainly(condition)}, else {other.says}"
    return Start(says, draw, one.needs + other.needs, chosen=(condition, one, other))


def zero_if(condition: str, start: Start) -> Start:
    """0 where a condition holds, else the start, which is drawn in either case: what is drawn after it stays the same."""

    def draw(facts: Facts, shape: tuple[int, ...], name: str) -> Any:
        return start.draw(facts, shape, name) * (not facts.value(condition))

    return Start(f"{start.says}; 0 with {plainly(condition)}", draw, start.needs)


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
    return dict(A=method.scale**-0.5 * A, B=method.scale**-0.5 * B)


def _qr_part(method: Any, facts: Facts) -> dict[str, Any]:
    A, B = leading(finite(f"{method.name}: {facts['site']}", facts.W), method.r)
    return dict(A=A, B=B)


SVD_PART = found(_svd_part, "√(Σ_r/s) V_rᵀ or U_r √(Σ_r/s), of W's first r triples")  # s B A is that part of W = U Σ Vᵀ
QR_PART = found(_qr_part, "R_r or Q_r, W = Q R")  # the first r rows of R, and columns of Q


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


def words(n: str) -> Start:
    """n rows of the token table, uniformly chosen."""

    def draw(method: Any, facts: Facts) -> Any:
        table = facts.param("embed.tokens.weight")
        return table[facts.rng.integers(table.shape[0], size=facts.value(n))]

    return found(draw, "rows of the token table, uniformly chosen")
