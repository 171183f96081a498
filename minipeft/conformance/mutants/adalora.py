"""Errors of AdaLoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Settings, mutant
from minipeft.conformance.own import Own, method_of
from minipeft.conformance.record.variants import More
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.method import Method
from minipeft.methods.lowrank.adalora import AdaLoRA


@mutant()
class adalora_undivided(Settings):
    """The change is not divided by the rank."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=(m.alpha if m.alpha > 0 else m.r) * (m.r + m.eps))


@mutant()
class adalora_eps_ignored(Settings):
    """The scale is α/r, not α/(r + ε)."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(eps=0.0)


class Choosing(Own):
    """A mutant that is AdaLoRA with other functions, those of `Other`."""

    asks = frozenset(("fit",))

    class Other(AdaLoRA, register=False):
        pass

    def method(self, case: Case) -> Method:
        m = method_of(case)
        return self.Other(**{f.name: getattr(m, f.name) for f in dataclasses.fields(m)})


class Sensing(Choosing):
    """A mutant that takes another I."""

    @staticmethod
    def importance(w: Any, g: Any) -> Any:
        return abs(w * g)

    def method(self, case: Case) -> Method:
        importance = self.importance

        class Other(AdaLoRA, register=False):
            def _sense(self, step: Any, now: str) -> None:
                grads, due = (
                    dict(self._every(step, "grads")),
                    now == self.sensitivity and step.t < step.total - self.tfinal,
                )
                for at, w in self._every(step) if due else ():
                    I = importance(w, grads[at])
                    mean = step.state[f"I/{at}"] = self.beta1 * step.state.get(f"I/{at}", 0) + (1 - self.beta1) * I
                    step.state[f"U/{at}"] = self.beta2 * step.state.get(f"U/{at}", 0) + (1 - self.beta2) * abs(I - mean)

        self.Other = Other  # type: ignore[misc, assignment]
        return super().method(case)


@mutant("fit")
class importance_of_the_gradient(Sensing):
    """The importance of a number is |g|, without the weight itself."""

    @staticmethod
    def importance(w: Any, g: Any) -> Any:
        return abs(g)


@mutant("fit")
class importance_of_the_weight(Sensing):
    """The importance of a number is |w|, without its gradient."""

    @staticmethod
    def importance(w: Any, g: Any) -> Any:
        return abs(w) + 0 * g


@mutant("fit")
class importance_with_a_sign(Sensing):
    """The importance of a number is w g, without the absolute value."""

    @staticmethod
    def importance(w: Any, g: Any) -> Any:
        return w * g


@mutant("fit")
class importance_unsmoothed(Settings):
    """The averages of the importance are those of the last step alone: β₁ and β₂ are nearly 0."""

    asks = frozenset(("fit",))

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(beta1=1e-12, beta2=1e-12)


@mutant("fit")
class uncertainty_ignored(Choosing):
    """A number's score is Ī, without the uncertainty Ū."""

    class Other(AdaLoRA, register=False):
        def _choose(self, step: Any) -> None:
            state = step.state
            step.state = state | {f"U/{k}": 0 * w + 1 for k, w in self._every(step)}
            super()._choose(step)
            state |= {k: v for k, v in step.state.items() if k.startswith("keep/")}
            step.state = state


@mutant("fit")
class score_of_values_alone(Choosing):
    """The score of a triplet is that of λ alone, without those of its vectors."""

    class Other(AdaLoRA, register=False):
        def _choose(self, step: Any) -> None:
            state = step.state
            step.state = {k: v for k, v in state.items() if k.endswith(":lam")}
            super()._choose(step)
            state |= {k: v for k, v in step.state.items() if k.startswith("keep/")}
            step.state = state


@mutant("fit")
class score_of_sums(Choosing):
    """The scores of a triplet's vectors are summed over their numbers, not averaged."""

    class Other(AdaLoRA, register=False):
        def _choose(self, step: Any) -> None:
            state = step.state
            sizes = {f"{s}:{n}": x.size // len(own["lam"]) for s, own in step.theta.items() for n, x in own.items()}
            step.state = state | {f"I/{k}": n * state[f"I/{k}"] for k, n in sizes.items() if f"I/{k}" in state}
            super()._choose(step)
            state |= {k: v for k, v in step.state.items() if k.startswith("keep/")}
            step.state = state


@mutant("fit")
class budget_falls_evenly(Choosing):
    """The budget falls in a straight line, not with the cube of what is left."""

    class Other(AdaLoRA, register=False):
        def budget(self, t: int, total: int, start: int, end: int) -> int:
            left = (t - self.tinit) / (total - self.tfinal - self.tinit)
            return int((start - end) * min(max(1 - left, 0), 1) + end)


@mutant("fit")
class budget_at_once(Choosing):
    """The budget is that of the end from the first choice on."""

    class Other(AdaLoRA, register=False):
        def budget(self, t: int, total: int, start: int, end: int) -> int:
            return end


@mutant("fit")
class least_important_kept(Choosing):
    """The triplets of lowest score are kept."""

    class Other(AdaLoRA, register=False):
        def _choose(self, step: Any) -> None:
            state = step.state
            step.state = {k: -v if k.startswith("I/") else v for k, v in state.items()}
            super()._choose(step)
            state |= {k: v for k, v in step.state.items() if k.startswith("keep/")}
            step.state = state


@mutant("fit")
class chosen_never_for_good(Choosing):
    """What was dropped grows back after the final choice."""

    class Other(AdaLoRA, register=False):
        def after_step(self, step: Any) -> None:
            if step.t <= step.total - self.tfinal:
                super().after_step(step)


@mutant("fit")
class warmup_ignored(Settings):
    """Triplets are dropped from the first step on: tinit is 0."""

    asks = frozenset(("fit",))

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(tinit=0)


class Orthogonal(Choosing):
    """A mutant with another penalty: `of` the distance of a Gram matrix from I."""

    @staticmethod
    def of(D: Any) -> Any:
        return ops.norm(D)

    @staticmethod
    def grams(own: Any) -> list[Any]:
        return [own["P"].T @ own["P"], own["Q"] @ own["Q"].T]

    def penalty(self, method: Any, arrays: Any) -> Any:
        found = [G - xp.eye(G.shape[0], dtype=G.dtype) for own in arrays.values() for G in self.grams(own)]
        return method.gamma / 2 * sum(self.of(D) for D in found)


@mutant("fit")
class penalty_summed(Orthogonal):
    """The penalty is the sum of both norms, not their mean."""

    @staticmethod
    def of(D: Any) -> Any:
        return 2 * ops.norm(D)


@mutant("fit")
class penalty_of_the_left_alone(Orthogonal):
    """The penalty is that of P alone, without that of Q."""

    @staticmethod
    def grams(own: Any) -> list[Any]:
        return [own["P"].T @ own["P"]]


def of_like_size(arrays: Arrays) -> Arrays:
    """Singular values among which their size decides little."""
    return arrays | {"lam": np.sign(arrays["lam"]) + 0.1 * arrays["lam"]}


BUDGET = dict(r=5, target_r=2, tinit=1, tfinal=2, beta1=0.6, beta2=0.7)
CASES = {
    "without_alpha": More(dict(alpha=0.0)),
    "budget": More(BUDGET, steps=8),
    "budget_every_other": More(BUDGET | dict(deltaT=2), steps=8, sizes="other", arrays=of_like_size),
    "sensitivity=after": More(BUDGET | dict(sensitivity="after"), steps=8),
    "orth=squared": More(dict(orth="squared"), steps=3),
}

SURVIVES = {
    "only whether it is positive is asked for": ("scale: self.alpha, times*",),
}
