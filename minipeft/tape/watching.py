"""What is watched while a pass is recorded: ops as they are computed, the parts of the model that they belong to, stops.

Nothing is changed by it: ops are noted where replacements are looked up, parts where the model asks its `Run`.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minipeft.adapted import Adapted
from minipeft.engine.tensor import COMPOSED, OPS, Node, Replacement, Tensor, now, stopping, taken, taking
from minipeft.method import Method
from minipeft.model.batch import Batch
from minipeft.model.transformer import Output
from minipeft.run import Run


class Label(NamedTuple):
    """Where something was computed: a part of the model, the methods whose work it is, and the pass, from 1."""

    part: str
    methods: tuple[str, ...] = ()
    run: int = 1


class Call(NamedTuple):
    """An op that was computed: when, its name, and whether it was given something that is on a tape."""

    at: int
    name: str
    taped: bool


@dataclass
class Watch:
    """What was seen, in the order of time: the numbers are those of `minipeft.engine.tensor.now`."""

    calls: list[Call] = field(default_factory=list)
    stops: list[tuple[int, Node]] = field(default_factory=list)
    marks: list[tuple[int, Label]] = field(default_factory=list)  # what was computed up to here belongs to this label

    @contextlib.contextmanager
    def ing(self) -> Iterator[None]:
        """Within this context ops and stops are noted."""
        with taking(_Noting(taken(), self._call)), stopping(self._stop):
            yield

    def label(self, at: int) -> Label:
        """To what something belongs that was computed then."""
        return self.marks[bisect_left(self.marks, at, key=lambda mark: mark[0])][1]

    def call(self, node: Node) -> int:
        """The number of the call that made a node."""
        return bisect_left(self.calls, node.order, key=lambda call: call.at) - 1

    def _call(self, name: str, args: tuple) -> None:
        self.calls.append(Call(now(), name, any(type(a) is Tensor for a in args)))

    def _stop(self, x: Tensor) -> Any:
        self.stops.append((now(), x.node))
        return x.value


class _Noting(dict):
    """Stands for the replacements: `note` is told of every op that is computed, by one of them or by its text."""

    def __init__(self, real: Mapping[str, Replacement], note: Callable[[str, tuple], None]) -> None:
        super().__init__(real)
        self.real, self.note = real, note

    def get(self, name: str, default: Any = None) -> Any:
        found = self.real.get(name)
        return found if name not in OPS else _Noted(name, found, self.note)


class _Noted(NamedTuple):
    """Stands for the replacement of an op."""

    name: str
    found: Replacement | None
    note: Callable[[str, tuple], None]

    def of(self, args: tuple, constants: dict[str, Any]) -> Replacement | None:
        """The one that is taken, of which is told."""
        way = None if self.found is None else self.found.of(args, constants)
        if (
            way is not None or self.name not in COMPOSED
        ):  # one that is composed, and is not replaced, is the ops it is written in
            self.note(self.name, args)
        return way


@dataclass(frozen=True)
class Watched(Adapted):
    """An adapted model whose passes are watched."""

    watch: Watch = field(default_factory=Watch)

    def run(self, theta: Mapping[str, Any] | None = None, **options: Any) -> Run:
        """A `Run` that says to the watch where it is."""
        return _Run(self, theta, **options)


class _Run(Run):
    """A run that marks what belongs to which part, by the questions that the model asks.

    What the model computes before it shows a site leads to that site; all else belongs to the part that it asked for last.
    While a method is at work, at a site or on a weight, it is that method's.
    """

    def __init__(self, adapted: Watched, theta: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(adapted, theta, **options)
        self._seen, self._pass, self._label = adapted.watch, 1, Label("embed")

    def _mark(self, label: Label) -> None:
        self._seen.marks.append((now(), label._replace(run=self._pass)))

    @contextlib.contextmanager
    def _in(self, part: str, hooks: Iterable[Any]) -> Iterator[None]:
        before = self._label
        self._mark(before)
        self._label = Label(part, tuple(dict.fromkeys(h.method.name for h in hooks)))
        yield
        self._mark(self._label)
        self._label = before if before.methods else Label(part)

    def _on(self, module: str) -> list[Any]:
        """What is attached to a linear, norm or table."""
        return [*self._param_hooks(f"{module}.weight"), *self._param_hooks(f"{module}.bias")]

    def at(self, site: str, h: Any, **facts: Any) -> Any:
        part = part_of(site, self.has)
        methods = dict.fromkeys(h.method.name for h in self._on(part)) if part != site else ()
        self._mark(Label(part, tuple(methods)))
        with self._in(part, self._hooks.get(site, ())):
            return super().at(site, h, **facts)

    def linear(self, module: str, x: Any) -> Any:
        with self._in(module, self._on(module)):
            return super().linear(module, x)

    def lookup(self, module: str, ids: Any) -> Any:
        with self._in(module, self._on(module)):
            return super().lookup(module, ids)

    def param(self, name: str) -> Any:
        with self._in(part_of(name, self.has), self._param_hooks(name)):
            return super().param(name)

    def around(self, site: str, f: Callable[[Any], Any], h: Any) -> Any:
        h = super().around(site, f, h)
        if hooks := self._hooks.get(site):
            self._mark(Label(site, tuple(h.method.name for h in hooks)))
        return h

    def prepare(self, forward: Callable[[], Any]) -> None:
        before = Label("before the pass", tuple(method.name for method, _, _ in self._befores))

        def counted() -> Any:
            self._mark(before)
            made = forward()
            self._mark(Label("loss"))
            self._pass, self._label = self._pass + 1, before
            return made

        super().prepare(counted)
        self._mark(before)
        self._label = Label("embed")

    def forward(self, batch: Batch, past: int = 0) -> Output:
        made = super().forward(batch, past)
        self._mark(Label("loss"))
        return made


def part_of(site: str, has: Callable[[str], bool]) -> str:
    """The part of a model that a site belongs to: a linear, norm or table, or the site itself."""
    module, _, last = site.rpartition(".")
    return module if last in ("weight", "bias") or (last == "out" and has(f"{module}.weight")) else site


def watched(
    adapted: Adapted, theta: Mapping[str, Any], batch: Batch, train: bool, rng: np.random.Generator
) -> tuple[Any, Watch]:
    """The loss of a batch, a Tensor if anything is trained, and what was seen meanwhile."""
    watch = Watch()
    given = {k: getattr(adapted, k) for k in Adapted.__dataclass_fields__}
    with watch.ing():
        loss = Watched(**given, watch=watch).loss(theta, batch, train=train, rng=rng)
    methods = (a.method for a in adapted.in_use if type(a.method).penalty is not Method.penalty)
    watch.marks.append((now(), Label("penalty", tuple(m.name for m in methods), watch.marks[-1][1].run)))
    return loss, watch
