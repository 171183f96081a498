"""The arrays that a method brings, declared: symbolic shape, start, trained or stored, and when they exist.

    A = trained("r", "in", start=uniform("in"))
    B = trained("out", "r")                       # starts at 0
    c = trained("out", when="lora_bias")
    m = size("max(1, d / reduction)")             # a letter for shapes

Names in a shape or a condition stand for settings, for what `size` and `fact` declare, and for the site's own: `out` and
`in` of a weight and its `pixels`, the inputs of one channel, `V` and `d` of a table, `d` of an activation, L, H, G, e, ff, `d_model` of the model (`minipeft.drawing.symbols`).
What is drawn is drawn in the order of declaration, from the adapter's generator, on the host.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from minipeft.errors import Bad
from minipeft.expressions import evaluate, names
from minipeft.shown import described, shortly
from minipeft.starts import ZERO, Start

if TYPE_CHECKING:
    from minipeft.method import Method

# --- declarations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """An array that a method brings."""

    shape: tuple[Any, ...]  # expressions, or (...,) for the site's own shape
    trained: bool
    start: Start
    when: str = ""
    shared: bool = False
    rate: str = ""  # a factor on the learning rate
    late: bool = False  # drawn after those that are not
    below: str = ""  # of an index: whole numbers from 0 up to this
    distinct_with: str = ""  # the array that is the index's other half, or itself: no place is named twice
    shared_by: Callable[..., Mapping[str, str]] | None = None  # which sites share it, where not all do

    __repr__ = described

    def __post_init__(self) -> None:
        if not isinstance(self.start, Start):
            raise Bad(
                f"start: expected how an array begins, such as fill(1.0) or normal(0.02), found {shortly(self.start)}"
            )


@dataclass(frozen=True)
class Kept:
    """What a method keeps between steps, in `step.state`."""

    shape: tuple[Any, ...]  # expressions; (): that of a trained array
    of: str = ""  # the trained arrays of this name; "": all
    truth: bool = False

    __repr__ = described


@dataclass(frozen=True)
class Each:
    """Arrays of which there are several: a name is that of its family and a number n, from 0."""

    how_many: str
    arrays: tuple[tuple[str, Array], ...]

    __repr__ = described


@dataclass(frozen=True)
class Parts:
    """The arrays of the methods in a setting, each under its own name and the number of its method."""

    setting: str
    trained: str = ""
    same_sites: bool = False
    starts: tuple[tuple[str, Start], ...] = ()

    __repr__ = described


@dataclass(frozen=True)
class Network:
    """The trained parameters of a network of the base's kind, which sites share: `of(method, site)` is its architecture and

    {name of an array: the parameter that it is}.
    """

    of: Callable[..., tuple[Any, Mapping[str, str]]] = field(repr=False)


@dataclass(frozen=True)
class Size:
    """A letter of shapes."""

    expression: str


@dataclass(frozen=True)
class Fact:
    """What a method asks of a site: `ask(method, site)`."""

    ask: Callable[..., Any] = field(repr=False)


@dataclass(frozen=True)
class Requires:
    """What must hold of the settings, or at a site. `{…}` in the message are expressions."""

    condition: str
    says: str
    when: str = ""
    error: type[Bad] = Bad


@dataclass(frozen=True)
class Held:
    """What is held in place of the base's weight: `make(method, facts)`, None to leave it."""

    make: Callable[..., Any] = field(repr=False)


def trained(
    *shape: Any, start: Start = ZERO, when: str = "", shared: bool = False, rate: str = "", late: bool = False,
    shared_by: Callable[..., Mapping[str, str]] | None = None,
) -> Any:  # fmt: skip
    """An array that is trained. `late`: drawn after the others, wherever it is declared.

    `shared_by(at)`, given the methods by site in the model's order, says {site: the site that holds the array for it}.
    """
    return Array(shape, True, start, when, shared, rate, late, shared_by=shared_by)


def stored(
    *shape: Any, start: Start = ZERO, when: str = "", shared: bool = False, below: str = "", distinct_with: str = "",
    shared_by: Callable[..., Mapping[str, str]] | None = None,
) -> Any:  # fmt: skip
    """An array that belongs to the adapter and is not trained: it has no gradient and no optimiser state.

    An index holds whole numbers from 0 up to what `below` says; together with the index `distinct_with`, which may
    be itself, it names no place twice.
    """
    return Array(shape, False, start, when, shared, below=below, distinct_with=distinct_with, shared_by=shared_by)


def keeps(*shape: Any, of: str = "", truth: bool = False) -> Any:
    """What `after_backward` and `after_step` keep in `step.state`: under its own name, an array of this shape, of the base's type.

    Without a shape: one for every trained array (of the name `of`), of its shape and type, as `state["name/site:array"]`.
    A `truth` is true or false.
    """
    return Kept(shape, of, truth)


def each(how_many: str, shared: bool = False, **arrays: Any) -> Any:
    """Several of these arrays, drawn one set after the other; n, the number of the set, may stand in shapes and starts."""
    return Each(how_many, tuple((name, dataclasses.replace(a, shared=shared)) for name, a in arrays.items()))


def in_layers(every: str = "") -> Callable[..., Mapping[str, str]]:
    """For `shared_by`: the sites of one name in all layers, or of one `group` where this setting names one.

    With `every`, a setting, only so many of them, one after the other.
    """

    def holders(at: Mapping[str, Method]) -> dict[str, str]:
        groups: dict[str, list[str]] = {}
        for site, method in at.items():
            groups.setdefault(getattr(method, "group", "") or re.sub(r"layers\.\d+", "layers", site), []).append(site)
        return {s: own[i - i % getattr(at[s], every, len(own))] for own in groups.values() for i, s in enumerate(own)}

    return holders


def of_parts(setting: str, trained: str = "", same_sites: bool = False, **starts: Start) -> Any:
    """The arrays of the methods that a setting holds; trained where a condition holds, or else stored. `starts` replace theirs,

    and go by the method's own setting where one of theirs has the same name. With `same_sites` adapters that are given trained must have the same sites.
    """
    return Parts(setting, trained, same_sites, tuple(starts.items()))


def network(of: Callable[..., tuple[Any, Mapping[str, str]]]) -> Any:
    """The parameters of a network of the base's kind: `of(method, site)` is its architecture and {name of an array: its parameter}.

    They are trained and shared by all sites; norms begin at 1, biases at 0, all else at N(0, 0.02²).
    """
    return Network(of)


def size(expression: str) -> Any:
    """A letter of shapes, from settings and the site."""
    return Size(expression)


def fact(ask: Callable[..., Any]) -> Any:
    """What `ask(method, site)` says of a site, for conditions."""
    return Fact(ask)


def requires(condition: str, says: str, when: str = "", error: type[Bad] = Bad) -> Any:
    """What must hold: of settings alone when an instance is made, of a site when the method is attached there."""
    return Requires(condition, says, when, error)


def divides(setting: str) -> Any:
    """A setting must divide both widths of a weight."""
    says = f"{setting} must divide {{out}} and {{in}}, both widths, found {{{setting}}},"
    return requires(f"out % {setting} == 0 and in % {setting} == 0", says)


def held(make: Callable[..., Any]) -> Any:
    """How the base's weight is held under the method: what `make(method, facts)` returns, None for as it is."""
    return Held(make)


def when(condition: str) -> Callable[[Any], Any]:
    """On `after_backward` or `after_step`: the settings under which there is anything to do; on a `forward` beside a change:

    those under which a linear computes so in evaluation too.
    """

    def mark(f: Any) -> Any:
        f.when = condition
        return f

    return mark


# --- what a class declares --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """All that a class and its parents declare, in order, the most derived counting; None takes back what a parent has."""

    arrays: Mapping[str, Array]
    parts: Mapping[str, Parts]
    groups: tuple[Each, ...]
    order: tuple[Any, ...]  # (name, Array, Each, Parts or Network), as they are drawn
    letters: Mapping[str, Size | Fact]
    required: tuple[Requires, ...]
    held: Held | None
    kept: Mapping[str, Kept]


_KNOWN: WeakKeyDictionary[Any, Declared] = WeakKeyDictionary()


def declared(cls: Any) -> Declared:
    """What a class declares."""
    if cls not in _KNOWN:
        _KNOWN[cls] = _read(cls)
    return _KNOWN[cls]


def _read(cls: Any) -> Declared:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, it in base.__dict__.items():
            if isinstance(it, Array | Each | Parts | Network | Size | Fact | Requires | Held | Kept) or name in found:
                found[name] = it

    def of(*kinds: type) -> dict[str, Any]:
        return {name: it for name, it in found.items() if isinstance(it, kinds)}

    last = list(of(Held).values())
    groups = tuple(of(Each).values())
    arrays = of(Array) | {name: a for group in groups for name, a in group.arrays}
    order = tuple(of(Array, Each, Parts, Network).items())
    required = tuple(of(Requires).values())
    return Declared(arrays, of(Parts), groups, order, of(Size, Fact), required, last[-1] if last else None, of(Kept))


def held_for(method: Method, at: Mapping[str, Method]) -> dict[str, dict[str, str]]:
    """{array: {site: the site that holds it for this one}} of what some of a method's sites share; `at` are all methods by site."""
    shared = {name: a.shared_by for name, a in declared(type(method)).arrays.items() if a.shared_by}
    own = {site: m for site, m in at.items() if type(m) is type(method)} if shared else {}
    return {name: dict(by(own)) for name, by in shared.items() if own}


def needs(method: type[Method] | Method) -> tuple[str, ...]:
    """What the starts of a method measure on data: "inputs" of its linears, "grads" of their weights. A class tells all it may."""
    cls, own = (method, {}) if isinstance(method, type) else (type(method), settings_of(method))
    return tuple(dict.fromkeys(n for a in declared(cls).arrays.values() for n in _needed(a.start, own)))


def _needed(start: Start, own: Mapping[str, Any]) -> tuple[str, ...]:
    if start.chosen is None or not names(start.chosen[0]) <= own.keys():
        return start.needs
    condition, one, other = start.chosen
    return _needed(one if evaluate(condition, own) else other, own)


def rate(method: Method, name: str) -> float:
    """The factor on the learning rate of an array of this name."""
    array = array_of(type(method), name)
    return float(evaluate(array.rate, settings_of(method))) if array is not None and array.rate else 1.0


def array_of(cls: type[Method], name: str) -> Array | None:
    """The declaration of an array by its name, None for one that is a part's or not there."""
    made, family = declared(cls), name.rstrip("0123456789")
    numbered = {own for group in made.groups for own, _ in group.arrays}
    if name in made.arrays and name not in numbered:
        return made.arrays[name]
    return made.arrays[family] if family in numbered and family != name else None


def settings_of(method: Method) -> dict[str, Any]:
    """The settings of an instance that an expression may name."""
    return {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}


def check_settings(method: Method) -> None:
    """Raise `Bad` for settings that do not go together."""
    own = settings_of(method)
    for rule in declared(type(method)).required:
        if (names(rule.condition) | names(rule.when or "True")) <= own.keys():
            hold(method, rule, own, "")


def hold(method: Method, rule: Requires, known: Mapping[str, Any], where: str) -> None:
    """Raise the rule's error where it does not hold."""
    if rule.when and not evaluate(rule.when, known):
        return
    if not evaluate(rule.condition, known):
        says = re.sub(r"\{([^}]*)\}", lambda m: str(evaluate(m[1], known)), rule.says)
        raise rule.error(f"{method.name}: {says}{where}")


def intervenes(method: Method) -> bool:
    """Whether `after_backward` or `after_step` may change something."""
    from minipeft.method import Method

    hooks = [(getattr(type(method), n), getattr(Method, n)) for n in ("after_backward", "after_step")]
    return any(own is not plain and evaluate(getattr(own, "when", "True"), settings_of(method)) for own, plain in hooks)
