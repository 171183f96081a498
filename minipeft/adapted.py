"""A model with adapters: which are attached, which are in use, their arrays. Immutable: what changes it returns a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.engine.tensor import value, value_and_grad
from minipeft.errors import Bad, near
from minipeft.method import Method, caches
from minipeft.model.base import Model
from minipeft.model.batch import Batch
from minipeft.model.transformer import Output
from minipeft.run import INSERTED, Run, is_layer

SHARED = ""  # the site of arrays that all sites of an adapter share


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

    def __repr__(self) -> str:
        return f"Adapter({self.name}: {self.method!r} at {len(self.at)} sites, {self.size:,} numbers in {len(self.trained)} arrays trained)"

    def grouped(self, arrays: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """{site: {name: array}} of `arrays` (default: all of this adapter's)."""
        out: dict[str, dict[str, Any]] = {}
        for key, v in (self.arrays if arrays is None else arrays).items():
            site, _, name = key.rpartition(":")
            out.setdefault(site, {})[name] = v
        return out

    @property
    def tied(self) -> bool:
        """Whether its change of the token table is that of a head tied to it, whatever its method usually does there."""
        return bool(self.options.get("tied"))

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

    @property
    def uncached(self) -> list[str]:
        """The methods in use that see the whole sequence in every pass: generation keeps no keys and values."""
        return [a.method.name for a in self.in_use if not caches(a.method)]

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
                if (layer := is_layer(site)) or site.endswith(INSERTED):
                    what = "a whole layer" if layer else "what it inserts"
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
        recompute: bool = False,
    ) -> Any:
        """The task's loss plus the methods' penalties (or without), a scalar. Raises `Bad` for a batch without labels."""
        run = self.run(theta, train=train, rng=rng, recompute=recompute)
        loss = run.forward(batch).loss
        if loss is None:
            raise Bad("batch: a loss needs labels and a model with a head")
        if penalty:
            more = self._penalty(run.arrays)
            loss = sum(run.added if more is None else [*run.added, more], loss)
        return loss

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
