"""Our side: a random model of a size, and a function that makes one step of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from minipeft.bench.cases import NEW, PROMPT, SETTINGS, filled, settings


def our_model(size: str, dtype: str = "float32") -> Any:
    """A random model of a size, in a type as `Model.astype` has it."""
    import numpy as np

    from minipeft.checkpoints import family_names
    from minipeft.engine.backend import to_device
    from minipeft.model.arch import Arch
    from minipeft.model.base import Model, converted
    from minipeft.model.parts import shapes

    s = settings(size)
    common: dict[str, Any] = dict(d=s["d"], layers=s["layers"], heads=s["heads"], ff=4 * s["d"], vocab=s["vocab"])
    if size.startswith("GPT2"):
        biased = ("qkv", "o", "up", "down")
        arch = Arch("gpt2", **common, act="gelu_tanh", fused_qkv=True, max_positions=1024, tied=True, biased=biased)
    else:
        arch = Arch("llama", **common, norm="rms", act="silu", gated=True, positions="rope", tied=True)
    rng = np.random.default_rng(0)
    params = {
        n: np.full(shape, n.endswith("weight"), np.float32)
        if len(shape) == 1
        else (0.02 * rng.standard_normal(shape, np.float32)).astype(np.float32)
        for n, shape in shapes(arch).items()
    }
    held = {n: converted(n, to_device(params.pop(n)), dtype) for n in list(params)}
    return Model(arch, held, family_names(arch))


def our_step(
    size: str, method: str, task: str = "step", graph: bool = True, dtype: str = "float32",
    given: Mapping[str, Any] = MappingProxyType({}), workers: int | str = 1,
) -> Callable[[], float]:  # fmt: skip
    """A function that makes one step and returns the loss; or runs one of the other tasks. `graph`: by graphs, on a GPU.

    `given` are settings of the method, instead of those here. `workers`: processes that share a step and the threads of this one, or "auto".
    """
    import numpy as np

    from minipeft.adapted import Adapted
    from minipeft.attaching import attach
    from minipeft.engine import backend
    from minipeft.engine.backend import keep_freed_memory, to_host
    from minipeft.engine.fast.blocks import sharing_cores
    from minipeft.method import method_class
    from minipeft.model import graph as graphs
    from minipeft.model.base import largest_matrix
    from minipeft.model.batch import batch
    from minipeft.model.generate import generate
    from minipeft.train import AdamW, State
    from minipeft.train.fast import Recorded
    from minipeft.train.loop import gradients

    keep_freed_memory()
    s, graph = settings(size), graph and backend.name() in graphs.RECORDERS
    model, rng = our_model(size, dtype), np.random.default_rng(1)
    ids = rng.integers(0, s["vocab"], (s["b"], s["t"]))
    if task == "generate":
        prompt = batch(input_ids=ids[:1, :PROMPT])
        return lambda: float(generate(Adapted(model), prompt, NEW, graph=graph)[0, -1])
    inputs = batch(input_ids=ids, labels=ids)
    if task == "forward":
        plain = Adapted(model)
        if graph:
            replayed = graphs.forward(plain)
            return lambda: float(to_host(replayed(inputs)[1]))

        def forward() -> float:
            with sharing_cores(2 * largest_matrix(model) * ids.size):
                return float(to_host(plain.loss(None, inputs)))

        return forward
    usual = filled(SETTINGS[method]["ours"], size) if method in SETTINGS else {}
    adapted = attach(model, method_class(method)(**usual | dict(given)))
    optimiser = AdamW(lr=1e-4)
    theta = dict(adapted.theta)
    if graph:
        recorded = Recorded(adapted, optimiser, State(theta, optimiser.init(theta)), dict.fromkeys(theta, 1.0), None)
        count = itertools.count(1)
        return lambda: recorded([inputs], (1e-4, None, 0, next(count), 0))
    if workers != 1:
        return Shared(adapted, inputs, optimiser, workers)
    held: dict[str, Any] = dict(theta=theta, state=optimiser.init(theta), t=0)
    lr = dict.fromkeys(theta, 1e-4)

    def step() -> float:
        loss, grads = gradients(adapted, inputs, held["theta"], rng)
        held["t"] += 1
        held["theta"], held["state"] = optimiser.step(held["theta"], grads, held["state"], held["t"], lr)
        return float(to_host(loss))

    return step


class Shared:
    """A step that workers share: a call makes one, all of them beginning together. `size` is how many they are."""

    def __init__(self, adapted: Any, inputs: Any, optimiser: Any, workers: int | str) -> None:
        from minipeft.engine.fast import blocks
        from minipeft.train import State
        from minipeft.train.workers import Workers, chosen

        threads = blocks.threads_of_library()
        self.size = chosen(adapted, [inputs], threads)[0] if workers == "auto" else int(workers)
        self.adapted, self.inputs, self.optimiser, self.ranks = adapted, inputs, optimiser, Workers(self.size)
        theta = dict(adapted.theta)
        state = State(theta, optimiser.init(theta), {a.name: {} for a in adapted.in_use}, parts=self.size)
        self.factors, self.count = dict.fromkeys(theta, 1.0), itertools.count(1)
        blocks.set_threads_of_library(max(1, threads // self.size))
        self.state = self.ranks.begin(state, dict)
        while self.ranks.rank:  # until the first process ends
            self()

    def end(self) -> None:
        """End the others."""
        self.ranks.__exit__(None, None, None)

    def __call__(self) -> float:
        from minipeft.train.loop import one

        self.ranks.told(None)
        at = (1e-4, None, 0, next(self.count), 0)
        return one(self.adapted, [self.inputs], self.state, self.optimiser, self.factors, at, exchange=self.ranks)
