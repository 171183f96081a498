"""How methods meet the model: one use of a model with its adapters, and its two choke points.

`Run` hands out weights (`param`, `linear`, `lookup`) and passes activations through the methods attached to a site (`at`,
`around`). The transformer calls these and knows nothing of adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minipeft.arrays import held_for
from minipeft.changes import Change, rows_kept, same_input
from minipeft.engine.backend import library, refuse_others, to_device, to_host, xp
from minipeft.engine.recompute import recomputed
from minipeft.engine.tensor import value
from minipeft.engine.weight import factor, widened
from minipeft.errors import Bad
from minipeft.method import Base, Here, Method, change_of, is_weight, routes, samples, ties, weight_of
from minipeft.model.arch import Arch
from minipeft.model.batch import Batch
from minipeft.model.parts import tied
from minipeft.model.transformer import Output, judged
from minipeft.model.transformer import forward as model_forward

if TYPE_CHECKING:
    from minipeft.adapted import Adapted

# sites where methods put something in: nothing to take a share of
INSERTED = ("attn.kv", "cross.kv", "embed.tokens.out")


@dataclass
class _Hook:
    method: Method
    arrays: dict[str, Any]
    here: Here
    adapter: str
    tied: bool  # at the token table: whether a head that is tied to it has the change too


class Run:
    """One forward pass, or one generation, of a model with adapters. `train` switches dropout and sampling on.

    With `recompute` the tape keeps of a layer what goes into it, and the backward pass computes the layer again.
    """

    def __init__(
        self,
        adapted: Adapted,
        theta: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rng: np.random.Generator | None = None,
        cache: Any = None,
        recompute: bool = False,
    ) -> None:
        self.arch: Arch = adapted.model.arch
        self._model = adapted.model
        self.train, self.rng = train, rng if rng is not None else np.random.default_rng(0)
        self.recompute = recompute
        self.cache = cache  # a Growing or a Fixed, None: nothing is kept
        self.past = 0  # tokens in the cache
        self.made = 0  # tokens at the end that generation without a cache has made
        self.tokens: Any = None
        self.batch: Batch = Batch()
        self.added: list[Any] = []  # what methods add to the loss of this pass
        self.watch: dict[str, list] | None = None  # filled with the inputs of linears, for methods that measure them
        self.arrays: dict[str, dict[str, dict[str, Any]]] = {}
        self._base = adapted.model.params
        self._tied = tied(self.arch)
        self._weights: dict[str, Any] = {}
        self._changes: dict[tuple[int, str], Change] = {}
        self._hooks: dict[str, list[_Hook]] = {}
        shares = {a.name: adapted.weights.get(a.name, 1.0) for a in adapted.in_use} if adapted.weights else {}
        self._shares = {} if list(shares.values()) == [1.0] else shares  # one whole change is no sum
        self._states: list[dict] = []  # what adapters keep in this pass
        self._befores: list[tuple[Method, Here, dict]] = []
        self._offsets: list[tuple[Method, frozenset]] = []
        held = {"the model": self._base} | {f"adapter {a.name!r}": a.arrays for a in adapted.in_use}
        refuse_others((what, next(filter(library, arrays.values()), None)) for what, arrays in held.items())
        theta = theta or {}
        for adapter in adapted.in_use:
            prefix = f"{adapter.name}/"
            current = {k: theta.get(prefix + k, v) for k, v in adapter.arrays.items()}
            groups = adapter.grouped(current)
            common = groups.get("", {})
            lent = held_for(adapter.method, adapter.at)
            state: dict = {}
            self._states.append(state)
            self.arrays[adapter.name] = groups
            for index, (site, method) in enumerate(adapter.at.items()):
                here = Here(self, site, state, index=index)
                if here.site and adapted.skip_layers and _layer_number(site) in adapted.skip_layers:
                    continue
                own = groups.get(site, {})
                held = {
                    name: groups[by[site]][name]
                    for name, by in lent.items()
                    if name in groups.get(by.get(site, ""), {})
                }
                own = {**held, **own}
                arrays = {**common, **own} if common and type(method) is type(adapter.method) else own
                follows = ties(method) or (adapter.tied and type(method) is type(adapter.method))
                self._hooks.setdefault(site, []).append(_Hook(method, arrays, here, adapter.name, follows))
            if type(adapter.method).before is not Method.before:
                self._befores.append((adapter.method, Here(self, "", state), common))
            if adapter.method.offset:
                self._offsets.append((adapter.method, frozenset(adapter.at)))

    @property
    def dtype(self) -> Any:
        """What the model computes in."""
        return self._model.dtype

    # --- weights

    def has(self, name: str) -> bool:
        """Whether the model has a parameter of this name."""
        return name in self._base or name in self._tied

    def base(self, name: str) -> Any:
        """The base parameter as an array, whatever it is held in; None if the model has none of this name."""
        return widened(self.held(name))

    def held(self, name: str) -> Any:
        """The same, left in bfloat16 if it is held so, as `ops.linear` and `ops.take` take it."""
        W: Any = self._base.get(name)
        if W is None and name in self._tied:
            W = self._base.get(self._tied[name])
        return factor(W)

    def _param_hooks(self, name: str) -> list[_Hook]:
        hooks = self._hooks.get(name, [])
        if name in self._tied and name not in self._base:
            hooks = [h for h in self._hooks.get(self._tied[name], []) if h.tied] + hooks
        return hooks

    def param(self, name: str) -> Any:
        """The parameter as the active adapters make it; None if the model has none of this name."""
        if not self._hooks:
            return self.base(name)
        if name not in self._weights:
            steps: list[tuple[_Hook, Callable[[Any], Any]]] = []
            for hook in self._param_hooks(name):
                if not is_weight(hook.method):
                    raise Bad(f"{hook.method.name} at {name} is no change of a weight")
                steps.append((hook, self._change(hook, name).onto))
            if name.endswith(".bias"):  # what a change of the weight does to the bias comes last
                over = f"{name.removesuffix('bias')}weight"
                hooks = [h for h in self._param_hooks(over) if is_weight(h.method)]
                steps += [(h, self._to_bias(h, over, hooks[:i])) for i, h in enumerate(hooks)]
            self._weights[name] = self._changed(self.base(name), steps)
        return self._weights[name]

    def _change(self, hook: _Hook, name: str) -> Change:
        """What a method makes of the parameter of this name, kept for the passes of a generation."""
        if self.cache is None:
            return change_of(hook.method, hook.arrays)
        key = (id(hook), name)
        if key not in self._changes:
            self._changes[key] = change_of(hook.method, hook.arrays)
        return self._changes[key]

    def _to_bias(self, hook: _Hook, name: str, before: list[_Hook]) -> Callable[[Any], Any]:
        """What a change of the weight of this name makes of the bias; `before` are the methods that come before it there."""

        def under() -> Any:
            W = self.base(name)
            for h in before:
                if not self._shares or h.adapter == hook.adapter:
                    W = self._change(h, name).onto(W)
            return W

        return lambda b: self._change(hook, name).bias_over(b, under)

    def _changed(self, W: Any, steps: list[tuple[_Hook, Callable]]) -> Any:
        """What the steps make of W one after the other; with weights, W and the weighted sum of all adapters' changes."""

        def stacked(own: list[tuple[_Hook, Callable]]) -> Any:
            out = W
            for _, step in own:
                out = step(out)
            return out

        if not self._shares:
            return stacked(steps)
        total = W
        for adapter, share in self._shares.items():
            if own := [step for step in steps if step[0].adapter == adapter]:
                total = _plus(total, W, stacked(own), share)
        return total

    def linear(self, module: str, x: Any) -> Any:
        """x Wᵀ + b of a module as the methods attached to it make it."""
        name = f"{module}.weight"
        if self.watch is not None and name in self.watch:
            mask = None if self.tokens is None else self.tokens.mask  # padding is no input; patches are tokens later
            real = x if mask is None or mask.shape != x.shape[:2] else value(x)[mask]
            self.watch[name].append(to_host(value(real)).reshape(-1, x.shape[-1]))
        return self.at(f"{module}.out", self._through(module, name, x, table=False))

    def lookup(self, module: str, ids: Any) -> Any:
        """Rows `ids` of a table."""
        return self._through(module, f"{module}.weight", ids, table=True)

    def _through(self, module: str, name: str, x: Any, table: bool) -> Any:
        hooks, biases = self._param_hooks(name), self._hooks.get(f"{module}.bias", [])
        if not self._shares or not (hooks or biases):
            return self._stacked(module, name, x, table, hooks, biases)
        y = total = self._stacked(module, name, x, table, [], [])
        for adapter, share in self._shares.items():
            own, beside = ([h for h in some if h.adapter == adapter] for some in (hooks, biases))
            if own or beside:
                total = _plus(total, y, self._stacked(module, name, x, table, own, beside), share)
        return total

    def _stacked(self, module: str, name: str, x: Any, table: bool, hooks: list[_Hook], biases: list[_Hook]) -> Any:
        """The linear, or the table, under its methods: each is a linear over the one before it."""
        b = None if table else self.base(f"{module}.bias")
        for hook in biases:
            b = weight_of(hook.method, b, hook.arrays)
        under = Base(self.held(name), b, table)
        for hook in hooks:
            under = self._over(under, hook, name)
        return under(x)

    def _over(self, base: Base, hook: _Hook, name: str) -> Base:
        """A linear with one more method on it."""
        method = hook.method

        def own(x: Any) -> Any:
            return method.forward(x, base, hook.here, **hook.arrays)

        if routes(method):

            def no_weight() -> Any:
                raise Bad(f"what follows {method.name} at {name} cannot ask for its weight: that is no weight")

            return Base(base.held, base.b, base.table, own, no_weight)
        change, drop = self._change(hook, name), same_input
        b = change.bias_over(base.b, lambda: base.W)
        if samples(method, self.train):
            return Base(base.held, b, base.table, own, lambda: change.onto(base.W))
        if self.train:
            if (p := getattr(method, "module_dropout", 0.0)) and self.rng.random() < p:
                return base
            if p := getattr(method, "rank_dropout", 0.0):
                keep = to_device(self.rng.random(base.shape[0])) >= p
                change = rows_kept(
                    change,
                    (keep / xp.maximum(keep.mean(), 1 / keep.size)).astype(next(iter(hook.arrays.values())).dtype),
                )
            if (p := getattr(method, "dropout", 0.0)) and not base.table:

                def drop(x: Any) -> Any:
                    return self.dropout(x, p)

        def call(x: Any) -> Any:
            return change.rows(x, base) if base.table else change.linear(x, base, drop)

        return Base(base.held, b, base.table, call, lambda: change.onto(base.W))

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
        """f(h), or what the methods at this layer make of it: they are given the layer f, and return one."""
        for hook in self._hooks.get(site, ()):
            f = hook.method.apply(f, hook.here, **hook.arrays)
        return recomputed(lambda: f(h), self._moment, self._return_to) if self.recompute else f(h)

    def _moment(self) -> tuple:
        """All that a layer may change beside what it returns, as it is now."""
        tokens = self.tokens
        held = vars(tokens) | dict(shared=dict(tokens.shared))
        return self.rng.bit_generator.state, tokens, held, dict(self._weights), [dict(s) for s in self._states]

    def _return_to(self, moment: tuple) -> None:
        """Be as at that moment."""
        self.rng.bit_generator.state, self.tokens, held, weights, states = moment
        vars(self.tokens).update(held | dict(shared=dict(held["shared"])))
        self._weights = dict(weights)
        for state, then in zip(self._states, states, strict=True):
            state.clear()
            state.update(then)

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
        self.prepare(lambda: model_forward(self, batch, past))
        self.added = []
        return model_forward(self, batch, past)

    def add_loss(self, weight: float, logits: Callable[[], Any]) -> None:
        """Keep `weight` times the loss of these logits, if there are labels: it is part of this pass's loss."""
        if weight and (self.tokens.labels if self.arch.per_token else self.batch.labels) is not None:
            self.added.append(weight * judged(self.arch, logits(), self.tokens, self.batch.labels))

    def prepare(self, forward: Callable[[], Any]) -> None:
        """What methods do before a pass; `forward()` is a pass of the model as it stands."""
        for method, here, shared in self._befores:
            method.before(here, forward, **shared)


def _plus(total: Any, base: Any, changed: Any, share: float) -> Any:
    """total + share (changed − base); a bias that is not there is 0."""
    change = changed if base is None else -base if changed is None else changed - base
    if change is None:
        return total
    return share * change if total is None else total + share * change


def is_layer(site: str) -> bool:
    """Whether a site is a whole layer."""
    return re.fullmatch(r"(encoder\.)?layers\.\d+", site) is not None


def _layer_number(site: str) -> int | None:
    found = re.search(r"layers\.(\d+)", site)
    return int(found[1]) if found else None


def _prefix(site: str) -> str:
    return "encoder." if site.startswith("encoder.") else ""
