"""The laws that every method obeys, each a function of an attached method. `check` runs them all on one.

A law raises `Broken` with what was expected and found. Tolerances are K·u·cond: u the unit roundoff of the dtype, cond the
measured sensitivity of the compared result to relative changes of size u in every number that goes into it.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import needs
from minipeft.attaching import attach
from minipeft.conformance import docstrings, tiny
from minipeft.drawing import expected
from minipeft.engine import backend, gradcheck, gradients_flow, ops
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.bfloat16 import UNIT, rounded
from minipeft.engine.tensor import value
from minipeft.engine.weight import Weight
from minipeft.errors import Bad, Unfit
from minipeft.merging import digest, merge
from minipeft.method import Here, Method, is_weight, samples
from minipeft.model.base import Model
from minipeft.model.batch import Batch
from minipeft.model.sensitivity import sensitivity
from minipeft.run import is_layer
from minipeft.settings import small
from minipeft.targets import sites
from minipeft.train import SGD, AdamW, fit

K = 8.0  # the constant of the tolerance rule


class Broken(AssertionError):
    """A law that does not hold: which, where, expected, found."""


@dataclass(frozen=True)
class Case:
    """A method attached to a model: as it starts, with its trained arrays moved, and a batch to judge on."""

    model: Model
    method: Method
    start: Adapted
    moved: Adapted
    batch: Batch

    @property
    def adapter(self) -> Adapter:
        return self.start.adapters[0]

    @property
    def u(self) -> float:
        """The unit roundoff of products with the base: of its dtype, or of bfloat16 if it is held so."""
        half = "bfloat16" in self.model.forms
        return UNIT if half else float(np.finfo(self.model.dtype).eps) / 2


def case(method: Method, family: str = "llama", dtype: Any = np.float64, seed: int = 0) -> Case | None:
    """The method on a tiny model of the family; None if it does not fit there (its targets match nothing)."""
    model = tiny.model(family, dtype, seed)
    batch = tiny.example(model, seed=seed + 1, tasks=getattr(method, "n_tasks", 1))
    try:
        start = attach(model, method, data=[batch] if needs(method) else (), seed=seed)
    except Unfit:
        return None
    return Case(start.model, method, start, moved(start, seed), batch)


def moved(adapted: Adapted, seed: int = 0, by: float = 0.1) -> Adapted:
    """The same with every trained array moved away from where it starts, so that nothing cancels."""
    rng = np.random.default_rng([seed, 7])
    theta = adapted.theta
    return adapted.replace(
        {k: x + to_device((by * rng.standard_normal(x.shape)).astype(x.dtype)) for k, x in theta.items()}
    )


def close(got: Any, want: Any, cond: float, what: str, k: float = K, u: float = 0.0) -> float:
    """Raise `Broken` unless |got − want| ≤ k·u·cond everywhere; returns the largest ratio |got − want|/(u·cond).

    u is that of the dtype unless given.
    """
    got, want = to_host(value(got)), to_host(value(want))
    if got.shape != want.shape:
        raise Broken(f"{what}: expected shape {want.shape}, found {got.shape}")
    if not got.size:
        return 0.0
    u = u or float(np.finfo(want.dtype).eps) / 2
    error = float(abs(got - want).max())
    ratio = error / (u * max(cond, 1e-30))
    if not ratio <= k:
        raise Broken(
            f"{what}: apart by {error:.3g}, allowed {k * u * cond:.3g} (err/(u·cond) = {ratio:.3g}, K = {k:g})"
        )
    return ratio


# --- the laws -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Probe(Method, register=False):
    """Looks at an activation and leaves it alone."""

    seen: Any = None
    name: ClassVar[str] = "probe"

    def apply(self, h: Any, here: Here) -> Any:
        self.seen.setdefault(here.site, []).append(h)
        return h

    def __hash__(self) -> int:
        return id(self)


def identity(case: Case) -> None:
    """Before training the adapted model is the base, at every site and in the logits, where the method says so."""
    if not case.method.identity:
        return
    model, start = case.model, case.start
    base = Adapted(model)
    run, plain = start.run(), base.run()
    for site in case.adapter.at:
        if site.endswith((".weight", ".bias", ".cls")) and is_weight(case.adapter.at[site]):
            W = to_host(plain.param(site))
            close(run.param(site), W, float(abs(W).max()) * max(W.shape), f"identity at {site}", k=K)
    seen: list[dict] = [{}, {}]
    where = [
        s
        for s in case.adapter.at
        if not (s.endswith((".weight", ".bias")) or is_layer(s)) and hasattr(case.adapter.at[s], "apply")
    ]
    if where:
        probes = [
            attach(model, _Probe(seen=s), name=f"probe{i}", targets=where).adapters[0] for i, s in enumerate(seen)
        ]
        both = dataclasses.replace(start, adapters=(probes[0], *start.adapters, probes[1]))
        both.forward(case.batch)
        for site in where:
            for before, after in zip(seen[0][site], seen[1][site], strict=True):
                pairs = zip(before, after) if isinstance(before, tuple) else [(before, after)]
                for h, h2 in pairs:
                    h = to_host(value(h))
                    close(h2, h, float(abs(h).max()) * h.shape[-1], f"identity at {site}")
    want = base.logits(case.batch)
    if want is not None:
        cond = sensitivity(
            lambda m, t: dataclasses.replace(start, model=m).forward(case.batch, t).logits, model, start.theta
        )
        close(start.logits(case.batch), want, cond, "identity in the logits", u=case.u)


def frozen(case: Case) -> None:
    """Training with momentum and weight decay leaves every base array and stored array bit-identical, and gives
    gradients and moments to trained arrays alone; writing to a base array raises."""
    start, batch = case.start, case.batch
    base, stored = case.model.digest(), digest(case.adapter.stored)
    theta = start.theta
    expected = {f"{case.adapter.name}/{k}" for k in case.adapter.trained}
    _, grads = start.value_and_grad(batch)
    if set(grads) != expected:
        raise Broken(f"frozen: gradients for {sorted(set(grads) ^ expected)[:3]} beyond the trained arrays")
    for optimiser in (SGD(lr=0.01, momentum=0.9, weight_decay=0.1), AdamW(lr=0.01, weight_decay=0.1)):
        state = optimiser.init(theta)
        for key in state:
            if key.split("/", 1)[1] not in theta:
                raise Broken(f"frozen: the optimiser keeps {key} for no trained array")
        after = fit(start, [batch], steps=3, optimiser=optimiser).adapted
        if case.model.digest() != base or after.model.digest() != base:
            raise Broken(f"frozen: a base array changed under {optimiser!r}")
        if digest(after.adapters[0].stored) != stored or digest(case.adapter.stored) != stored:
            raise Broken(f"frozen: a stored array changed under {optimiser!r}")
        now = {k: v for k, v in after.theta.items() if k in theta and v.size}
        if now and all(bool((now[k] == theta[k]).all()) for k in now):
            raise Broken("frozen: nothing was trained at all")
    if backend.name() != "numpy":  # other libraries' arrays know no such flag
        return
    W = next(v for v in case.model.params.values() if not isinstance(v, Weight))
    try:
        W[...] = 0
    except ValueError:
        return
    raise Broken("frozen: a base array could be written to")


def gradient(case: Case) -> None:
    """The gradients of each kind of array equal central differences along a random direction, detached parts let through."""
    if case.start.model.dtype != np.float64:
        return
    with gradients_flow():
        for step in (1e-5, 1e-6):  # the smaller one where the larger meets a kink of relu
            try:
                gradcheck(
                    lambda t: case.moved.loss(t, case.batch),
                    case.moved.theta,
                    step=step,
                    group=lambda key: key.rpartition(":")[2],  # all sites' A together
                )
                return
            except AssertionError as why:
                if "too rough" not in str(why) or step == 1e-6:
                    raise Broken(f"gradient: {why}") from None


def forward_is_weight(case: Case) -> None:
    """A linear or table under a method computes what its adapted weight says, outside of training."""
    rng = np.random.default_rng(5)
    run, every = case.moved.run(), sites(case.model)
    for site, method in case.adapter.at.items():
        if not (is_weight(method) and site.endswith(".weight")) or every[site].kind not in ("linear", "embedding"):
            continue
        if samples(method, train=False):
            continue
        module = site.removesuffix(".weight")
        W, b = run.param(site), run.param(f"{module}.bias")
        if every[site].kind == "embedding":
            ids = to_device(rng.integers(0, W.shape[0], (3, 4)))
            got, want = run.lookup(module, ids), W[ids]
            cond = float(abs(to_host(want)).max()) * 4 + _inner(case, site)
        else:
            x = to_device(rng.standard_normal((3, 4, W.shape[1])).astype(W.dtype))
            x = x if case.u < UNIT else rounded(x)  # so that only what a method makes of it is rounded
            got, want = run.linear(module, x), ops.linear(x, W, b)
            cond = float((abs(to_host(x)) @ abs(to_host(W)).T).max()) + _inner(case, site)
        close(got, want, cond, f"forward against weight at {site}", u=case.u)


def _inner(case: Case, site: str) -> float:
    """Size of the numbers that meet at a site: arrays' largest entries multiplied, times the width summed over."""
    arrays = case.moved.adapters[0].grouped().get(site, {})
    sizes = [float(abs(to_host(a)).max()) for a in arrays.values() if a.size and a.dtype.kind == "f"]
    return float(np.prod([max(s, 1.0) for s in sizes])) * max(
        (max(a.shape) for a in arrays.values() if a.size), default=1
    )


def merged(case: Case) -> None:
    """The merged model is an ordinary model that computes what the adapted one does; what does not merge says so."""
    if not all(map(is_weight, case.adapter.at.values())):
        try:
            merge(case.moved)
        except Bad as why:
            if "does not merge" in str(why):
                return
        raise Broken("merge: a method whose change is no weight was merged")
    plain = merge(case.moved)
    want = case.moved.logits(case.batch)
    cond = sensitivity(lambda m, t: Adapted(m).forward(case.batch).logits, plain, {})
    if not any(samples(m, train=False) for m in case.adapter.at.values()):
        close(Adapted(plain).logits(case.batch), want, cond, "merged logits", k=4 * K, u=case.u)
    if plain.dtype != case.model.dtype:
        raise Broken(f"merge: the base is {case.model.dtype}, the merged model {plain.dtype}")


def keeps_dtype(case: Case) -> None:
    """In float32, and over a base in bfloat16, everything stays float32: logits, loss, gradients, merged weights,
    arrays after a step."""
    model = case.model if case.model.dtype == np.float32 else case.model.astype(np.float32)
    adapters = tuple(
        dataclasses.replace(
            a, arrays={k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in a.arrays.items()}
        )
        for a in case.moved.adapters
    )
    single = dataclasses.replace(case.moved, model=model, adapters=adapters)
    batch = case.batch
    if batch.pixel_values is not None:
        batch = dataclasses.replace(batch, pixel_values=batch.pixel_values.astype(np.float32))
    found = {"logits": single.logits(batch)}
    found["loss"], grads = single.value_and_grad(batch, train=True, rng=np.random.default_rng(0))
    found |= {f"gradient of {k}": g for k, g in grads.items()}
    if all(map(is_weight, case.adapter.at.values())):
        found |= {f"merged {k}": v for k, v in merge(single).params.items() if not isinstance(v, Weight)}
    after = fit(single, [batch], steps=1).adapted.adapters[0].arrays
    found |= {f"{k} after a step": v for k, v in after.items() if v.dtype.kind == "f"}
    for what, x in found.items():
        if x.dtype != np.float32:
            raise Broken(f"dtype: {what} became {x.dtype} in a float32 model")


def learns(case: Case) -> None:
    """Some steps of training lower the loss."""
    before = float(case.start.loss(None, case.batch))
    for steps in (4, 12):  # few are enough for most
        trained = fit(case.start, [case.batch], steps=steps, optimiser=AdamW(lr=0.02))
        if (after := float(trained.adapted.loss(None, case.batch))) < before:
            return
    raise Broken(f"learns: loss {before:.6g} before, {after:.6g} after 12 steps of AdamW")


def round_trip(case: Case) -> None:
    """What was saved is loaded bit for bit, and computes the same."""
    from minipeft.checkpoints.native import load_adapter, save_adapter

    with tempfile.TemporaryDirectory() as folder:
        save_adapter(case.moved, Path(folder) / "adapter")
        again = load_adapter(Adapted(case.model), Path(folder) / "adapter")
    a, b = case.moved.adapters[0], again.adapters[0]
    if digest(a.arrays) != digest(b.arrays) or a.trained != b.trained or dict(a.at) != dict(b.at):
        raise Broken("round trip: the loaded adapter differs from the saved one")
    want, got = case.moved.logits(case.batch), again.logits(case.batch)
    if backend.name() == "cupy":  # cuBLAS chooses its way, and so its rounding, by where the same arrays lie
        cond = sensitivity(lambda m, t: Adapted(m).forward(case.batch).logits, case.model, {})
        close(got, want, cond, "round trip: logits of the loaded adapter")
    elif not np.array_equal(to_host(want), to_host(got)):
        raise Broken("round trip: the loaded adapter computes something else")


def table(case: Case) -> None:
    """The arrays that are declared are there: names, shapes, trained or stored, no other; Merges is true."""
    every = expected(case.method, case.adapter.at, sites(case.model))
    declared = {key: (it.shape, it.trained) for key, it in every}
    for key, (shape, trained) in declared.items():
        if key not in case.adapter.arrays:
            raise Broken(f"table: {key} of {case.method.name} is declared and nowhere")
        if trained != (key in case.adapter.trained):
            raise Broken(f"table: {key} is said to be {'trained' if trained else 'stored'} and is not")
        if tuple(case.adapter.arrays[key].shape) != shape:
            raise Broken(f"table: {key} is said to be {shape}, found {tuple(case.adapter.arrays[key].shape)}")
    if more := case.adapter.arrays.keys() - declared.keys():
        raise Broken(f"table: {sorted(more)[0]} is not declared by {case.method.name}")
    merges = docstrings.read(type(case.method)).sections["Merges"]
    if merges.startswith("no") == is_weight(case.method):
        has = "has a" if is_weight(case.method) else "has no"
        raise Broken(f"table: Merges says {merges[:20]!r}, the class {has} change or weight")


LAWS: dict[str, Callable[[Case], None]] = {
    "identity": identity,
    "frozen": frozen,
    "gradient": gradient,
    "forward": forward_is_weight,
    "merge": merged,
    "dtype": keeps_dtype,
    "learns": learns,
    "round_trip": round_trip,
    "table": table,
}


@dataclass(frozen=True)
class Verdict:
    """One law on one method and family: "pass", "fail" with a reason, or "n/a" where the method does not fit."""

    law: str
    family: str
    outcome: str
    reason: str = ""


def check(
    method: Method | type[Method], families: Mapping[str, Any] | list[str] | None = None, dtype: Any = np.float64
) -> Iterator[Verdict]:
    """Every law on a method, family by family. What its own code raises breaks the law that is tried; a `Bad` ends the check."""
    for family in families or tiny.ARCHS:
        made = method if isinstance(method, Method) else small(method, tiny.arch(family))
        try:
            stands = case(made, family, dtype)
        except Bad:
            raise
        except Exception as why:
            yield Verdict("attach", family, "fail", _raised(made, why))
            continue
        for law, f in LAWS.items():
            if stands is None:
                yield Verdict(law, family, "n/a")
                continue
            try:
                f(stands)
                yield Verdict(law, family, "pass")
            except Broken as why:
                yield Verdict(law, family, "fail", str(why))
            except Bad:
                raise
            except Exception as why:
                yield Verdict(law, family, "fail", _raised(made, why))


def _raised(method: Method, why: Exception) -> str:
    """An error on a line, and the last line of the method's file that led to it."""
    file = getattr(sys.modules.get(type(method).__module__), "__file__", None) or ""
    lines = [f.lineno for f in traceback.extract_tb(why.__traceback__) if f.filename == file]
    return f"{type(why).__name__}: {why}" + (f" ({Path(file).name}, line {lines[-1]})" if lines else "")
