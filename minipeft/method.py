"""The protocol: what a method is, where it attaches, and the registry of all methods.

A method is a frozen dataclass whose fields are its hyper-parameters. It says where it attaches (`targets`), what arrays
it brings (`init`, `shared`) and what it does with them: `weight` in weight space, `apply` on an activation, or `forward`
on a linear whose change is no weight. Everything else is optional. Its family is which function it defines, at which site.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from minipeft.engine.bfloat16 import widened
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.settings import check


@dataclass(frozen=True)
class frozen:
    """Marks an array that a method brings but does not train: stored, without gradient or optimiser state."""

    array: Any


@dataclass(frozen=True)
class Site:
    """One place a method can attach to: a parameter by its name, or an activation.

    `shape` is the parameter's shape, or the width of the activation. `kind` is "linear", "embedding", "norm", "bias",
    "table" or "activation". `W` is the base parameter (read-only, perhaps held in bfloat16 or quantised: `widened`
    makes an array of it), `params` all parameters of the base; `inputs` and `grad` are what was measured on data for
    methods that need it: a list of (n, in) arrays, one a batch, and the mean gradient of the weight.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    arch: Arch
    W: Any = None
    dtype: Any = np.float64
    inputs: Any = None
    grad: Any = None
    params: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layer(self) -> int | None:
        """The number of the layer the site is in, None outside of layers."""
        found = re.search(r"layers\.(\d+)", self.name)
        return int(found[1]) if found else None


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


class Unshown(Bad, AttributeError):
    """A method asked a site for what the transformer does not show there."""


def globbed(names: Iterable[str], pattern: str) -> set[str]:
    """The names that a glob means: those it matches whole; if there is none, those whose end after a dot it matches."""
    names = list(names)
    return {n for n in names if fnmatchcase(n, pattern)} or {n for n in names if fnmatchcase(n, f"*.{pattern}")}


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

    @property
    def task_ids(self) -> Any:
        """(b,) task of every row. Raises `Bad` where the batch has none."""
        ids = self.run.batch.task_ids
        if ids is None:
            raise Bad(f"{self.site}: this method routes by task; the batch has no task_ids")
        return ids

    def host(self, name: str) -> np.ndarray:
        """An array of the batch as it was given on the host, for checks: nothing waits for the device."""
        return self.run.batch.host(name)

    @property
    def prefill(self) -> bool:
        """False in the later steps of cached generation, where virtual tokens are in the cache already."""
        return self.run.past == 0

    @property
    def layer(self) -> str:
        """Name of the layer or stack end this site belongs to: `layers.3` of `layers.3.attn.q.weight`."""
        found = re.match(r"(.*layers\.\d+)", self.site)
        return found[1] if found else ""

    def param(self, name: str) -> Any:
        """The parameter `name` of this layer as adapted: `attn.k.weight` in `layers.3` is `layers.3.attn.k.weight`."""
        return self.run.param(f"{self.layer}.{name}" if self.layer else name)

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

    __slots__ = ("_W", "b", "call", "held", "plain", "table")

    def __init__(self, W: Any, b: Any, call: Callable[[Any], Any], table: bool, plain: bool = False) -> None:
        self.held, self.b, self.call, self.table, self.plain = W, b, call, table, plain
        self._W: Any = None

    @property
    def W(self) -> Any:
        """The weight, (out, in), or the table, an array or a Tensor."""
        if self._W is None:
            self._W = widened(self.held)
        return self._W

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of W."""
        return tuple(self.held.shape)

    def __call__(self, x: Any) -> Any:
        return self.call(x)


TAKES: dict[str, Callable[[Site], bool]] = {  # what a method may attach to, by the word that it has for it
    "matrices": lambda s: s.kind != "activation" and len(s.shape) == 2,
    "linears": lambda s: s.kind == "linear",
    "biases": lambda s: s.kind == "bias",
    "parameters": lambda s: s.kind != "activation",
    "vectors": lambda s: s.kind == "activation" and len(s.shape) == 1,
    "vectors as wide as the model": lambda s: s.kind == "activation" and s.shape == (s.arch.d,),
    "keys and values": lambda s: s.name.endswith(".kv"),
    "embedded text": lambda s: s.name.endswith("embed.tokens.out"),
}


def refuse_unfit(method: Method, site: Site) -> None:
    """Raise `Bad` for a site that a method cannot attach to."""
    what = "a weight" if site.kind != "activation" else "a layer" if site.name.endswith(f"layers.{site.layer}") else ""
    doing = {"a weight": ("weight", "forward"), "a layer": ("around",)}.get(what, ("apply",))
    if not any(hasattr(method, f) for f in doing):
        changes = "activations" if hasattr(method, "apply") else "layers" if hasattr(method, "around") else "weights"
        raise Bad(f"{method.name} changes {changes}, but target {site.name} is {what or 'an activation'}")
    if method.takes and not TAKES[method.takes](site):
        raise Bad(
            f"{method.name}: expected {method.takes}, found {site.name}, of kind {site.kind} and shape {site.shape}"
        )


METHODS: dict[str, type[Method]] = {}


@dataclass(frozen=True)
class Method:
    """Base of all methods. A subclass registers itself under its name in snake case, or its `name`."""

    name: ClassVar[str]
    targets: str = ""
    # Where it attaches by default: globs over sites, each matching a whole name or its end after a dot; alternatives are
    # separated by "|", and the first that matches anything counts.
    takes: ClassVar[str] = ""  # one of TAKES; "": any parameter or activation, as it changes one or the other
    needs: ClassVar[tuple[str, ...]] = ()  # "inputs" | "grads": measured on data before init
    identity: ClassVar[bool] = True  # the adapted model equals the base before training
    ties: ClassVar[bool] = True  # a change of the token table changes a tied head too
    caches: ClassVar[bool] = True  # generation may keep keys and values
    offset: ClassVar[int] = 0  # position of the first text token
    usual_lr: ClassVar[float] = 1e-2  # a learning rate for AdamW that suits it on small models
    parts: ClassVar[str] = ""  # the method it is built over, by `from_adapters`

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

    @classmethod
    def sized(cls, arch: Arch) -> Method:
        """An instance whose sizes suit a model of this architecture: what `compare` trains and the laws are tried on."""
        return cls()

    def __post_init__(self) -> None:
        check(self, self.name)

    # --- arrays

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        """The arrays at one site, by name; wrap in `frozen(...)` what is stored and not trained."""
        return {}

    def shared(self, sites: list[Site], rng: np.random.Generator) -> dict[str, Any]:
        """The same, one set for all sites."""
        return {}

    def init_all(self, sites: list[Site], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
        """Arrays of all sites at once, for methods whose initial values at one site depend on the others."""
        return {site.name: self.init(site, rng) for site in sites}

    def settled(self, arrays: dict[str, Any]) -> Method:
        """The instance that stands at a site, given the arrays drawn for it: EVA's rank is known only then."""
        return self

    def base(self, site: Site) -> Any:
        """What is held in place of the base parameter, None to leave it: QLoRA holds it in four bits."""
        return None

    # --- what it does: a subclass defines one of these, or `forward` beside `weight` as a faster way to the same

    weight: ClassVar[Callable[..., Any]]  # (W, **arrays) -> W'            weight space
    bias: ClassVar[Callable[..., Any]]  # (b, **arrays) -> b'              with `weight`, where the bias changes as well
    apply: ClassVar[Callable[..., Any]]  # (h, here, **arrays) -> h'       an activation; a pair at attn.kv
    around: ClassVar[Callable[..., Any]]  # (f, h, here, **arrays) -> h'   a whole layer, f being the layer
    forward: ClassVar[Callable[..., Any]]  # (x, base, here, **arrays)     a linear, or a lookup with ids x

    # --- training

    def penalty(self, arrays: Mapping[str, dict[str, Any]]) -> Any:
        """A scalar added to the loss, from {site: {name: array}}; None for none."""
        return None

    def lr(self, name: str) -> float:
        """Factor on the learning rate of the arrays of this name."""
        return 1.0

    def before(self, here: Here, forward: Callable[[], Any], **shared: Any) -> None:
        """Called before every forward pass; `forward()` runs the model as it stands, for methods of two passes."""

    def after_backward(self, step: Step) -> None:
        """Change gradients before the optimiser sees them."""

    def after_step(self, step: Step) -> None:
        """Change arrays after the optimiser has moved them: schedules, projections."""

    # --- facts

    @property
    def intervenes(self) -> bool:
        """Whether `after_backward` or `after_step` may change something."""
        own = type(self)
        return (own.after_backward, own.after_step) != (Method.after_backward, Method.after_step)

    def sizes(self, site: Site) -> dict[str, int]:
        """Symbols of the docstring's table and Size line at this site, beyond the fields and the site's own shape."""
        return {}

    @property
    def merges(self) -> bool:
        """Whether the change is an ordinary weight."""
        return hasattr(self, "weight")


def load_methods() -> None:
    """Import every file under minipeft/methods, so that each registers itself."""
    package = importlib.import_module("minipeft.methods")
    for module in _walk(package):
        importlib.import_module(module)


def _walk(package: Any) -> Iterator[str]:
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not info.ispkg:
            yield info.name


def method_class(name: str) -> type[Method]:
    """The method of this name. Raises `Bad` with near misses if there is none."""
    load_methods()
    if name not in METHODS:
        raise Bad(f"method {name!r} is unknown{near(name, METHODS)}; `minipeft list` shows all {len(METHODS)}")
    return METHODS[name]
