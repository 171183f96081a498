"""Errors of training: of optimisers, of weight decay, of what is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import EVERY, Arrays, mutant
from minipeft.conformance.own import Own
from minipeft.train import SGD, AdamW


class Settings(Own):
    """A mutant that reads the settings of an optimiser otherwise."""

    def settings(self, o: Mapping[str, Any]) -> Mapping[str, Any]:
        return o

    def train(self, case: Case) -> Arrays:
        o = case.options["optimiser"]
        return super().train(
            dataclasses.replace(case, options={**case.options, "optimiser": {**o, **self.settings(o)}})
        )


@mutant("train", "", EVERY)
class base_trained(Own):
    """Weight decay reaches the frozen weight."""

    def train(self, case: Case) -> Arrays:
        theta = super().train(case)
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

    def train(self, case: Case) -> Arrays:
        self.rows = next(v.shape[0] for k, v in case.inputs.items() if case.roles[k] == "target")
        return super().train(case)

    def gradient(self, g: Any, x: Any, o: Any) -> Any:
        return g / self.rows
