"""Errors of training: of optimisers, of weight decay, of what is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.arrays import declared
from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import EVERY, Arrays, Where, mutant
from minipeft.conformance.own import Own
from minipeft.method import Method, Step
from minipeft.train import SGD, AdamW

STEPS = frozenset(("train", "fit"))


class Settings(Own):
    """A mutant that reads the settings of an optimiser otherwise."""

    asks = STEPS

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return o

    def trained(self, case: Case, whole: bool = False) -> Arrays:
        o = case.options["optimiser"]
        changed = dataclasses.replace(case, options={**case.options, "optimiser": {**o, **self.settings(o)}})
        return super().trained(changed, whole)


@mutant("train", "", EVERY)
class base_trained(Own):
    """Weight decay reaches the frozen weight."""

    asks = STEPS

    def trained(self, case: Case, whole: bool = False) -> Arrays:
        theta = super().trained(case, whole)
        return theta | ({"W": theta["W"] * (1 - 1e-3)} if "W" in theta and "W" not in case.trained else {})


@mutant("train", "", EVERY)
class one_step_too_few(Settings):
    """The last step is not taken."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(steps=o["steps"] - 1)


@mutant("train", "", EVERY)
class one_step_too_many(Settings):
    """A step more than asked for is taken."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(steps=o["steps"] + 1)


@mutant("train", "", EVERY)
class decay_ignored(Settings):
    """There is no weight decay."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(weight_decay=0.0)


@mutant("train", "", EVERY)
class eps_ignored(Settings):
    """AdamW has an eps of its own, 1e-8, whatever is asked for."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(eps=1e-8) if "eps" in o else {}


@mutant("train", "", EVERY)
class betas_ignored(Settings):
    """AdamW has moments of its own, 0.9 and 0.999, whatever is asked for."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(beta1=0.9, beta2=0.999) if "beta1" in o else {}


@mutant("train", "", EVERY)
class betas_exchanged(Settings):
    """The moments of AdamW have each other's rates."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(beta1=o["beta2"], beta2=o["beta1"]) if "beta1" in o else {}


@mutant("train", "", EVERY)
class momentum_ignored(Settings):
    """SGD has no momentum."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(momentum=0.0) if "momentum" in o else {}


class Stepping(Own):
    """A mutant whose optimisers take other steps. `step` is AdamW's from its settings o, the moments m and v, the gradient g and x."""

    asks = STEPS

    def gradient(self, g: Any, x: Any, o: Any) -> Any:
        return g

    def decay(self, x: Any, lr: float, o: Any) -> Any:
        """What weight decay takes off x."""
        return lr * o.weight_decay * x

    def corrected(self, m: Any, v: Any, t: int, o: Any) -> tuple[Any, Any]:
        return m / (1 - o.beta1**t), v / (1 - o.beta2**t)

    def root(self, v: Any, o: Any) -> Any:
        return np.sqrt(v) + o.eps

    def velocity(self, v: Any, g: Any, t: int, o: Any) -> tuple[Any, Any]:
        """Momentum of SGD, and what the step is along."""
        v = o.momentum * v + g
        return v, v

    def optimiser(self, kind: str) -> Any:
        me = self

        @dataclass(frozen=True)
        class OtherSGD(SGD):
            def init(self, theta: Mapping[str, Any]) -> Arrays:
                return {f"v/{k}": np.zeros_like(x) for k, x in theta.items()}

            def step(self, theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Any) -> tuple[Arrays, Arrays]:
                new, after = {}, {}
                for k, x in theta.items():
                    after[f"v/{k}"], along = me.velocity(state[f"v/{k}"], me.gradient(grads[k], x, self), t, self)
                    new[k] = x - lr[k] * along - me.decay(x, lr[k], self)
                return new, after

        @dataclass(frozen=True)
        class OtherAdamW(AdamW):
            def step(self, theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Any) -> tuple[Arrays, Arrays]:
                new, after = {}, {}
                for k, x in theta.items():
                    g = me.gradient(grads[k], x, self)
                    m = after[f"m/{k}"] = self.beta1 * state[f"m/{k}"] + (1 - self.beta1) * g
                    v = after[f"v/{k}"] = self.beta2 * state[f"v/{k}"] + (1 - self.beta2) * g**2
                    m, v = me.corrected(m, v, t, self)
                    new[k] = x - lr[k] * (m / me.root(v, self)) - me.decay(x, lr[k], self)
                return new, after

        return {"sgd": OtherSGD, "adamw": OtherAdamW}[kind]


@mutant("train", "", EVERY)
class decay_is_coupled(Stepping):
    """Weight decay is added to the gradient, so that it goes through the moments."""

    def gradient(self, g: Any, x: Any, o: Any) -> Any:
        return g + o.weight_decay * x

    def decay(self, x: Any, lr: float, o: Any) -> Any:
        return 0.0


@mutant("train", "", EVERY)
class decay_without_rate(Stepping):
    """Weight decay is not multiplied by the learning rate."""

    def decay(self, x: Any, lr: float, o: Any) -> Any:
        return o.weight_decay * x


@mutant("train", "", EVERY)
class eps_in_the_root(Stepping):
    """AdamW adds eps inside of the root, not beside it."""

    def root(self, v: Any, o: Any) -> Any:
        return np.sqrt(v + o.eps)


@mutant("train", "", EVERY)
class moments_uncorrected(Stepping):
    """AdamW's moments are not corrected for their start at 0."""

    def corrected(self, m: Any, v: Any, t: int, o: Any) -> tuple[Any, Any]:
        return m, v


@mutant("train", "", EVERY)
class second_moment_uncorrected(Stepping):
    """AdamW's second moment is not corrected for its start at 0."""

    def corrected(self, m: Any, v: Any, t: int, o: Any) -> tuple[Any, Any]:
        return m / (1 - o.beta1**t), v


@mutant("train", "", EVERY)
class correction_a_step_late(Stepping):
    """AdamW's moments are corrected as if a step more had been taken: the steps are counted from 2."""

    def corrected(self, m: Any, v: Any, t: int, o: Any) -> tuple[Any, Any]:
        return super().corrected(m, v, t + 1, o)


@mutant("train", "", EVERY)
class root_before_correction(Stepping):
    """AdamW adds eps to the root of the second moment before that is corrected."""

    def corrected(self, m: Any, v: Any, t: int, o: Any) -> tuple[Any, Any]:
        c = 1 - o.beta2**t
        return m / (1 - o.beta1**t), (np.sqrt(v) / np.sqrt(c) + o.eps * (1 / np.sqrt(c) - 1)) ** 2


@mutant("train", "", EVERY)
class momentum_dampened(Stepping):
    """SGD takes (1 − μ) g into its momentum, not g."""

    def velocity(self, v: Any, g: Any, t: int, o: Any) -> tuple[Any, Any]:
        v = o.momentum * v + (1 - o.momentum) * g
        return v, v


@mutant("train", "", EVERY)
class momentum_of_nesterov(Stepping):
    """SGD takes Nesterov's step, g + μ v."""

    def velocity(self, v: Any, g: Any, t: int, o: Any) -> tuple[Any, Any]:
        v = o.momentum * v + g
        return v, g + o.momentum * v


@mutant("train", "", EVERY)
class gradient_of_the_mean(Stepping):
    """The loss is a mean over rows, not a sum: gradients are those divided by the batch."""

    def trained(self, case: Case, whole: bool = False) -> Arrays:
        self.rows = next(v.shape[0] for k, v in case.inputs.items() if case.roles[k] == "target")
        return super().trained(case, whole)

    def gradient(self, g: Any, x: Any, o: Any) -> Any:
        return g / self.rows


# --- clipping, and what belongs to a method's own training ------------------------------------------------------------


class Clipping(Own):
    """A mutant that clips otherwise: `factor` is what gradients are multiplied by, from their norm and the limit."""

    asks = frozenset(("fit",))

    def factor(self, norm: float, limit: float) -> float:
        return min(1.0, limit / norm)

    def clipped(self, grads: Arrays, limit: float) -> Arrays:
        norm = float(np.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in grads.values())))
        return {k: g * g.dtype.type(self.factor(norm, limit)) for k, g in grads.items()}


@mutant("fit", "", EVERY)
class clip_ignored(Clipping):
    """Gradients are not clipped."""

    def factor(self, norm: float, limit: float) -> float:
        return 1.0


@mutant("fit", "", EVERY)
class clip_always(Clipping):
    """Gradients are scaled to the limit, up too where they are below it."""

    def factor(self, norm: float, limit: float) -> float:
        return limit / norm


@mutant("fit", "torch.nn.utils.clip_grad_norm_", EVERY)
class clip_by_a_little_more(Clipping):
    """The norm by which gradients are clipped has 1e-6 added."""

    def factor(self, norm: float, limit: float) -> float:
        return min(1.0, limit / (norm + 1e-6))


@mutant("fit", "", EVERY)
class clip_by_the_square(Clipping):
    """Gradients are clipped by the square of their norm: the root is missing."""

    def factor(self, norm: float, limit: float) -> float:
        return min(1.0, limit / norm**2)


@mutant("fit", "", EVERY)
class clip_by_value(Clipping):
    """Gradients are clipped number by number, not by their norm."""

    def clipped(self, grads: Arrays, limit: float) -> Arrays:
        return {k: np.clip(g, -limit, limit) for k, g in grads.items()}


@mutant("fit", "", EVERY)
class clip_each_array(Clipping):
    """Each array's gradient is clipped by its own norm, not all by their common norm."""

    def clipped(self, grads: Arrays, limit: float) -> Arrays:
        return {k: super(clip_each_array, self).clipped({k: g}, limit)[k] for k, g in grads.items()}


@mutant("fit", "", EVERY)
class clip_by_the_largest(Clipping):
    """Gradients are scaled by their largest number, not by their norm."""

    def clipped(self, grads: Arrays, limit: float) -> Arrays:
        largest = max(float(abs(g).max(initial=0)) for g in grads.values())
        return {k: g * g.dtype.type(min(1.0, limit / largest)) for k, g in grads.items()}


@mutant("fit", "", EVERY)
class clip_after_the_step(Clipping):
    """Gradients are not clipped by the limit of the norm, but what a step moves is: the learning rate is multiplied in."""

    def trained(self, case: Case, whole: bool = False) -> Arrays:
        self.lr = case.options["optimiser"]["lr"]
        return super().trained(case, whole)

    def factor(self, norm: float, limit: float) -> float:
        return min(1.0, limit / (norm * self.lr))


RATED = Where("with a learning rate for each array", lambda cls: any(a.rate for a in declared(cls).arrays.values()))
PENALISED = Where("with a penalty", lambda cls: cls.penalty is not Method.penalty)
BETWEEN = Where(
    "that act between steps",
    lambda cls: (cls.after_step, cls.after_backward) != (Method.after_step, Method.after_backward),
)


@mutant("fit", "", RATED)
class one_rate_for_all(Own):
    """All arrays have one learning rate."""

    asks = frozenset(("fit",))

    def rate(self, method: Method, name: str) -> float:
        return 1.0


class Penalty(Own):
    """A mutant that adds so many times the penalty."""

    asks = frozenset(("fit",))
    times = 1.0

    def penalty(self, method: Method, arrays: dict[str, Arrays]) -> Any:
        found = super().penalty(method, arrays)
        return None if found is None else self.times * found


@mutant("fit", "PEFT #432", PENALISED)
class penalty_ignored(Penalty):
    """The loss has no penalty."""

    times = 0.0


@mutant("fit", "", PENALISED)
class penalty_subtracted(Penalty):
    """The penalty is subtracted from the loss."""

    times = -1.0


@mutant("fit", "", BETWEEN)
class nothing_between_steps(Own):
    """What the method does between steps is not done."""

    asks = frozenset(("fit",))

    def after_backward(self, method: Method, step: Step) -> None:
        pass

    def after_step(self, method: Method, step: Step) -> None:
        pass
