"""What a method's declarations come to at a site: letters, shapes, and the arrays as they start."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.arrays import Array, Each, Fact, Network, Parts, declared, held_for, hold, settings_of
from minipeft.engine.backend import to_host
from minipeft.engine.weight import widened
from minipeft.errors import Bad, near
from minipeft.expressions import evaluate, names
from minipeft.method import Method, Site
from minipeft.model.parts import kind_of, shapes
from minipeft.starts import ZERO, fill, normal


class Facts:
    """What a start may know: the method, the site, the generator, letters by `facts["r"]`, and what was drawn before."""

    def __init__(
        self, method: Method, site: Site, rng: Any = None, sites: Sequence[Site] = (), index: int = 0,
        at: Mapping[str, Method] | None = None,
    ) -> None:  # fmt: skip
        self.method, self.site, self.rng, self.index = method, site, rng, index
        self.sites = tuple(sites) or (site,)
        self.at = at or {s.name: method for s in self.sites}
        self.drawn: dict[str, Any] = {}
        self.decided: Mapping[str, Any] = {}
        self.known = symbols(method, site, self.sites)
        self._made: dict[Any, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.known:
            raise Bad(f"{self.method.name}: a start asks for {name!r}, which it has not{near(name, self.known)}")
        return self.known[name]

    def value(self, expression: str) -> Any:
        """The value of an expression here."""
        return evaluate(expression, self.known)

    def with_letter(self, **letters: Any) -> Facts:
        """The same facts, with more letters."""
        more = copy.copy(self)
        more.known = self.known | letters
        return more

    def param(self, name: str) -> np.ndarray:
        """A parameter of the base on the host."""
        return to_host(widened(self.site.params[name]))

    def once(self, f: Callable[..., Any]) -> Any:
        """f(method, self), computed the first time it is asked for."""
        if f not in self._made:
            self._made[f] = f(self.method, self)
        return self._made[f]

    @property
    def W(self) -> np.ndarray:
        """The base's parameter on the host: the same bits on every device."""
        return to_host(widened(self.site.W))

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """W at all sites of the adapter, by their names."""
        return {s.name: to_host(widened(s.W)) for s in self.sites}


def symbols(method: Method, site: Site, sites: Sequence[Site] = ()) -> dict[str, Any]:
    """What the letters of a declaration stand for at a site: settings, the site's shape, facts of the model."""
    arch, shape = site.arch, tuple(site.shape)
    known: dict[str, Any] = {}
    if arch is not None:
        known = dict(L=arch.layers, H=arch.heads, G=arch.kv, e=arch.dh, ff=arch.ff, d=arch.d, V=arch.vocab)
        known |= dict(d_model=arch.d, encoder_layers=arch.encoder_layers)
    known["width"], known["size"], known["site"] = shape[-1] if shape else 1, math.prod(shape), site.name
    known["pixels"] = site.pixels
    if site.kind == "activation":
        known["d"] = shape[-1] if shape else 1
    elif len(shape) == 2:
        known["out"], known["in"] = shape
        if site.kind == "embedding":
            known["V"], known["d"] = shape
    elif shape:
        known["out"] = shape[0]
    known |= {k: site.kind == k for k in ("linear", "embedding", "norm", "bias", "table", "activation")}
    weights = [s.shape for s in sites or (site,) if len(s.shape)]
    known |= dict(sites=len(sites) or 1, total=sum(map(math.prod, weights)))
    if weights:
        known |= dict(out_max=max(s[0] for s in weights), in_max=max(s[-1] for s in weights))
    known |= settings_of(method)
    for name, it in declared(type(method)).letters.items():
        known[name] = it.ask(method, site) if isinstance(it, Fact) else _whole(evaluate(it.expression, known))
    return known


def _whole(x: Any) -> Any:
    return int(x) if isinstance(x, float) else x


@dataclass(frozen=True)
class There:
    """An array that is there: its name, its shape at the site, its declaration, and whose it is."""

    name: str
    shape: tuple[int, ...]
    array: Array
    facts: Facts = field(repr=False)
    trained: bool
    own: str  # its name in the declaration
    part: int | None = None  # the number of the method whose it is, where that may leave the site alone


def there(facts: Facts, shared: bool = False) -> Iterator[There]:
    """The arrays that a method has at a site, or those that its sites share; in the order in which they are drawn."""
    for own, it in declared(type(facts.method)).order:
        if isinstance(it, Parts):
            yield from _of_parts(facts, it) if not shared else ()
        elif isinstance(it, Network):
            yield from _of_network(facts, it) if shared else ()
        elif isinstance(it, Each):
            if it.arrays[0][1].shared == shared:
                for n in range(int(facts.value(it.how_many))):
                    inner = facts.with_letter(n=n)
                    its = ((name, a) for name, a in it.arrays if not a.when or inner.value(a.when))
                    yield from (_one(inner, f"{name}{n}", name, array) for name, array in its)
        elif it.shared == shared and (not it.when or facts.value(it.when)) and _holds(facts, own, it):
            yield _one(facts, own, own, it)


def _holds(facts: Facts, name: str, array: Array) -> bool:
    """Whether an array is held at this site, and not at another that shares it. Raises `Bad` where the two differ in its shape."""
    here = facts.site.name
    if array.shared_by is None or (holder := held_for(facts.method, facts.at)[name][here]) == here:
        return True
    there = next(s for s in facts.sites if s.name == holder)
    want = _one(Facts(facts.at[holder], there, sites=facts.sites, at=facts.at), name, name, array).shape
    if (own := _one(facts, name, name, array).shape) != want:
        raise Bad(
            f"{facts.method.name}: {here} shares {name} with {holder}, where it is {want}; here it would be {own}"
        )
    return False


def _one(facts: Facts, name: str, own: str, array: Array) -> There:
    whole = array.shape == (...,)
    shape = tuple(facts.site.shape) if whole else tuple(int(facts.value(str(s))) for s in array.shape)
    return There(name, shape, array, facts, array.trained, own)


def _of_parts(facts: Facts, part: Parts) -> Iterator[There]:
    given = given_to(facts.method)
    for k, method in enumerate(getattr(facts.method, part.setting)):
        inner = Facts(method, facts.site, facts.rng, facts.sites, facts.index)
        inner.known = facts.known | inner.known
        starts = dict(part.starts)
        for it in there(inner):
            name = f"{it.name}{k}"
            if given and name not in given.get(facts.site.name, {}):
                continue  # this one leaves the site alone
            array = dataclasses.replace(it.array, start=starts.get(it.name, it.array.start))
            told = inner.with_letter(**settings_of(facts.method)) if it.name in starts else inner  # whose start it is
            trained = bool(part.trained) and bool(facts.value(part.trained))
            yield There(name, it.shape, array, told, trained, it.own, None if given or part.same_sites else k)


BEGINS = {"norm": fill(1), "bias": ZERO}  # parameters of a network; all others are drawn
DRAWN = normal(0.02)


def _of_network(facts: Facts, network: Network) -> Iterator[There]:
    try:
        arch, named = network.of(facts.method, facts.site)
    except Bad as why:  # of an architecture, which knows of no method
        raise type(why)(f"{facts.method.name}: {why}") from None
    every = shapes(arch)
    for name, param in named.items():
        start = BEGINS.get(kind_of(param, every[param]), DRAWN)
        yield There(name, every[param], Array(every[param], True, start, shared=True), facts, True, name)


def given_to(method: Method) -> Mapping[str, Mapping[str, Any]]:
    """Arrays of trained adapters that a method is built over, or starts from, {site: {name: array}}; none for others."""
    return getattr(method, "given", None) or {}


def expected(method: Method, at: Mapping[str, Method], every: Mapping[str, Site]) -> Iterator[tuple[str, There]]:
    """("site:name", array) of all that an adapter has, whose sites have these methods. Nothing is drawn.

    Raises `Bad` for what a method requires and is not so.
    """
    alike = {s: m for s, m in at.items() if type(m) is type(method)}
    own = [every[s] for s in alike]
    shared = there(Facts(method, own[0], sites=own), shared=True) if own else ()
    yield from ((f":{it.name}", it) for it in shared)
    for i, (name, m) in enumerate(at.items()):
        site = every[name]
        facts = (
            Facts(m, site, sites=own, index=i, at=alike) if name in alike else Facts(m, site, sites=(site,), index=i)
        )
        demand(m, facts)
        yield from ((f"{name}:{it.name}", it) for it in there(facts))


def wrong_in(it: There, a: np.ndarray, beside: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the numbers of an array that a file brings, "" if nothing; `beside` are its site's arrays by name."""
    if not it.array.below:
        if a.dtype.kind != "f":
            return f"expected floating-point numbers, found {a.dtype}"
        return "" if np.isfinite(a).all() else "has NaN or infinite values"
    most = int(it.facts.value(it.array.below)) - 1
    if a.dtype.kind not in "iu":
        return f"expected whole numbers from 0 to {most}, found {a.dtype}"
    if (out := (a < 0) | (a > most)).any():
        return f"expected whole numbers from 0 to {most}, found {a[out][0]}"
    if other := it.array.distinct_with:
        alone = other == it.own
        place = a.astype(np.int64) if alone else beside[other].astype(np.int64) * (most + 1) + a.astype(np.int64)
        found, times = np.unique(place, return_counts=True)
        if (twice := found[times > 1]).size and alone:
            return f"it names {twice[0]} twice"
        if twice.size:
            return f"with {other} it names {tuple(map(int, divmod(twice[0], most + 1)))} twice"
    return ""


def demand(method: Method, facts: Facts) -> None:
    """Raise `Bad` for what a method requires of a site and is not so."""
    for rule in declared(type(method)).required:
        if not (names(rule.condition) | names(rule.when or "True")) <= settings_of(method).keys():
            hold(method, rule, facts.known, f" at {facts.site.name}")


def draw(facts: Facts, shared: bool = False) -> dict[str, tuple[Any, bool]]:
    """{name: (array, whether it is trained)} as a method begins at a site, or what its sites share.

    Raises `Bad` for what the method requires at the site and is not so, or where a start has another shape than declared.
    """
    if not shared:
        demand(facts.method, facts)
    found: dict[str, tuple[Any, bool]] = {}
    given = given_to(facts.method).get("" if shared else facts.site.name, {})
    every = list(there(facts, shared))
    for it in sorted(every, key=lambda it: it.array.late):
        if it.name in given:
            a = given[it.name]
        else:
            a = np.asarray(it.array.start.draw(it.facts, it.shape, it.own))
        if tuple(a.shape) != it.shape:
            raise Bad(
                f"{facts.method.name}: {it.name} is declared as {it.shape} at {facts.site.name}, its start is {tuple(a.shape)}"
            )
        it.facts.drawn[it.own] = a
        facts.drawn[it.name] = to_host(a)  # a part's, for what is made of the parts
        found[it.name] = (a, it.trained)
    return {it.name: found[it.name] for it in every}


def draw_all(
    method: Method, sites: Sequence[Site], rng: Any, at: Mapping[str, Method] | None = None
) -> dict[str, tuple[Method, dict[str, tuple[Any, bool]]]]:
    """{site: (the method as it stands there, its arrays)}; a site that a start gives up is left out.

    `at` has the method at each site, where its settings differ; it is drawn at all sites of one setting, then at those of the next.
    """
    alike: dict[Method, list[Site]] = {}
    for s in sites:
        alike.setdefault((at or {}).get(s.name, method), []).append(s)
    number = {s.name: i for i, s in enumerate(sites)}
    every = {s.name: Facts(m, s, rng, tuple(sites), number[s.name], at) for m, where in alike.items() for s in where}
    deciding = {a.start.together for a in declared(type(method)).arrays.values() if a.start.together}
    decided: dict[str, dict[str, Any]] = {s.name: {} for s in sites}
    for f in deciding:
        result = f(method, [every[s.name] for s in sites])
        decided = {name: own | result[name] for name, own in decided.items() if name in result}
    out = {}
    fields = {f.name for f in dataclasses.fields(method)}
    for name, facts in every.items():
        if name not in decided:
            continue
        if own := decided[name]:
            settled = dataclasses.replace(facts.method, **{k: v for k, v in own.items() if k in fields})
            facts = Facts(settled, facts.site, rng, facts.sites, facts.index, at)
            facts.decided = own
        out[name] = (facts.method, draw(facts))
    return out
