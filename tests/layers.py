"""One linear or table with a method on it, without a model around: for tests of what a method computes at one place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from minipeft.engine import ops, value_and_grad
from minipeft.method import Base, Method, Site, frozen
from minipeft.model.arch import Arch

ARCH = Arch("llama", d=12, layers=1, heads=2, ff=20, vocab=9)


def site(W: np.ndarray, kind: str = "linear", name: str = "layers.0.attn.q.weight") -> Site:
    return Site(name, W.shape, kind, ARCH, W)


def arrays(method: Method, where: Site, rng: np.random.Generator, moved: float = 0.0) -> dict[str, Any]:
    """The method's arrays there; trained ones moved by `moved` times a normal."""
    out = {}
    for name, a in (method.shared([where], rng) | method.init(where, rng)).items():
        is_stored = isinstance(a, frozen)
        a = np.asarray(a.array if is_stored else a)
        out[name] = a if is_stored or not moved else a + moved * rng.standard_normal(a.shape)
    return out


def base(W: np.ndarray, b: np.ndarray | None = None, table: bool = False) -> Base:
    return Base(W, b, (lambda x: W[x]) if table else (lambda x: ops.linear(x, W, b)), table)


def here(**facts: Any) -> SimpleNamespace:
    """An evaluation pass: no dropout, no sampling; `facts` on top."""
    known = dict(
        host=facts.get, train=False, dropout=lambda x, p: x, state={}, site="layers.0.attn.q.weight", arch=ARCH
    )
    return SimpleNamespace(**known | facts)


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
        self.grads = {self._short(k): p.grad.numpy() for k, p in trained.items()}
        self.y = y.detach().numpy()

    @staticmethod
    def _short(key: str) -> str:
        return key.split(".lin.")[1].replace(".default", "")

    def merged(self) -> np.ndarray:
        return self.model.merge_and_unload().lin.weight.detach().numpy()


def forward_and_grads(
    method: Method, theta: dict, rest: dict, under: Base, x: Any, c: Any, **facts: Any
) -> tuple[Any, dict]:
    """The output at x and the gradients of sum(y · c) with respect to theta."""

    def f(t: dict) -> Any:
        y = method.forward(x, under, here(**facts), **t, **rest)
        return ops.sum(y * c), y

    (_, y), grads = value_and_grad(f)(theta)
    return getattr(y, "value", y), grads
