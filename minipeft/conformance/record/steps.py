"""Training by equations written apart: of the optimisers here, of methods in their witnesses."""

from __future__ import annotations

import dataclasses

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.own import Own
from minipeft.conformance.places import Arrays
from minipeft.conformance.witnesses import training_of

OWN = Own()


def trained(case: Case) -> tuple[Arrays, list[float]]:
    """The arrays after the steps by equations written apart, with gradients from the vjp; and the norm of the gradients at each.

    Of a `fit` with all that belongs to the method's training, by its witness.
    """
    o, method = case.options["optimiser"], OWN.method(case)
    apart = training_of(case.method if case.ask == "fit" else "")
    theta = {k: v.copy() for k, v in case.named("array").items()}
    fixed, rates = case.named("stored"), apart.rates(method)
    m = {k: np.zeros_like(v) for k, v in theta.items()}
    v2 = {k: np.zeros_like(v) for k, v in theta.items()}
    kept: Arrays = {}
    norms = []
    for t in range(1, o["steps"] + 1):
        grads = slopes(case, theta)
        for k, g in apart.added(method, theta).items():
            grads[k] = grads[k] + g
        grads = apart.before(method, t, o["steps"], theta, grads, fixed, kept)
        norms.append(float(np.sqrt(sum((g**2).sum() for g in grads.values()))))
        if o.get("clip", np.inf) < norms[-1]:
            grads = {k: g * o["clip"] / norms[-1] for k, g in grads.items()}
        for k, x in theta.items():
            lr = o["lr"] * rates.get(k, 1.0)
            if o["kind"] == "sgd":
                m[k] = step = o["momentum"] * m[k] + grads[k]
            else:
                m[k] = o["beta1"] * m[k] + (1 - o["beta1"]) * grads[k]
                v2[k] = o["beta2"] * v2[k] + (1 - o["beta2"]) * grads[k] ** 2
                step = (m[k] / (1 - o["beta1"] ** t)) / (np.sqrt(v2[k] / (1 - o["beta2"] ** t)) + o["eps"])
            theta[k] = x - lr * step - lr * o["weight_decay"] * x
        theta = apart.after(method, t, o["steps"], theta, grads, fixed, kept)
    return theta, norms


def slopes(case: Case, theta: Arrays) -> Arrays:
    """The gradients of ½ Σ (output − target)² by the trained arrays, from the vjp."""
    now = dataclasses.replace(case, inputs={**case.inputs, **theta})
    out = OWN.forward(now)
    g = {f"g.{k}": out[k] - case.inputs[f"target.{k}"] for k in out}
    roles = {**now.roles, **dict.fromkeys(g, "cotangent")}
    found = OWN.vjp(dataclasses.replace(now, inputs={**now.inputs, **g}, roles=roles))
    return {k: found[k] for k in theta}
