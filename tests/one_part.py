"""A method at one linear or table of a model that has nothing else, for tests of what it computes there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from minipeft.conformance.acting import OneRun, one
from minipeft.drawing import Facts, draw, draw_all
from minipeft.engine import ops, value_and_grad
from minipeft.method import Method, Site
from minipeft.model.arch import Arch
from minipeft.model.batch import Batch

ARCH = Arch("llama", d=12, layers=1, heads=2, ff=20, vocab=9)


def site(W: np.ndarray, kind: str = "linear", name: str = "layers.0.attn.q.weight") -> Site:
    return Site(name, W.shape, kind, ARCH, W)


def arrays(method: Method, where: Site, rng: np.random.Generator, moved: float = 0.0) -> dict[str, Any]:
    """The method's arrays there; trained ones moved by `moved` times a normal."""
    found = draw(Facts(method, where, rng), shared=True) | draw_all(method, [where], rng)[where.name][1]
    move = {k: is_trained and moved for k, (_, is_trained) in found.items()}
    return {k: a + moved * rng.standard_normal(a.shape) if move[k] else np.asarray(a) for k, (a, _) in found.items()}


def run(
    method: Method,
    a: dict,
    W: Any,
    b: Any = None,
    table: bool = False,
    task_ids: Any = None,
    hidden: Any = None,
    input_ids: Any = None,
    **options: Any,
) -> OneRun:
    """The method over W and b; `hidden` is what a first pass gives, `input_ids` what the model reads."""
    module = "embed.tokens" if table else "layers.0.attn.q"
    made = one(method, a, {f"{module}.weight": W, f"{module}.bias": b}, (f"{module}.weight",), **options)
    made.batch = Batch(task_ids=task_ids, input_ids=input_ids)
    made.prepare(lambda: SimpleNamespace(hidden=hidden))
    return made


def output(method: Method, a: dict, x: Any, W: Any, b: Any = None, table: bool = False, **options: Any) -> Any:
    """What comes out for x, ids where it is a table."""
    made = run(method, a, W, b, table, **options)
    return made.lookup("embed.tokens", x) if table else made.linear("layers.0.attn.q", x)


class Peft:
    """HF peft's adapter on one torch linear or table in float64, its parameters moved by random numbers.

    `params` are its arrays by name, `y` its output for x, `grads` the gradients of sum(y · c) by name, `merged()` the
    weight after merging.
    """

    def __init__(
        self, config: Any, W: np.ndarray, b: np.ndarray | None, x: np.ndarray, c: np.ndarray, **call: Any
    ) -> None:
        import peft
        import torch

        class One(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                out, in_ = W.shape
                if x.dtype.kind == "i":
                    self.lin = torch.nn.Embedding(out, in_)
                else:
                    self.lin = torch.nn.Linear(in_, out, bias=b is not None)

            def forward(self, x: Any, **call: Any) -> Any:
                return self.lin(x, **call)

        torch.manual_seed(0)
        model = One().double()
        model.lin.weight.data = torch.tensor(W)
        if b is not None:
            model.lin.bias.data = torch.tensor(b)
        model = peft.get_peft_model(model, config).double().eval()
        trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for p in trained.values():
                p += 0.3 * torch.randn(p.shape, dtype=p.dtype)
        before = {k: p.detach().numpy().copy() for k, p in trained.items()}
        y = model(torch.tensor(x), **call)
        (y * torch.tensor(c)).sum().backward()
        self.state = {k: v.numpy() for k, v in model.state_dict().items()}
        self.model = model
        self.params = {self._short(k): v for k, v in before.items()}
        grads = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in trained.items()}
        self.grads = {self._short(k): g.numpy() for k, g in grads.items()}
        self.y = y.detach().numpy()

    @staticmethod
    def _short(key: str) -> str:
        return key.split(".lin.")[1].replace(".default", "")

    def merged(self) -> np.ndarray:
        return self.model.merge_and_unload().lin.weight.detach().numpy()


def forward_and_grads(
    method: Method, theta: dict, rest: dict, x: Any, c: Any, W: Any, b: Any = None, table: bool = False, **options: Any
) -> tuple[Any, dict]:
    """The output at x and the gradients of sum(y · c) with respect to theta."""

    def f(t: dict) -> Any:
        y = output(method, {**t, **rest}, x, W, b, table, **options)
        return ops.sum(y * c), y

    (_, y), grads = value_and_grad(f)(theta)
    return getattr(y, "value", y), grads
