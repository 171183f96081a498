"""How methods meet the model: attaching, the two choke points, merging.

`Run` is one use of a model with its adapters: it hands out weights (`param`, `linear`, `lookup`) and passes activations
through the methods attached to a site (`at`, `around`). The transformer calls these and knows nothing of adapters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import library, read_only, refuse_others, to_device, to_host, xp
from minipeft.engine.bfloat16 import Bfloat16, bfloat16, widened
from minipeft.engine.tensor import value, value_and_grad
from minipeft.errors import Bad, near
from minipeft.method import Base, Here, Method, Site, frozen, method_class, refuse_unfit
from minipeft.model.arch import Arch, Batch, Model
from minipeft.model.transformer import Output
from minipeft.model.transformer import forward as model_forward
from minipeft.targets import inside, matches, named, select, sites

SHARED = ""  # the site of arrays that all sites of an adapter share
INSERTED = (
    "attn.kv",
    "cross.kv",
    "embed.tokens.out",
)  # sites where methods put something in: nothing to take a share of


# --- adapters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """One method attached to one model: its instance at every site (patterns may change fields) and its arrays.

    `arrays` maps "site:name" to an array; those in `trained` are trained, the others stored. `spare` is what the
    adapter's file holds and this model has no use for, by its keys there.
    """

    name: str
    method: Method
    at: Mapping[str, Method]
    arrays: Mapping[str, Any]
    trained: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)  # how it was attached, for saving
    spare: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def grouped(self, arrays: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """{site: {name: array}} of `arrays` (default: all of this adapter's)."""
        out: dict[str, dict[str, Any]] = {}
        for key, v in (self.arrays if arrays is None else arrays).items():
            site, _, name = key.rpartition(":")
            out.setdefault(site, {})[name] = v
        return out

    @property
    def stored(self) -> dict[str, Any]:
        """The arrays that are not trained."""
        return {k: v for k, v in self.arrays.items() if k not in self.trained}

    @property
    def size(self) -> int:
        """How many numbers it trains."""
        return sum(int(self.arrays[k].size) for k in self.trained)


@dataclass(frozen=True)
class Adapted:
    """A base model and the adapters attached to it. Immutable: what changes it returns a new one.

    Its trained arrays are `theta`, a flat dict "adapter/site:name" -> array.
    """

    model: Model
    adapters: tuple[Adapter, ...] = ()
    active: tuple[str, ...] | None = None  # None: all; (): the base alone
    weights: Mapping[str, float] = field(default_factory=dict)  # of changes that are summed; empty: adapters stack up
    skip_layers: frozenset[int] = frozenset()  # AdapterDrop: adapters are absent in these layers

    def __repr__(self) -> str:
        times = {k: f"{w:g} × " for k, w in self.weights.items() if w != 1}
        names = ", ".join(
            f"{a.name}={times.get(a.name, '')}{a.method.name} ({a.size:,} trained)" for a in self.adapters
        )
        return f"Adapted({self.model!r}: {names})"

    @property
    def in_use(self) -> tuple[Adapter, ...]:
        """The adapters that are switched on, in order."""
        if self.active is None:
            return self.adapters
        by_name = {a.name: a for a in self.adapters}
        return tuple(by_name[n] for n in self.active)

    def using(self, *names: str, **weights: float) -> Adapted:
        """The same with only these adapters switched on, in this order; without any, the base alone.

        Adapters that are only named stack up: the base of the second is the first. With weights, `using(a=0.7, b=0.3)`,
        every change is measured from the base and they are summed: W' = W + Σ w (W'_a − W), h' = h + Σ w (h'_a − h); so
        their order does not matter, and a name without a weight counts once. Raises `Bad` for an adapter that is not
        attached, a weight that is no number, and one where a share of a change means nothing: a prefix, a whole layer.
        """
        have = [a.name for a in self.adapters]
        for n in (*names, *weights):
            if n not in have:
                raise Bad(f"adapter {n!r} is not attached; attached: {', '.join(have) or 'none'}{near(n, have)}")
        for n, w in weights.items():
            if n in names:
                raise Bad(f"adapter {n!r} is named twice, with a weight and without")
            if isinstance(w, bool) or not isinstance(w, int | float | np.number) or not np.isfinite(w):
                raise Bad(f"adapter {n!r}: expected a finite number as its weight, found {w!r}")
            for site, method in next(a for a in self.adapters if a.name == n).at.items() if w != 1 else ():
                if site.endswith(INSERTED) or hasattr(method, "around"):
                    what = "a whole layer" if hasattr(method, "around") else "what it inserts"
                    raise Bad(f"adapter {n!r} ({method.name}) takes no weight but 1, found {w:g}: {what} has no share")
        summed = dict.fromkeys(names, 1.0) | {n: float(w) for n, w in weights.items()} if weights else {}
        return dataclasses.replace(self, active=(*names, *weights), weights=summed)

    def adapter(self, name: str = "default") -> Adapter:
        """The attached adapter of this name. Raises `Bad` if there is none."""
        self.using(name)
        return next(a for a in self.adapters if a.name == name)

    @property
    def theta(self) -> dict[str, Any]:
        """All trained arrays of the adapters in use."""
        return {f"{a.name}/{k}": a.arrays[k] for a in self.in_use for k in a.arrays if k in a.trained}

    def replace(self, theta: Mapping[str, Any]) -> Adapted:
        """The same with these trained arrays in place of those of the same keys. Raises `Bad` for unknown keys or shapes."""
        known = {f"{a.name}/{k}" for a in self.adapters for k in a.trained}
        for key, v in theta.items():
            if key not in known:
                raise Bad(f"{key!r} is no trained array of this model{near(key, known)}")
            have = next(a for a in self.adapters if key.startswith(a.name + "/")).arrays[key.split("/", 1)[1]]
            if tuple(have.shape) != tuple(v.shape):
                raise Bad(f"{key}: expected shape {tuple(have.shape)}, found {tuple(v.shape)}")

        def renew(a: Adapter) -> Adapter:
            new = {k: theta.get(f"{a.name}/{k}", v) if k in a.trained else v for k, v in a.arrays.items()}
            return dataclasses.replace(a, arrays=new)

        return dataclasses.replace(self, adapters=tuple(renew(a) for a in self.adapters))

    def run(self, theta: Mapping[str, Any] | None = None, **options: Any) -> Run:
        """A `Run` of this model, with `theta` (arrays or Tensors) in place of its trained arrays."""
        return Run(self, theta, **options)

    def forward(self, batch: Batch, theta: Mapping[str, Any] | None = None, **options: Any) -> Output:
        """One forward pass; untaped unless theta holds Tensors."""
        return self.run(theta, **options).forward(batch)

    def logits(self, batch: Batch, theta: Mapping[str, Any] | None = None) -> Any:
        """The logits as a plain array."""
        return value(self.forward(batch, theta).logits)

    def loss(
        self,
        theta: Mapping[str, Any] | None,
        batch: Batch,
        *,
        train: bool = False,
        rng: np.random.Generator | None = None,
        penalty: bool = True,
    ) -> Any:
        """The task's loss plus the methods' penalties (or without), a scalar. Raises `Bad` for a batch without labels."""
        run = self.run(theta, train=train, rng=rng)
        loss = run.forward(batch).loss
        if loss is None:
            raise Bad("batch: a loss needs labels and a model with a head")
        more = self._penalty(run.arrays) if penalty else None
        return loss if more is None else loss + more

    def penalty(self, theta: Mapping[str, Any] | None = None) -> Any:
        """What the methods in use add to the loss: a number of the device, or 0.0."""
        if all(type(a.method).penalty is Method.penalty for a in self.in_use):
            return 0.0
        given = self if theta is None else self.replace(theta)
        more = given._penalty({a.name: a.grouped() for a in given.in_use})
        return 0.0 if more is None else more

    def _penalty(self, arrays: Mapping[str, Any]) -> Any:
        terms = [x for a in self.in_use if (x := a.method.penalty(arrays[a.name])) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def value_and_grad(
        self, batch: Batch, theta: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The loss and its gradient with respect to every trained array."""
        return value_and_grad(lambda t: self.loss(t, batch, **options))(dict(self.theta if theta is None else theta))


def attach(
    model: Model | Adapted,
    method: Method | str,
    *,
    name: str = "default",
    targets: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    layers: Iterable[int] | None = None,
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
    train_whole: Sequence[str] = (),
    bias: str = "none",
    beside: Sequence[Method] = (),
    data: Sequence[Batch] = (),
    seed: int = 0,
) -> Adapted:
    """Attach a method to a model and draw its initial arrays. The base is never written to.

    `targets`, `exclude` and `layers` say where (see `select` and `named`; default: the method's own). `patterns` maps a target to
    fields that differ there, `{"layers.0.*": {"r": 4}}`, the first that matches counting. `train_whole` names modules or
    parameters trained in full instead, `bias` "none", "adapted" (of the targeted linears) or "all"; `beside` are further
    methods of the same adapter, each at its own targets. `data` are batches for methods that measure inputs or gradients
    first. `seed` fixes the initial values.
    Raises `Bad` where something matches nothing, is unknown, or does not fit.
    """
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    model = adapted.model
    method = method_class(method)() if isinstance(method, str) else method
    if any(a.name == name for a in adapted.adapters):
        raise Bad(f"an adapter named {name!r} is attached already; give this one another name")
    if not re.fullmatch(r"[\w.-]+", name):
        raise Bad(f"adapter name {name!r}: expected letters, digits, '_', '-' and '.'")
    layers = None if layers is None else tuple(layers)
    chosen = select(model, method.targets if targets is None else targets, exclude=exclude, layers=layers)
    differ = {p: named(model, sites(model), p) for p in patterns or {}}
    for p, meant in differ.items():
        if not any(site.name in meant for site in chosen):
            raise Bad(f"pattern {p!r} matches none of the targets{near(p, [s.name for s in chosen])}")
    whole = {s.name for _, where in _whole(model, [], train_whole, "none") for s in where}
    chosen = [s for s in chosen if s.name not in whole]  # trained whole is trained whole
    if method.ties and model.arch.shares_table and "embed.tokens.weight" in {s.name for s in chosen}:
        chosen = [s for s in chosen if s.name != "head.weight"]  # it follows the table
    at: dict[str, Method] = {}
    for site in chosen:
        fits = [fields for p, fields in (patterns or {}).items() if site.name in differ[p]]
        try:
            at[site.name] = dataclasses.replace(method, **fits[0]) if fits and fits[0] else method
        except TypeError as why:
            raise Bad(f"patterns for {site.name}: {why}") from None
        refuse_unfit(at[site.name], site)
    held = {s.name: W for s in chosen if (W := at[s.name].base(s)) is not None}
    if held:
        model = dataclasses.replace(model, params={**model.params, **held})
        adapted = dataclasses.replace(adapted, model=model)
    if method.needs:
        if not data:
            raise Bad(
                f"{method.name} measures {' and '.join(method.needs)} before it starts; give `data`, a list of batches"
            )
        chosen = measure(adapted, chosen, data, method.needs)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    trained: set[str] = set()

    def take(site: str, found: Mapping[str, Any]) -> None:
        for key, a in found.items():
            full = f"{site}:{key}"
            plain = a.array if isinstance(a, frozen) else a
            plain = np.asarray(to_host(plain))
            numbers = plain.dtype.kind == "f" or not isinstance(a, frozen)  # what is stored may be an index
            arrays[full] = to_device(plain.astype(model.dtype) if numbers else plain)
            if isinstance(a, frozen):
                arrays[full] = read_only(arrays[full])
            else:
                trained.add(full)

    take(SHARED, method.shared(chosen, rng))
    by_method: dict[Method, list[Site]] = {}
    for site in chosen:
        by_method.setdefault(at[site.name], []).append(site)
    drawn = {k: v for m, where in by_method.items() for k, v in m.init_all(where, rng).items()}
    for site in chosen:
        if site.name in drawn:
            at[site.name] = at[site.name].settled(drawn[site.name])
            take(site.name, drawn[site.name])
        else:
            del at[site.name]  # the method gave this site up (EVA: rank 0)
    others = [(m, select(model, m.targets)) for m in beside] + _whole(model, chosen, train_whole, bias)
    for extra, where in others:
        for site in where:
            if site.name in at:
                raise Bad(
                    f"{site.name} is targeted by {method.name} and by {extra.name}; one adapter has one method at a site"
                )
            at[site.name] = extra
            take(site.name, extra.init(site, rng))
    options = dict(train_whole=list(train_whole), bias=bias)
    adapter = Adapter(name, method, at, arrays, frozenset(trained), options)
    return dataclasses.replace(adapted, adapters=(*adapted.adapters, adapter))


def _whole(model: Model, chosen: list[Site], train_whole: Sequence[str], bias: str) -> list[tuple[Method, list[Site]]]:
    """Modules trained whole and biases, as full fine-tuning of just those parameters."""
    full = method_class("full")()
    out = []
    every = sites(model)
    for target in train_whole:
        meant = inside(model, every, target)
        found = [s for s in every.values() if s.name in meant]
        if not found:
            known = {n for s in every for n in (model.names.theirs(s.rpartition(".")[0]) or "").split(".")}
            raise Bad(f"train_whole {target!r} matches no module{near(target, known | every.keys())}")
        out.append((full, found))
    if bias not in ("none", "adapted", "all"):
        raise Bad(f"bias {bias!r}: expected none, adapted or all{near(bias, ('none', 'adapted', 'all'))}")
    if bias != "none":
        whole = {s.name for _, where in out for s in where}
        targeted = {s.name.removesuffix(".weight") + ".bias" for s in chosen}
        found = [
            s
            for s in every.values()
            if s.kind == "bias" and s.name not in whole and (bias == "all" or s.name in targeted)
        ]
        out.append((full, found))
    return out


def measure(adapted: Adapted, where: list[Site], data: Sequence[Batch], needs: tuple[str, ...]) -> list[Site]:
    """The sites with what a method asked to see on data: inputs of their linears, mean gradients of their weights."""
    seen: dict[str, list] = {s.name: [] for s in where}
    grads: dict[str, Any] = {}
    for batch in data:
        if "inputs" in needs:
            run = adapted.run()
            run.watch = seen
            run.forward(batch)
        if "grads" in needs:
            full = method_class("full")()
            probe = attach(Adapted(adapted.model), full, name="probe", targets=[s.name for s in where])
            _, found = probe.value_and_grad(batch)
            for key, g in found.items():
                site = key.removeprefix("probe/").rpartition(":")[0]
                grads[site] = grads.get(site, 0) + to_host(g) / len(data)
    return [dataclasses.replace(s, inputs=seen[s.name] or None, grad=grads.get(s.name)) for s in where]


# --- one use of a model ---------------------------------------------------------------------------------------------


@dataclass
class _Hook:
    method: Method
    arrays: dict[str, Any]
    here: Here
    adapter: str


class Run:
    """One forward pass, or one generation, of a model with adapters. `train` switches dropout and sampling on."""

    def __init__(
        self,
        adapted: Adapted,
        theta: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rng: np.random.Generator | None = None,
        cache: Any = None,
    ) -> None:
        self.arch: Arch = adapted.model.arch
        self.train, self.rng = train, rng if rng is not None else np.random.default_rng(0)
        self.cache = cache  # a Growing or a Fixed, None: nothing is kept
        self.past = 0  # tokens in the cache
        self.tokens: Any = None
        self.batch: Batch = Batch()
        self.watch: dict[str, list] | None = None  # filled with the inputs of linears, for methods that measure them
        self.arrays: dict[str, dict[str, dict[str, Any]]] = {}
        self._base = adapted.model.params
        self._weights: dict[str, Any] = {}
        self._hooks: dict[str, list[_Hook]] = {}
        shares = {a.name: adapted.weights.get(a.name, 1.0) for a in adapted.in_use} if adapted.weights else {}
        self._shares = {} if list(shares.values()) == [1.0] else shares  # one whole change is no sum
        self._befores: list[tuple[Method, Here, dict]] = []
        self._offsets: list[tuple[Method, frozenset]] = []
        held = {"the model": self._base} | {f"adapter {a.name!r}": a.arrays for a in adapted.in_use}
        refuse_others((what, next(filter(library, arrays.values()), None)) for what, arrays in held.items())
        theta = theta or {}
        for adapter in adapted.in_use:
            prefix = f"{adapter.name}/"
            current = {k: theta.get(prefix + k, v) for k, v in adapter.arrays.items()}
            groups = adapter.grouped(current)
            common = groups.get(SHARED, {})
            state: dict = {}
            self.arrays[adapter.name] = groups
            for index, (site, method) in enumerate(adapter.at.items()):
                here = Here(self, site, state, index=index)
                if here.site and adapted.skip_layers and _layer_number(site) in adapted.skip_layers:
                    continue
                own = groups.get(site, {})
                arrays = {**common, **own} if common and type(method) is type(adapter.method) else own
                self._hooks.setdefault(site, []).append(_Hook(method, arrays, here, adapter.name))
            if type(adapter.method).before is not Method.before:
                self._befores.append((adapter.method, Here(self, SHARED, state), common))
            if adapter.method.offset:
                self._offsets.append((adapter.method, frozenset(adapter.at)))

    # --- weights

    def has(self, name: str) -> bool:
        """Whether the model has a parameter of this name."""
        return name in self._base or (name == "head.weight" and self.arch.shares_table)

    def base(self, name: str) -> Any:
        """The base parameter as an array, whatever it is held in; None if the model has none of this name."""
        return widened(self.held(name))

    def held(self, name: str) -> Any:
        """The same, left in bfloat16 if it is held so, as `ops.linear` and `ops.take` take it."""
        W: Any = self._base.get(name)
        if W is None and name == "head.weight" and self.arch.shares_table:
            W = self._base.get("embed.tokens.weight")
        return W if type(W) is Bfloat16 else widened(W)

    def _param_hooks(self, name: str) -> list[_Hook]:
        hooks = self._hooks.get(name, [])
        if name == "head.weight" and self.arch.shares_table and name not in self._base:
            tied = self._hooks.get("embed.tokens.weight", [])
            hooks = [h for h in tied if h.method.ties and hasattr(h.method, "weight")] + hooks
        return hooks

    def param(self, name: str) -> Any:
        """The parameter as the active adapters make it; None if the model has none of this name."""
        if name not in self._weights:
            if not self._hooks:
                return self.base(name)
            steps = []
            if name.endswith(".bias"):
                over = self._param_hooks(name.removesuffix("bias") + "weight")
                steps += [(hook, hook.method.bias) for hook in over if hasattr(hook.method, "bias")]
            for hook in self._param_hooks(name):
                if not hasattr(hook.method, "weight"):
                    raise Bad(f"{hook.method.name} at {name} is no change of a weight")
                steps.append((hook, hook.method.weight))
            self._weights[name] = self._changed(self.base(name), steps)
        return self._weights[name]

    def _changed(self, W: Any, steps: list[tuple[_Hook, Callable]]) -> Any:
        """What the steps make of W one after the other; with weights, W and the weighted sum of all adapters' changes."""

        def stacked(own: list[tuple[_Hook, Callable]]) -> Any:
            out = W
            for hook, step in own:
                out = step(out, **hook.arrays)
            return out

        if not self._shares:
            return stacked(steps)
        total = W
        for adapter, share in self._shares.items():
            if own := [step for step in steps if step[0].adapter == adapter]:
                total = _plus(total, W, stacked(own), share)
        return total

    def linear(self, module: str, x: Any) -> Any:
        """x Wᵀ + b of a module, through the fast paths of the methods attached to it."""
        name = f"{module}.weight"
        if self.watch is not None and name in self.watch:
            mask = self.tokens.mask  # padding is no input
            real = x if mask is None or mask.shape != x.shape[:2] else value(x)[mask]
            self.watch[name].append(to_host(value(real)).reshape(-1, x.shape[-1]))
        return self.at(f"{module}.out", self._through(module, name, x, ops.linear, table=False))

    def lookup(self, module: str, ids: Any) -> Any:
        """Rows `ids` of a table."""
        return self._through(module, f"{module}.weight", ids, lambda x, W, b: ops.take(W, ids=x), table=True)

    def _through(self, module: str, name: str, x: Any, plain: Callable, table: bool) -> Any:
        hooks, biases = self._param_hooks(name), self._hooks.get(f"{module}.bias", [])
        if not any(hasattr(h.method, "forward") for h in hooks):
            return plain(x, self.param(name) if hooks else self.held(name), self.param(f"{module}.bias"))
        if not self._shares:
            return self._stacked(module, name, x, plain, table, hooks, biases)
        y = total = plain(x, self.held(name), self.base(f"{module}.bias"))
        for adapter, share in self._shares.items():
            own, beside = ([h for h in some if h.adapter == adapter] for some in (hooks, biases))
            if own or beside:
                total = _plus(total, y, self._stacked(module, name, x, plain, table, own, beside), share)
        return total

    def _stacked(
        self, module: str, name: str, x: Any, plain: Callable, table: bool, hooks: list[_Hook], biases: list[_Hook]
    ) -> Any:
        def level(k: int) -> Base:  # the linear under the first k methods
            W, b = self.held(name), self.base(f"{module}.bias")
            for hook in hooks[:k]:
                if hasattr(hook.method, "weight"):
                    W = hook.method.weight(widened(W), **hook.arrays)
                    b = hook.method.bias(b, **hook.arrays) if hasattr(hook.method, "bias") else b
            for hook in biases:
                b = hook.method.weight(b, **hook.arrays)
            if k == 0 or not any(hasattr(h.method, "forward") for h in hooks[:k]):
                return Base(W, b, lambda x: plain(x, W, b), table, plain=not table)
            return Base(W, b, lambda x: call(k, x), table)

        def call(k: int, x: Any) -> Any:
            hook = hooks[k - 1] if k else None
            if hook is not None and hasattr(hook.method, "forward"):
                return hook.method.forward(x, level(k - 1), hook.here, **hook.arrays)
            if hook is not None and k > 1 and not hasattr(hooks[k - 2].method, "weight"):
                raise Bad(f"{hook.method.name} cannot follow {hooks[k - 2].method.name} at {name}: that is no weight")
            under = level(k)
            return plain(x, under.held, under.b)

        return call(len(hooks), x)

    # --- activations

    def at(self, site: str, h: Any, **facts: Any) -> Any:
        """h as the methods at this site make it."""
        hooks = self._hooks.get(site)
        if not hooks:
            return h
        if not self._shares or site.endswith(INSERTED):
            for hook in hooks:
                h = self._applied(hook, site, h, facts)
            return h
        steps = [(hook, lambda h, hook=hook, **_: self._applied(hook, site, h, facts)) for hook in hooks]
        return self._changed(h, steps)

    def _applied(self, hook: _Hook, site: str, h: Any, facts: dict[str, Any]) -> Any:
        return hook.method.apply(h, Here(self, site, hook.here.state, facts, hook.here.index), **hook.arrays)

    def around(self, site: str, f: Callable[[Any], Any], h: Any) -> Any:
        """f(h), or what the methods that wrap this layer make of it."""
        for hook in self._hooks.get(site, ()):
            f = _wrap(hook, f)
        return f(h)

    def offset(self, prefix: str) -> int:
        """The position of the first text token of a stack: methods with a prefix move it."""
        return sum(m.offset for m, where in self._offsets if any(_prefix(s) == prefix for s in where))

    def dropout(self, x: Any, p: float) -> Any:
        """Inverted dropout with the pass's generator."""
        keep = to_device(self.rng.random(x.shape, dtype=np.float32)) >= p
        return x * (keep.astype(x.dtype) / x.dtype.type(1 - p))

    def forward(self, batch: Batch, past: int = 0) -> Output:
        """One pass over a batch. Raises `Bad` for a batch that cannot be computed."""
        batch.check(self.arch, past)
        self.batch, self.past = batch, past
        for method, here, shared in self._befores:
            method.before(here, lambda: model_forward(self, batch, past), **shared)
        return model_forward(self, batch, past)


def _plus(total: Any, base: Any, changed: Any, share: float) -> Any:
    """total + share (changed − base); a bias that is not there is 0."""
    change = changed if base is None else -base if changed is None else changed - base
    if change is None:
        return total
    return share * change if total is None else total + share * change


def _wrap(hook: _Hook, f: Callable) -> Callable:
    return lambda h: hook.method.around(f, h, hook.here, **hook.arrays)


def _layer_number(site: str) -> int | None:
    found = re.search(r"layers\.(\d+)", site)
    return int(found[1]) if found else None


def _prefix(site: str) -> str:
    return "encoder." if site.startswith("encoder.") else ""


# --- merging and digests --------------------------------------------------------------------------------------------


def merge(adapted: Adapted) -> Model:
    """The base with the adapters in use folded into its weights: an ordinary model.

    A weight that was held in bfloat16 is so again, W' being computed in float32 and rounded once; one that was
    quantised is not. Raises `Bad` naming the adapter whose change is no weight.
    """
    for a in adapted.in_use:
        for site, method in a.at.items():
            if not method.merges:
                raise Bad(f"adapter {a.name!r} ({method.name}) does not merge: at {site} its change is no weight")
    run = adapted.run()
    names = set(adapted.model.params)
    for a in adapted.in_use:
        for site, method in a.at.items():
            if hasattr(method, "bias") and site.endswith(".weight"):
                names.add(site.removesuffix("weight") + "bias")
    touched = {site for a in adapted.in_use for site in a.at}
    if adapted.model.arch.shares_table and "embed.tokens.weight" in touched:
        touched.add("head.weight")  # a change of the table may reach the head and its bias
    touched |= {s.removesuffix("weight") + "bias" for s in touched if s.endswith(".weight")}

    def folded(n: str) -> Any:
        W = run.param(n)
        return bfloat16(W) if type(run.held(n)) is Bfloat16 else W

    params = {n: W for n in names if (W := folded(n) if n in touched else adapted.model.params[n]) is not None}
    arch = adapted.model.arch
    if arch.shares_table and "head.weight" in touched:
        head, table = run.param("head.weight"), run.param("embed.tokens.weight")
        if not bool((head == table).all()):  # the change broke the tie
            params["head.weight"] = folded("head.weight")
            arch = dataclasses.replace(arch, tied=False)
    params = {
        n: params[n]
        for n in [*adapted.model.params, *sorted(names - set(adapted.model.params)), "head.weight"]
        if n in params
    }
    return dataclasses.replace(adapted.model, arch=arch, params=params)


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of arrays."""
    h = hashlib.sha256()
    for key in sorted(arrays):
        a = np.ascontiguousarray(to_host(arrays[key]))
        h.update(f"{key}:{a.dtype}:{a.shape}".encode())
        h.update(a.data)
    return h.hexdigest()


__all__ = [
    "Adapted",
    "Adapter",
    "Run",
    "attach",
    "digest",
    "matches",
    "measure",
    "merge",
    "select",
    "sites",
    "xp",
]
