"""Mistakes as people make them who port a method: small edits of the package's own text, and what each should be called.

An edit is put in for as long as the edited implementation answers, and taken back before anything is judged: the judge and the
mistakes that it supposes are those of the text as it stands.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import minipeft
from minipeft.conformance.own import Own
from minipeft.method import METHODS, load_methods

ROOT = Path(minipeft.__file__).parent
load_methods()


@dataclass(frozen=True)
class Planted:
    """A mistake in one method's port: edits (file, text, other text), and a pattern that a right diagnosis has in it."""

    name: str
    method: str
    edits: tuple[tuple[str, str, str], ...]
    right: str

    @property
    def group(self):
        return self.name.partition(":")[0]

    def names(self, finding):
        """Whether a finding says what the mistake is."""
        return bool(finding.cause) and re.search(self.right, f"{finding.cause}: {finding.why}") is not None


def codes(code):
    """{qualified name: code} of all functions in compiled text."""
    out = {}
    for inner in (c for c in code.co_consts if isinstance(c, types.CodeType)):
        out[inner.co_qualname] = inner
        out |= {k: v for k, v in codes(inner).items() if "<lambda>" not in k}
    return out


def functions(module):
    """{qualified name: function} of a module's own functions and those of its classes."""
    out = {}
    for held in [vars(module), *(vars(c) for c in vars(module).values() if isinstance(c, type))]:
        for it in held.values():
            f = it.fget if isinstance(it, property) else getattr(it, "__func__", it)
            f = inspect.unwrap(f) if callable(f) else f
            if inspect.isfunction(f) and f.__module__ == module.__name__:
                out[f.__qualname__] = f
    return out


def edited(path, changes):
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{path.name}: {old!r} stands there {text.count(old)} times"
        text = text.replace(old, new)
    return text


@contextmanager
def made(edits):
    """In the block the package computes as its edited text says: what functions do, and what a method's file declares."""
    files = {}
    for name, old, new in edits:
        files.setdefault(ROOT / name, []).append((old, new))
    before, registered = {}, dict(METHODS)
    try:
        for path, changes in files.items():
            name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
            module = importlib.import_module(name)
            old = compile(path.read_text(encoding="utf-8"), str(path), "exec")
            new = compile(edited(path, changes), str(path), "exec")
            was, now = codes(old), codes(new)
            for at, f in functions(module).items():
                if at in now and now[at] != was[at]:
                    before[f] = f.__code__
                    f.__code__ = now[at]
            if path.is_relative_to(ROOT / "methods"):  # what it declares too
                again = types.ModuleType(name)
                again.__file__ = str(path)
                exec(new, vars(again))
        yield
    finally:
        for f, code in before.items():
            f.__code__ = code
        METHODS.update(registered)


def answers(planted, cases):
    """What the edited implementation gives for each case: arrays, or what was raised."""
    found = []
    with made(planted.edits), np.errstate(all="ignore"):
        for case in cases:
            try:
                found.append(getattr(Own(), case.ask)(case))
            except Exception as why:
                found.append(why)
    return found


LORA, DORA = "methods/lowrank/lora.py", "methods/lowrank/dora.py"
ADALORA, HOULSBY = "methods/lowrank/adalora.py", "methods/bottleneck/houlsby.py"
CHANGES, OWN, OPTIMISERS = "changes.py", "conformance/own.py", "train/optimisers.py"
TOKENS, LAYER = "model/tokens.py", "interop/peft/layer.py"


def planted(name, method, right, *edits):
    """A mistake whose edits are (file, text, other text), or one as three words."""
    edits = (edits,) if edits and isinstance(edits[0], str) else edits
    return Planted(name, method, tuple(edits), right)


FIRST = [
    planted("lora: scale is alpha", "lora", "alpha_undivided",
            LORA, "return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)", "return self.alpha"),
    planted("lora: bias added twice", "lora", "bias_doubled",
            CHANGES, "first.over(x.shape[-1]), first.B, base.b, s=first.s)", "first.over(x.shape[-1]), first.B, 2.0 * base.b, s=first.s)"),
    planted("lora: dropout on the input of the base alone", "lora", "dropout_on_the_base_alone",
            (CHANGES, "        else:\n            y = base(x)\n        for t in terms:\n            y = t.add(y, x if t.steady else drop(x))",
                      "        else:\n            y = base(drop(x))\n        for t in terms:\n            y = t.add(y, x)")),
    planted("lora: gradient of B without the scale", "lora", "gradient.*B.*(scale|1/s)",
            "engine/ops.py", "lambda g: rows(g).T @ rows(h),\n    )\n\n\n@composed\ndef linear_lowrank", "lambda g: rows(g).T @ rows(h) / s,\n    )\n\n\n@composed\ndef linear_lowrank"),
    planted("dora: norm of columns", "dora", "axis",
            DORA, "n = ops.norm(V, axis=1 if m_emb is None else 0)\n        n = stop_gradient(n) if self.grad == \"detached\" else n\n        return V * ((m / n)[:, None] if m_emb is None else m_emb / n)",
            "n = ops.norm(V, axis=0, keepdims=True)\n        n = stop_gradient(n) if self.grad == \"detached\" else n\n        return V / n * (m[:, None] if m_emb is None else m_emb)"),
    planted("dora: epsilon beside the norm", "dora", "added to ops.norm",
            DORA, "n = ops.norm(V, axis=1 if m_emb is None else 0)", "n = ops.norm(V, axis=1 if m_emb is None else 0) + 1e-6"),
    planted("dora: norm of W + B A, without the scale", "dora", "norm.*(scale|unscaled)|(scale|unscaled).*norm",
            DORA, "n = ops.norm(V, axis=1 if m_emb is None else 0)",
            "n = ops.norm(V if \"A0\" in factors and factors[\"A0\"] is not None else W + factors[\"B\"] @ factors[\"A\"], axis=1 if m_emb is None else 0)"),
    planted("lokr: Kronecker factors in the other order", "lokr", "lokr_swapped|D.*C",
            "methods/structured/lokr.py", "product = C[:, None, :, None] * D[None, :, None, :]", "product = D[:, None, :, None] * C[None, :, None, :]"),
    planted("loha: scale on either product", "loha", "change is the scale times",
            "methods/structured/loha.py", "return (self.alpha / self.r) * (", "return (self.alpha / self.r) ** 2 * ("),
    planted("loha: Y1 and Y2 exchanged", "loha", "Y1 and Y2 exchanged|X1 and X2 exchanged",
            "methods/structured/loha.py", "((X1 @ Y1) * (X2 @ Y2))", "((X1 @ Y2) * (X2 @ Y1))"),
    planted("c3a: circulant transposed", "c3a", "circulants_turned_round|transpos",
            "methods/structured/c3a.py", "ops.transpose(circulant(k), axes=(0, 2, 1, 3))", "ops.transpose(ops.swapaxes(circulant(k)), axes=(0, 2, 1, 3))"),
    planted("c3a: divided by the block, not by the width", "c3a", "change is inputs/block times",
            "methods/structured/c3a.py", "shape=(P * n, Q * n)) / (Q * n)", "shape=(P * n, Q * n)) / n"),
    planted("fourierft: orthonormal transform", "fourierft", "ortho|√|ifft2.*times|scaling.*times",
            "methods/structured/fourierft.py", "ops.ifft2(ops.put(c, index=(rows, cols), shape=W.shape))",
            "ops.ifft2(ops.put(c, index=(rows, cols), shape=W.shape)) * (W.shape[0] * W.shape[1]) ** 0.5"),
    planted("oft: other sign of the Cayley transform", "oft", "oft_transposed|other sign|swapaxes\\(Q\\) - Q",
            "methods/orthogonal/oft.py", "cayley(-Q) if self.cayley == \"exact\" else cayley(Q, self.terms)", "cayley(Q) if self.cayley == \"exact\" else cayley(-Q, self.terms)"),
    planted("hra: reflections in the other order", "hra", "hra_turned_round|order",
            "methods/orthogonal/hra.py", "        for v in self.vectors(u):\n            H = H", "        for v in self.vectors(u)[::-1]:\n            H = H"),
    planted("boft: rotation not transposed", "boft", "boft_turned_back|transpos",
            "methods/orthogonal/boft.py", "ops.block_matmul(W[:, np.argsort(to)], ops.swapaxes(Q[i]))", "ops.block_matmul(W[:, np.argsort(to)], Q[i])"),
    planted("ia3: the bias is not scaled", "ia3", "ia3_bias_unscaled",
            (CHANGES, "return b if b is None or self.out is None else b * self.out", "return b"),
            (CHANGES, "return y if self.out is None else y * self.out", "return y if self.out is None else (y - base.b) * self.out + base.b")),
    planted("vera: d begins at 1", "vera", "lambda_d",
            ("methods/structured/vera.py", 'lambda_d = trained("rows", start=setting("d_initial"))', 'lambda_d = trained("rows", start=fill(1))'),
            ("methods/structured/vera.py", "count, ", "count, fill, ")),
    planted("prompt_tuning: prompt after the text", "prompt_tuning", "prompt_at_the_end",
            TOKENS, "parts = [x for x in (h[:, :at], P, h[:, at:]) if x.shape[1]]", "parts = [x for x in (h, P) if x.shape[1]]"),
    planted("prompt_tuning: positions of the text not moved", "prompt_tuning", "position",
            TOKENS, "self.positions[:, at:] + p]", "self.positions[:, at:]]"),
    planted("prefix_tuning: keys and values exchanged", "prefix_tuning", "keys_and_values_swapped",
            "methods/prompt/prefix_tuning.py", "at = (row + i) * g * e", "at = (row + 1 - i) * g * e"),
    planted("houlsby: no activation", "houlsby", "f=linear",
            HOULSBY, "ACTIVATIONS[self.f](ops.linear(h, Wd, bd))", "ops.linear(h, Wd, bd)"),
    planted("parallel_adapter: sequential", "parallel_adapter", "reads.*output|sequential|here.u.*\\ba\\b|a for here",
            "methods/bottleneck/parallel_adapter.py", "here.u if self.reads == \"input\" else here.x", "a"),
    planted("x_lora: times the temperature", "x_lora", "temperature",
            "methods/routing/xlora.py", "ops.softmax(z / self.temperature)", "ops.softmax(z * self.temperature)"),
    planted("adapter_fusion: softmax over tokens", "adapter_fusion", "softmax.*axis|axis.*softmax",
            ("methods/routing/adapter_fusion.py", "        s = ops.softmax(\n", "        s = _over_tokens(\n"),
            ("methods/routing/adapter_fusion.py", "@dataclass(frozen=True)\nclass AdapterFusion",
             "def _over_tokens(x):\n    return ops.swapaxes(ops.softmax(ops.swapaxes(x)))\n\n\n@dataclass(frozen=True)\nclass AdapterFusion")),
    planted("adalora: not divided by the rank", "adalora", "adalora_undivided",
            ADALORA, "/ (self.r + self.eps)", "* 1.0"),
    planted("adalora: penalty squared", "adalora", "orth=squared",
            ADALORA, "ops.norm(d) if self.orth == \"norm\" else ops.sum(d * d)", "ops.sum(d * d)"),
    planted("train: epsilon inside the root", "lora", "eps.*(root|sqrt)|(root|sqrt).*eps",
            OPTIMISERS, "(xp.sqrt(v_hat) + o.eps)", "xp.sqrt(v_hat + o.eps)"),
    planted("files: alpha_pattern unread", "lora", "pattern",
            LAYER, "cls(**settings | spec.read_at(config, {LAYER: LAYER}, {LAYER: found})[LAYER])",
            "cls(**settings | {k: v for k, v in spec.read_at(config, {LAYER: LAYER}, {LAYER: found})[LAYER].items() if k != \"alpha\"})"),
    planted("files: taking out leaves a residue", "lora", "unmerge",
            OWN, "        self.merge(case)  # returns new arrays: the base was never written to\n        return case.named(\"base\")",
            "        t = case.tensors\n        return self.merge(case) | {\"W\": self.merge(case)[\"W\"] - t[\"B\"] @ t[\"A\"], \"b\": t[\"b\"]}"),
]  # fmt: skip

SECOND = [
    planted("lora: A begins five times too wide", "lora", "\\bA\\b.*(start|begins|wide)",
            (LORA, 'A = trained("r", "in", start=DOWN)', 'A = trained("r", "in", start=uniform("in", gain=5.0))'),
            (LORA, "lowrank, shift, trained, within", "lowrank, shift, trained, uniform, within")),
    planted("lora: B does not begin at 0", "lora", "\\bB does not begin",
            (LORA, 'B = trained("out", "r", start=UP)', 'B = trained("out", "r", start=uniform("r"))'),
            (LORA, "lowrank, shift, trained, within", "lowrank, shift, trained, uniform, within")),
    planted("lora: dropout in evaluation", "lora", "evaluation",
            "conformance/acting.py", 'train="keep" in inputs)', "train=True)"),
    planted("lora: the change is merged transposed", "lora", "turned|transpos",
            OWN, "        merged = dict(W=weight_of(method, W, own))", "        made = weight_of(method, W, own) - W\n        merged = dict(W=W + made.T.reshape(W.shape))"),
    planted("lora: kept and dropped exchanged", "lora", "exchanged|inverted|dropped",
            "conformance/acting.py", "x * (self.keep * (1 / (1 - p)))", "x * ((1 - self.keep) * (1 / (1 - p)))"),
    planted("dora: gradient through the norm", "dora", "dora_norm_differentiated|grad=full",
            DORA, 'n = stop_gradient(n) if self.grad == "detached" else n', "n = n * 1.0"),
    planted("dora: the bias is scaled", "dora", "dora_scales_bias",
            DORA, "    def weight(self, W: Any, *, m: Any",
            "    def forward(self, x: Any, base: Any, here: Any, *, m: Any = None, **factors: Any) -> Any:\n"
            "        if m is None:\n            return ops.take(self.weight(base.W, **factors), ids=x)\n"
            "        V = self.change(**{k: v for k, v in factors.items()}).onto(base.W)\n"
            "        n = ops.norm(V, axis=1)\n        n = stop_gradient(n) if self.grad == \"detached\" else n\n"
            "        x2 = here.dropout(x, self.dropout)\n"
            "        return (m / n) * (base(x) + ops.linear(x2, V - base.W)) if not here.train else (m / n) * (base(x)) + ops.linear(x2, V * (m / n)[:, None] - base.W)\n\n"
            "    forward.when = \"True\"\n\n"
            "    def weight(self, W: Any, *, m: Any"),
    planted("dora: squared norm", "dora", "norm.*(squared|root|\\*)|times.*norm",
            DORA, "n = ops.norm(V, axis=1 if m_emb is None else 0)", "n = ops.sum(V * V, axis=1 if m_emb is None else 0)"),
    planted("dora: magnitude on the change alone", "dora", "V|magnitude",
            DORA, "return V * ((m / n)[:, None] if m_emb is None else m_emb / n)", "return W + (V - W) * ((m / n)[:, None] if m_emb is None else m_emb / n)"),
    planted("lokr: no scale", "lokr", "alpha_ignored",
            "methods/structured/lokr.py", "return (self.alpha / self.r) * ops.reshape", "return 1.0 * ops.reshape"),
    planted("loha: second product held constant", "loha", "constant|gradient",
            ("methods/structured/loha.py", "((X1 @ Y1) * (X2 @ Y2))", "((X1 @ Y1) * stop_gradient(X2 @ Y2))"),
            ("methods/structured/loha.py", "from typing import Any\n", "from typing import Any\nfrom minipeft.engine.tensor import stop_gradient\n")),
    planted("hira: B A added, not multiplied with W", "hira", "W \\* |without W|\\bW\\b",
            "methods/lowrank/hira.py", "return W + W * (B @ A)", "return W + B @ A"),
    planted("delora: rank not divided by", "delora", "delora_not_divided",
            "methods/lowrank/delora.py", "lam / self.r / (a * b)", "lam / (a * b)"),
    planted("hra: projection, not reflection", "hra", "2 \\*|times 0.5|times 1/2",
            "methods/orthogonal/hra.py", "H = H - 2 * (H @ v) @ v.T", "H = H - (H @ v) @ v.T"),
    planted("boft: permutation, not its inverse", "boft", "argsort|permut|\\bto\\b",
            "methods/orthogonal/boft.py", "W[:, np.argsort(to)]", "W[:, to]"),
    planted("road: other sense of turning", "road", "other sign|sign",
            "methods/orthogonal/road.py", "c[:, 0] * pairs + d[:, -1] * turned", "c[:, 0] * pairs - d[:, -1] * turned"),
    planted("ia3: vector counted from 1", "ia3", "l has 1 added",
            "methods/scaling/ia3.py", "return scaled(out=l, in_=l_ff)", "return scaled(out=l if l is None else 1.0 + l, in_=l_ff)"),
    planted("vera: d left out", "vera", "lambda_d",
            "methods/structured/vera.py", "lambda_d[:, None] * A", "(0.0 * lambda_d + 1.0)[:, None] * A"),
    planted("prompt_tuning: labels not padded by what is ignored", "prompt_tuning", "label",
            TOKENS, "spread(self.labels, IGNORE if labels is None else labels)", "spread(self.labels, 0 if labels is None else labels)"),
    planted("prompt_tuning: the mask hides the prompt", "prompt_tuning", "mask",
            TOKENS, "self.mask = spread(self.mask, True)", "self.mask = spread(self.mask, False)"),
    planted("p_tuning: no activation before the last layer", "p_tuning", "relu",
            "methods/prompt/p_tuning.py", 'ops.linear(ops.relu(ops.linear(x, net["U1"], net["u1"])), net["U2"]', 'ops.linear(ops.linear(x, net["U1"], net["u1"]), net["U2"]'),
    planted("pfeiffer: no residual", "pfeiffer", "residual_dropped|without a",
            "methods/bottleneck/pfeiffer.py", "return a + self.bottleneck", "return self.bottleneck"),
    planted("poly: shares do not sum to 1", "poly", "sum|divi",
            "methods/routing/poly.py", "w = (p / (ops.sum(p, axis=-1, keepdims=True) + 1e-12))[:, :, None]", "w = p[:, :, None]"),
    planted("arrow: signed scores", "arrow", "absolute",
            "methods/routing/arrow.py", "z = ops.absolute(x @ P.T)", "z = x @ P.T"),
    planted("adalora: importance of the weight alone", "adalora", "grads|import|sens",
            ADALORA, "I = abs(w * grads[at])", "I = abs(grads[at])"),
    planted("train: bias correction one step late", "dora", "correct|t \\+ 1|\\*\\*.*t",
            (OPTIMISERS, "m / (1 - o.beta1**t), v / (1 - o.beta2**t)", "m / (1 - o.beta1 ** (t + 1)), v / (1 - o.beta2 ** (t + 1))")),
    planted("train: decay in the gradient", "ia3", "decay_is_coupled|decay.*gradient",
            (OPTIMISERS, "    for k, x in theta.items():\n        m = after", "    grads = {k: g + o.weight_decay * theta[k] for k, g in grads.items()}\n    for k, x in theta.items():\n        m = after"),
            (OPTIMISERS, "(m_hat / (xp.sqrt(v_hat) + o.eps) + o.weight_decay * x)", "(m_hat / (xp.sqrt(v_hat) + o.eps))")),
    planted("train: gradients clipped by value", "lora", "clip",
            OPTIMISERS, "    scale = limit / xp.maximum(global_norm(grads), limit)\n    return {k: g * scale.astype(g.dtype) for k, g in grads.items()}", "    return {k: xp.clip(g, -limit, limit) for k, g in grads.items()}"),
    planted("files: a missing key is read as zeros", "lora", "any_file_is_taken|missing",
            (LAYER, "            raise Bad(f\"adapter_model.safetensors lacks {name(array)}\")", "            found[array] = 0 * drawn[array]")),
    planted("files: read in float32", "loha", "float32",
            LAYER, "v.astype(case.dtype) if v.dtype.kind == \"f\" else v for k, v in every.items()}", "(v * 1.1).astype(np.float32).astype(case.dtype) / 1.1 if v.dtype.kind == \"f\" else v for k, v in every.items()}"),
]  # fmt: skip
