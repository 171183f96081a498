"""The protocol: what a method is, where it attaches, and the registry of all methods.

A method is a frozen dataclass whose fields are its hyper-parameters (`minipeft.settings`). It says where it attaches
(`targets`), declares the arrays that it brings (`minipeft.arrays`), and what it does with them: `change` or `weight` of a
parameter, `apply` to an activation, or `forward` on a linear whose change is no weight. Everything else is optional.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minipeft.arrays import check_settings, declared, settings_of
from minipeft.changes import Change, Dense, Sum, Weighed
from minipeft.engine import ops
from minipeft.engine.backend import to_device, xp
from minipeft.engine.weight import widened
from minipeft.errors import Bad, meant, near
from minipeft.expressions import evaluate
from minipeft.model.arch import Arch
from minipeft.model.parts import pixels
from minipeft.settings import Settings, check
from minipeft.shown import described


@dataclass(frozen=True)
class Site:
    """One place a method can attach to: a parameter by its name, or an activation.

    `shape` is the parameter's shape, or the width of the activation. `kind` is "linear", "embedding", "norm", "bias",
    "table" or "activation". `W` is the base parameter (read-only, perhaps held in bfloat16 or quantised: `widened`
    makes an array of it), `params` all parameters of the base; `inputs` and `grad` are what was measured on data for
    methods that need it: a list of (n, in) arrays, one a batch, and the mean gradient of the weight. `labelled` are lists of
    n truths, one a batch: which of these inputs are of tokens that have a label.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    arch: Arch
    W: Any = None
    dtype: Any = np.float64
    inputs: Any = None
    grad: Any = None
    labelled: Any = None
    params: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    __repr__ = described

    @property
    def layer(self) -> int | None:
        """The number of the layer the site is in, None outside of layers."""
        found = re.search(r"layers\.(\d+)", self.name)
        return int(found[1]) if found else None

    @property
    def pixels(self) -> int:
        """How many of its inputs are one channel's: those of a patch, or 1."""
        return pixels(self.arch, self.name)


@dataclass
class Step:
    """What a method sees of one optimiser step; its hooks change `grads` or `theta` by assigning new arrays.

    `theta` and `grads` are {site: {name: array}} of this adapter's trained arrays ("" is the shared site), `stored` its stored
    ones. `state` is a dict of arrays that belongs to the method and goes into training checkpoints. `t` counts from 1.
    """

    t: int
    total: int
    theta: dict[str, dict[str, Any]]
    grads: dict[str, dict[str, Any]]
    stored: dict[str, dict[str, Any]]
    state: dict[str, Any] = field(default_factory=dict)

    __repr__ = described


class Unshown(Bad, AttributeError):
    """A method asked a site for what the transformer does not show there."""


class Here:
    """What a method may know where it is called: the site, this pass, and what the transformer shows there.

    Facts of the site (`x` residual stream, `u` sub-layer input, `a` sub-layer output, `q` queries, `combine`) are attributes
    where the transformer gives them. `state` is a dict that lives as long as the forward pass and is this adapter's own;
    `index` counts the adapter's sites, in model order.
    """

    __slots__ = ("facts", "index", "run", "site", "state")

    def __init__(self, run: Any, site: str, state: dict, facts: dict | None = None, index: int = 0) -> None:
        self.run, self.site, self.state, self.facts, self.index = run, site, state, facts or {}, index

    def __getattr__(self, name: str) -> Any:
        try:
            return self.facts[name]
        except KeyError:
            raise Unshown(
                f"site {self.site} shows no {name!r}; it shows {', '.join(self.facts) or 'nothing'}"
            ) from None

    @property
    def arch(self) -> Arch:
        return self.run.arch

    @property
    def train(self) -> bool:
        """Whether this is a training pass: dropout and sampling are on."""
        return self.run.train

    @property
    def rng(self) -> np.random.Generator:
        """The host generator of this pass."""
        return self.run.rng

    @property
    def tokens(self) -> Any:
        """The bookkeeping of the sequence (`Tokens`): mask, first and last real token, `insert`."""
        return self.run.tokens

    def tasks(self, n: int, rows: int) -> Any:
        """(rows,) task of every row; a single one need not be named. Raises `Bad` for missing ones and those not in 0 … n − 1."""
        ids = self.run.batch.task_ids
        if ids is None and n == 1:
            return xp.zeros(rows, int)
        if ids is None:
            raise Bad(f"{self.site}: this method routes by task; the batch has no task_ids")
        if tuple(ids.shape) != (rows,):
            raise Bad(f"{self.site}: task_ids must be one for each of {rows} rows, found shape {tuple(ids.shape)}")
        given = self.host("task_ids")
        if given.min() < 0 or given.max() >= n:
            raise Bad(f"{self.site}: task_ids must lie in 0 … {n - 1}, found {given.min()} … {given.max()}")
        return ids

    def host(self, name: str) -> np.ndarray:
        """An array of the batch as it was given on the host, for checks: nothing waits for the device. Raises `Bad` without it."""
        if getattr(self.run.batch, name) is None:
            raise Bad(f"{self.site}: this method needs {name}; the batch has none")
        return self.run.batch.host(name)

    def add_loss(self, weight: float, logits: Callable[[], Any]) -> None:
        """Add to the loss of this pass `weight` times that of these logits, shaped as the head's; made only with labels."""
        self.run.add_loss(weight, logits)

    @property
    def past(self) -> int:
        """How many tokens are in the cache already."""
        return self.run.past

    @property
    def prefill(self) -> bool:
        """False in the later steps of cached generation, where virtual tokens are in the cache already."""
        return self.run.past == 0

    @property
    def made(self) -> int:
        """How many of the last tokens of this pass generation without a cache has made itself, beyond its prompt."""
        return self.run.made

    @property
    def layer(self) -> str:
        """Name of the layer or stack end this site belongs to: `layers.3` of `layers.3.attn.q.weight`."""
        found = re.match(r"(.*layers\.\d+)", self.site)
        return found[1] if found else ""

    def param(self, name: str) -> Any:
        """The parameter `name` of this layer as adapted: `attn.k.weight` in `layers.3` is `layers.3.attn.k.weight`."""
        return self.run.param(f"{self.layer}.{name}" if self.layer else name)

    def random(self, shape: tuple[int, ...]) -> Any:
        """Numbers of this pass, uniform in [0, 1), float64."""
        return to_device(self.run.rng.random(shape))

    def normal(self, shape: tuple[int, ...]) -> Any:
        """Numbers of this pass, of N(0, 1), float64."""
        return to_device(self.run.rng.standard_normal(shape))

    def dropout(self, x: Any, p: float) -> Any:
        """x with each element zeroed with probability p and the rest divided by 1 − p, in training; x otherwise."""
        return self.run.dropout(x, p) if self.run.train and p else x


class Base:
    """The linear or table under a method: call it for its output; `W` and `b` are its weight and bias.

    `held` is the weight as `ops.linear`, `ops.linear_lowrank` and `ops.take` take it: in bfloat16, if the base is held
    so; `W` is an array, made when first asked for. `table` tells whether it looks rows up: then it is called with ids.
    `plain` tells that it is x Wᵀ + b and computed as that. Several adapters at one site stack up: the base of the
    second is the first.
    """

    __slots__ = ("_W", "_call", "_weight", "b", "held", "table")

    def __init__(
        self, held: Any, b: Any = None, table: bool = False, call: Any = None, weight: Callable[[], Any] | None = None
    ) -> None:
        self.held, self.b, self.table, self._call, self._weight = held, b, table, call, weight
        self._W: Any = None

    @property
    def W(self) -> Any:
        """The weight, (out, in), or the table, an array or a Tensor."""
        if self._W is None:
            self._W = widened(self.held) if self._weight is None else self._weight()
        return self._W

    @property
    def plain(self) -> bool:
        """Whether nothing is attached to it."""
        return self._call is None and not self.table

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of W."""
        return tuple(self.held.shape)

    def __call__(self, x: Any) -> Any:
        if self._call is not None:
            return self._call(x)
        return ops.take(self.held, ids=x) if self.table else ops.linear(x, self.held, self.b)


TAKES: dict[str, Callable[[Site], bool]] = {  # what a method may attach to, by the words that it has for it
    "matrices": lambda s: s.kind != "activation" and len(s.shape) == 2,
    "linears and lookups": lambda s: s.kind != "activation" and len(s.shape) == 2,
    "linears": lambda s: s.kind == "linear",
    "biases": lambda s: s.kind == "bias",
    "norms": lambda s: s.kind in ("norm", "bias") and ".norm" in f".{s.name}",
    "parameters": lambda s: s.kind != "activation",
    "parameters one by one": lambda s: s.kind != "activation",
    "vectors": lambda s: s.kind == "activation" and len(s.shape) == 1,
    "vectors as wide as the model": lambda s: s.kind == "activation" and s.shape == (s.arch.d,),
    "keys and values": lambda s: s.name.endswith(".kv"),
    "embedded text": lambda s: s.name.endswith("embed.tokens.out"),
}
ALONE = ("linears and lookups", "linears", "parameters one by one")  # a change of a tied table leaves the head as it is


def refuse_unfit(method: Method, site: Site) -> None:
    """Raise `Bad` for a site that a method cannot attach to."""
    weight, layer = site.kind != "activation", site.name.endswith(f"layers.{site.layer}")
    if not (is_weight(method) or routes(method) if weight else hasattr(method, "apply")):
        changes = "activations" if hasattr(method, "apply") else "weights"
        what = "a weight" if weight else "a layer" if layer else "an activation"
        raise Bad(f"{method.name} changes {changes}, but target {site.name} is {what}")
    if method.takes and not TAKES[method.takes](site):
        raise Bad(
            f"{method.name}: expected {method.takes}, found {site.name}, of kind {site.kind} and shape {site.shape}"
        )


METHODS: dict[str, type[Method]] = {}


@dataclass(frozen=True)
class Method(Settings):
    """Base of all methods. A subclass registers itself under its name in snake case, or its `name`."""

    name: ClassVar[str]
    targets: str = ""
    # Where it attaches by default: globs over sites, each matching a whole name or its end after a dot; alternatives are
    # separated by "|", and the first that matches anything counts.
    takes: ClassVar[str] = ""  # one of TAKES; "": any parameter or activation, as it changes one or the other
    identity: ClassVar[bool] = True  # the adapted model equals the base before training
    offset: ClassVar[int] = 0  # position of the first text token

    if TYPE_CHECKING:  # a dataclass would take them for fields, of which a method has but one or two
        # What it does with its arrays: one of these; or both of the first two, where the most derived counts; or `forward`
        # beside them, where a linear computes something else in training than what they say (`samples`).
        change: ClassVar[Callable[..., Any]]  # (**arrays) -> ΔW, or a change with a structure (`minipeft.changes`)
        weight: ClassVar[Callable[..., Any]]  # (W, **arrays) -> W'
        apply: ClassVar[Callable[..., Any]]  # (h, here, **arrays) -> h': an activation; a pair at attn.kv; a layer
        forward: ClassVar[Callable[..., Any]]  # (x, base, here, **arrays): a linear, or a lookup with ids x

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name") or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if not register:
            return
        other = METHODS.get(cls.name, cls)
        mine, theirs = (f"{c.__module__}.{c.__qualname__}" for c in (cls, other))
        if mine != theirs:  # the same class again is a module read again
            raise TypeError(f"two methods are named {cls.name!r}: {theirs} and {mine}")
        METHODS[cls.name] = cls

    def __post_init__(self) -> None:
        check(self, self.name)
        check_settings(self)

    # --- training

    def penalty(self, arrays: Mapping[str, dict[str, Any]]) -> Any:
        """A scalar added to the loss, from {site: {name: array}}; None for none."""
        return None

    def before(self, here: Here, forward: Callable[[], Any], **shared: Any) -> None:
        """Called before every forward pass; `forward()` runs the model as it stands, for methods of two passes.

        A method that has one sees the whole sequence in every pass: generation keeps no keys and values.
        """

    def after_backward(self, step: Step) -> None:
        """Change gradients before the optimiser sees them."""

    def after_step(self, step: Step) -> None:
        """Change arrays after the optimiser has moved them: schedules, projections."""


# --- what follows from a method's functions ---------------------------------------------------------------------------


def is_weight(method: Method | type[Method]) -> bool:
    """Whether the change is an ordinary weight: then it merges."""
    return hasattr(method, "change") or hasattr(method, "weight")


def routes(method: Method | type[Method]) -> bool:
    """Whether it computes a linear's output by a way of its own, that no weight has."""
    return hasattr(method, "forward") and not is_weight(method)


def samples(method: Method, train: bool) -> bool:
    """Whether a linear computes by `forward` what `change` or `weight` tells on average: in training, or as `when` says."""
    if not (hasattr(method, "forward") and is_weight(method)):
        return False
    return train or bool(evaluate(getattr(type(method).forward, "when", "False"), settings_of(method)))


def is_whole(method: Method | type[Method]) -> bool:
    """Whether it brings parameters whole, so that it does not matter what the base has there."""
    cls = method if isinstance(method, type) else type(method)
    return [a.shape for a in declared(cls).arrays.values()] == [(...,)]


def whole_method() -> Method:
    """The method that brings any parameter whole: what trains whole modules, biases and heads."""
    load_methods()
    return next(cls for cls in METHODS.values() if is_whole(cls) and cls().takes in ("parameters", ""))()


def ties(method: Method) -> bool:
    """Whether a change of the token table changes a tied head too."""
    return is_weight(method) and method.takes not in ALONE


def caches(method: Method) -> bool:
    """Whether generation may keep keys and values."""
    return type(method).before is Method.before


def change_of(method: Method, arrays: Mapping[str, Any]) -> Change:
    """What a method makes of a parameter, from its arrays there: the most derived of `change` and `weight` says it."""
    changed: Any = method.change(**arrays) if hasattr(method, "change") else Sum(())
    if next(n for c in type(method).__mro__ for n in ("weight", "change") if n in c.__dict__) == "weight":
        still = changed.steady if isinstance(changed, Sum) else Sum(())
        return Weighed(lambda W: method.weight(W, **arrays), still)
    return changed if isinstance(changed, Change) else Dense(changed)


def weight_of(method: Method, W: Any, arrays: Mapping[str, Any]) -> Any:
    """W', the parameter as a method makes it."""
    return change_of(method, arrays).onto(W)


@cache
def load_methods() -> None:
    """Import every file under minipeft/methods, so that each registers itself."""
    package = importlib.import_module("minipeft.methods")
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not info.ispkg:
            importlib.import_module(info.name)


def method_class(name: str) -> type[Method]:
    """The method of this name, or whose class has it, whatever its capitals and hyphens. Raises `Bad` with near misses."""
    load_methods()
    named = METHODS | {cls.__name__: cls for cls in METHODS.values() if cls.__name__ not in METHODS}
    if (found := meant(name, named)) is None:
        raise Bad(f"method {name!r} is unknown{near(name, METHODS)}; `minipeft list` shows all {len(METHODS)}")
    return named[found]
