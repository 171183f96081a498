"""Time and memory of a training step, of a forward pass and of generation, beside torch with PEFT and transformers.

Each side runs in a process of its own with the same number of threads, and they take turns: a round is some steps of one,
then some of the other, so that what else the machine does falls on both. A step is forward, backward and AdamW in float32, on
Llama-shaped models with tied heads and a gated feed-forward of width 4 d, or on one shaped like GPT-2 small. Memory is the
peak of the process's resident set during a step, less what it held before the model was made. (IA)³ scales k, v and the
input of the down projection on both sides. PEFT has no Houlsby adapters: a torch module of the same arithmetic stands in for
them. `forward` and `generate` are of the base model alone.

With the base in bfloat16 (`dtype`) our activations, and all but the products with it, stay float32; on the other side
the whole model is bfloat16, as its users have it, and PEFT keeps the adapters in float32.

On a GPU ours is replayed as CUDA graphs, as by `fit(graph=True)`, `graph.forward` and `generate(graph=True)`, which records one for
each generation; each side fetches its loss in every step. Memory is the most that arrays held at once, the model included: by
CuPy's memory hook, and by torch's max_memory_allocated.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from minipeft.errors import Bad, near
from minipeft.processes import end_group, own_group

# width, layers, heads, tokens a row, rows, vocabulary
SIZES = {
    "S": dict(d=64, layers=2, heads=4, t=64, b=8, vocab=128),
    "M": dict(d=256, layers=4, heads=4, t=128, b=8, vocab=512),
    "L": dict(d=512, layers=8, heads=8, t=128, b=8, vocab=4096),
    "XL": dict(d=1024, layers=12, heads=16, t=512, b=8, vocab=4096),
    "GPT2": dict(d=768, layers=12, heads=12, t=128, b=2, vocab=50257),
}
METHODS = ("lora", "prefix_tuning", "oft", "dora", "ia3", "houlsby")
TASKS = ("step", "forward", "generate")
STEPS = {"S": 20, "M": 4, "L": 1, "XL": 1, "GPT2": 1}  # of a turn
PROMPT, NEW = 16, 64  # tokens of a generation, of one row
LENGTHS, RANKS = (64, 128, 256, 512, 1024, 2048), (1, 4, 16, 64)


def settings(size: str) -> dict[str, int]:
    """The numbers of a size, some replaced: "M,t=512,b=1,r=4". Raises `Bad` for one that is unknown."""
    name, *changes = size.split(",")
    if name not in SIZES:
        raise Bad(f"{name!r}: expected one of {', '.join(SIZES)}{near(name, SIZES)}")
    return SIZES[name] | {"r": 8} | {k: int(v) for k, _, v in (c.partition("=") for c in changes)}


# --- our side ---------------------------------------------------------------------------------------------------------


def our_model(size: str, dtype: str = "float32") -> Any:
    """A random model of a size, in a type as `Model.astype` has it."""
    from minipeft.checkpoints import family_names
    from minipeft.engine.backend import to_device
    from minipeft.model.arch import Arch, Model, converted
    from minipeft.model.transformer import shapes

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
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[], float]:  # fmt: skip
    """A function that makes one step and returns the loss; or runs one of the other tasks. `graph`: by graphs, on a GPU.

    `given` are settings of the method, instead of those here.
    """
    from minipeft.engine import backend
    from minipeft.engine.backend import keep_freed_memory, to_host
    from minipeft.engine.fast.blocks import sharing_cores
    from minipeft.method import method_class
    from minipeft.model import graph as graphs
    from minipeft.model.arch import batch
    from minipeft.model.generate import generate
    from minipeft.run import Adapted, attach
    from minipeft.train import AdamW, State
    from minipeft.train.fast import Recorded, largest_matrix
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
            with sharing_cores(2 * largest_matrix(plain) * ids.size):
                return float(to_host(plain.loss(None, inputs)))

        return forward
    made: dict[str, Any] = {"lora": dict(r=s["r"], targets="all-linear"), "dora": dict(r=s["r"], targets="all-linear"),
            "oft": dict(block=32, targets="all-linear"), "prefix_tuning": dict(p=16)}  # fmt: skip
    adapted = attach(model, method_class(method)(**made.get(method, {}) | dict(given)))
    optimiser = AdamW(lr=1e-4)
    theta = dict(adapted.theta)
    if graph:
        recorded = Recorded(adapted, optimiser, State(theta, optimiser.init(theta)), dict.fromkeys(theta, 1.0), None)
        count = itertools.count(1)
        return lambda: recorded([inputs], (1e-4, None, 0, next(count), 0))
    held: dict[str, Any] = dict(theta=theta, state=optimiser.init(theta), t=0)
    lr = dict.fromkeys(theta, 1e-4)

    def step() -> float:
        loss, grads = gradients(adapted, inputs, held["theta"], rng)
        held["t"] += 1
        held["theta"], held["state"] = optimiser.step(held["theta"], grads, held["state"], held["t"], lr)
        return float(to_host(loss))

    return step


# --- theirs -----------------------------------------------------------------------------------------------------------


def their_model(size: str) -> Any:
    """A random model of the same shape in transformers, without dropout."""
    import transformers

    s = settings(size)
    if size.startswith("GPT2"):
        none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**none))
    config = transformers.LlamaConfig(
        hidden_size=s["d"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"], intermediate_size=4 * s["d"],
        vocab_size=s["vocab"], tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def with_bottlenecks(model: Any) -> Any:
    """The Llama-shaped torch model with a Houlsby adapter after every sub-layer, everything else frozen."""
    import torch

    class Bottleneck(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            d = base.out_features
            self.base, self.down, self.up = base, torch.nn.Linear(d, d // 16), torch.nn.Linear(d // 16, d)

        def forward(self, x: Any) -> Any:
            a = self.base(x)
            return a + self.up(torch.nn.functional.silu(self.down(a.to(self.down.weight.dtype)))).to(a.dtype)

    for p in model.parameters():
        p.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj = Bottleneck(layer.self_attn.o_proj)
        layer.mlp.down_proj = Bottleneck(layer.mlp.down_proj)
    return model


def peft_step(
    size: str, method: str, task: str = "step", compiled: bool = False, dtype: str = "float32"
) -> Callable[[], float]:
    """The same in torch + PEFT, or transformers, as their users write it; `compiled` by torch.compile."""
    import peft
    import torch

    s = settings(size)
    place = "cuda" if on_gpu() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(os.environ.get("MINIPEFT_TF32"))
    model = their_model(size).to(place, getattr(torch, dtype))
    ids = torch.randint(0, s["vocab"], (s["b"], s["t"])).to(place)
    if task == "generate":
        model.eval().generation_config.eos_token_id = None
        prompt = ids[:1, :PROMPT]
        asked: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0)
        if compiled:  # with a cache of one shape, or every token would be compiled anew
            model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
            asked["cache_implementation"] = "static"
        return lambda: float(model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)[0, -1])
    if task == "forward":
        model = torch.compile(model.eval()) if compiled else model.eval()

        def forward() -> float:
            with torch.no_grad():
                return model(input_ids=ids, labels=ids).loss.item()

        return forward
    downs = ["down_proj"]
    made = {
        "lora": lambda: peft.LoraConfig(r=s["r"], target_modules="all-linear"),
        "dora": lambda: peft.LoraConfig(r=s["r"], target_modules="all-linear", use_dora=True),
        "oft": lambda: peft.OFTConfig(oft_block_size=32, target_modules="all-linear"),
        "prefix_tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", *downs], feedforward_modules=downs),
    }
    model = with_bottlenecks(model) if method == "houlsby" else peft.get_peft_model(model, made[method]())
    model.to(place).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model = torch.compile(model) if compiled else model

    def step() -> float:
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


# --- a worker process -------------------------------------------------------------------------------------------------


def on_gpu() -> bool:
    """Whether this process measures on a GPU."""
    return os.environ.get("MINIPEFT_BACKEND") == "cupy"


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; 0 where the system has no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _peak_of_process() -> Callable[[], int]:
    before = _resident("VmRSS")
    return lambda: _resident("VmHWM") - before


def _peak_of_arrays(side: str) -> Callable[[], int]:
    if side != "ours":
        import torch

        return lambda: torch.cuda.max_memory_allocated()
    from minipeft.engine import backend

    backend.name()
    from minipeft.engine.fast.graph import watched_memory

    return watched_memory()


def worker(side: str, size: str, method: str, task: str = "step", dtype: str = "float32", given: str = "{}") -> None:
    """Answer each line on standard input, a number of steps, with their times; the first answer is about memory.

    `given`: our method's settings, as JSON.
    """
    if side != "ours":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
    peak = _peak_of_arrays(side) if on_gpu() else _peak_of_process()
    if side == "ours":
        step = our_step(size, method, task, dtype=dtype, given=json.loads(given))
    else:
        step = peft_step(size, method, task, side == "compiled", dtype)
    step()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    about = {"peak": peak(), "loss": step()}
    if side == "ours":
        about["gflops"] = matrix_rate(dtype=dtype)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


def matrix_rate(n: int = 1024, seconds: float = 1.0, dtype: str = "float32") -> float:
    """GFLOP/s of an n × n matrix product here, of factors in float32 or, on a GPU, bfloat16: the best of one second."""
    if on_gpu():
        from minipeft.engine.backend import xp
        from minipeft.engine.bfloat16 import bfloat16
        from minipeft.engine.fast.cuda_blas import product

        n = 8192
        x, out = xp.ones((n, n), xp.float32), xp.empty((n, n), xp.float32)
        x = bfloat16(x).values if dtype == "bfloat16" else x

        def once() -> None:
            product(x, x, out=out)
            xp.cuda.Device().synchronize()
    else:
        a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)

        def once() -> None:
            a @ a

    once()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        once()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def flops(size: str, task: str = "step") -> float:
    """Multiplications and additions that a step cannot do without: forward and input gradients of all frozen products."""
    s = settings(size)
    d, tokens = s["d"], s["b"] * s["t"]
    wide = 2 if size.startswith("GPT2") else 3  # matrices of the feed-forward, each d × 4 d
    layer = 4 * d * d + wide * d * 4 * d + 2 * s["t"] * d  # projections, feed-forward, attention's two products
    return 2 * (2 if task == "step" else 1) * tokens * (s["layers"] * layer + d * s["vocab"])


class _Worker:
    """One side's process."""

    def __init__(
        self, side: str, size: str, method: str, threads: int, task: str = "step", dtype: str = "float32",
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        env = os.environ | dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "minipeft.bench", side, size, method, task, dtype, json.dumps(dict(given))]
        self.what = f"{side} {size} {method}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody reads would fill up)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=env,
            **own_group(),
        )
        self.times: list[float] = []
        try:
            self.about = self._read()
        except BaseException:
            self.stop()
            raise

    def _read(self) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            status = self.process.wait(timeout=30)
            self.errors.seek(0)
            error = self.errors.read().strip().splitlines() or [f"it ended with status {status}"]
            raise Bad(f"bench: {self.what} failed: {error[-1]}")
        return json.loads(line)

    def run(self, steps: int) -> None:
        """Measure some more steps. Raises `Bad` if the process has ended."""
        with contextlib.suppress(OSError):  # what it said before it ended is read below
            self.process.stdin.write(f"{steps}\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        self.times += self._read()

    def stop(self) -> None:
        """End the process."""
        end_group(self.process)
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]
        self.errors.close()


@dataclass(frozen=True)
class Plan:
    """What is measured: rows of (task, method, size), each in `rounds` turns of every side."""

    rows: tuple[tuple[str, str, str], ...]
    against: str | None = None
    rounds: int = 7
    threads: int = 2
    compiled: bool = False
    dtype: str = "float32"
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings of our methods

    @property
    def sides(self) -> tuple[str, ...]:
        return ("ours", *([self.against] if self.against else []), *(["compiled"] if self.compiled else []))

    def seconds(self) -> float:
        """Roughly how long it takes: what the steps multiply, at a third of the rate of matrix products here, and the starts."""
        rate = 1e13 if on_gpu() else matrix_rate(seconds=0.1) * 1e9
        sums = sum(self._steps(t, s) * flops(s, t) for t, _, s in self.rows)
        starts = len(self.rows) * (3 + sum(60 if side == "compiled" else 12 for side in self.sides[1:]))
        return starts + len(self.sides) * sums / (rate / 3)

    def _steps(self, task: str, size: str) -> float:
        if task != "generate":
            return 3 + self.rounds * STEPS[size.partition(",")[0]]
        tokens = settings(size)["b"] * settings(size)["t"]  # of a step; a generation passes one row's, one by one
        return (3 + self.rounds) * 10 * (PROMPT + NEW) / tokens

    def __str__(self) -> str:
        seconds = self.seconds()
        long = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
        n = len(self.rows)
        turns = f"{self.rounds} turn{'' if self.rounds == 1 else 's'} of {' and '.join(map(_called, self.sides))}"
        return f"{n} measurement{'' if n == 1 else 's'}, {turns} each: roughly {long}"


def plan(
    against: str | None, sizes: Sequence[str], methods: Sequence[str], rounds: int = 7, threads: int = 2,
    tasks: Sequence[str] = ("step",), compiled: bool = False, dtype: str = "float32",
    given: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Plan:  # fmt: skip
    """Every size and method; with `against` "peft" in turns with torch, and `compiled` with torch.compile as well.

    `dtype`: "float32", or "bfloat16" for the base. `given`: {method: settings} instead of those here, of our side alone.
    Raises `Bad` for unknown words, for settings where there is another side or no method, and where the other side is not
    installed.
    """
    if against not in (None, "peft"):
        raise Bad(f"--against {against}: expected peft{near(against, ['peft'])}")
    for words, known in ((methods, METHODS), (tasks, TASKS)):
        for w in words:
            if w not in known:
                raise Bad(f"{w!r}: expected one of {', '.join(known)}{near(w, known)}")
    for size in sizes:
        settings(size)
    for package in ("torch", "transformers", "peft") if against or compiled else ():
        if find_spec(package) is None:
            raise Bad(f"the other side needs {package}: pip install {package}")
    rows = [(t, m, s) for t in tasks for m in (methods if t == "step" else ["base"]) for s in sizes]
    rows = [r for r in rows if not r[2].startswith("GPT2") or r[1] in ("lora", "base")]
    if any(given.values()) and (against or compiled or set(tasks) != {"step"}):
        raise Bad("settings are of our method in a step alone; a size says a rank for both sides: M,r=4")
    return Plan(tuple(rows), against, rounds, threads, compiled, dtype, given)


def bench(
    plan: Plan, keep: Callable[[dict], None] = lambda row: None, doing: Callable[[str], None] = lambda what: None
) -> list[dict]:
    """Measure. `keep` is called with each row as it is there, `doing` with what is measured next.

    A side that fails costs its own numbers: `row["failed"]` says why.
    """
    out = []
    for task, method, size in plan.rows:
        doing(f"{task} {method} {size}")
        out.append(_measure(task, method, size, plan))
        keep(out[-1])
    return out


def _measure(task: str, method: str, size: str, plan: Plan) -> dict[str, Any]:
    row: dict[str, Any] = dict(
        task=task, method=method, size=size, threads=plan.threads, dtype=plan.dtype, against=plan.against
    )
    if given := dict(plan.given.get(method, {})):
        row["set"] = given
    workers: dict[str, _Worker] = {}

    def tried(side: str, f: Callable[[], None]) -> None:
        try:
            f()
        except Bad as why:
            row.setdefault("failed", {})[side] = str(why)

    def begin(side: str) -> None:
        workers[side] = _Worker(side, size, method, plan.threads, task, plan.dtype, given)

    try:
        for side in plan.sides:
            tried(side, lambda side=side: begin(side))  # type: ignore[misc]
        steps = STEPS[size.partition(",")[0]] if task != "generate" else 1
        for _ in range(plan.rounds):
            for side, w in workers.items():
                if side not in row.get("failed", {}):
                    tried(side, lambda w=w: w.run(steps))  # type: ignore[misc]
        for side, w in workers.items():
            if side not in row.get("failed", {}):
                row |= _numbers(side, task, w)
        if task != "generate" and "ours_ms" in row:
            rate = workers["ours"].about["gflops"]
            row |= {"gflops": rate, "share": flops(size, task) / (row["ours_ms"] / 1000) / (rate * 1e9)}
    finally:
        for w in workers.values():
            w.stop()
    for side in plan.sides[1:]:
        to = "" if side == plan.against else "compiled_"
        if "ours_ms" in row and f"{side}_ms" in row:
            row[f"{to}time_ratio"] = row["ours_ms"] / row[f"{side}_ms"]
            row[f"{to}memory_ratio"] = row["ours_peak"] / max(row[f"{side}_peak"], 1)
    return row


def _numbers(side: str, task: str, w: _Worker) -> dict[str, float]:
    seconds = float(np.median(w.times))
    found = {f"{side}_ms": 1000 * seconds, f"{side}_peak": w.about["peak"]}
    return found | ({f"{side}_tokens_s": NEW / seconds} if task == "generate" else {})


def _called(side: str) -> str:
    return {"ours": "ours", "peft": "torch + PEFT", "compiled": "torch.compile"}.get(side, side)


def said(row: dict) -> str:
    """A row as one line."""
    sides = [
        f"{_called(s)} {row[f'{s}_ms']:.1f} ms, {row[f'{s}_peak'] / 1e6:.0f} MB"
        for s in _sides(row)
        if f"{s}_ms" in row
    ]
    sides += [f"time × {row['time_ratio']:.2f}, memory × {row['memory_ratio']:.2f}"] if "time_ratio" in row else []
    return "; ".join(sides + [f"{_called(s)} failed" for s in row.get("failed", {})])


def _sides(row: dict) -> list[str]:
    return [
        s for s in ("ours", row.get("against"), "compiled") if s and (f"{s}_ms" in row or s in row.get("failed", {}))
    ]


def failures(rows: Sequence[dict]) -> list[str]:
    """Why sides failed, a line each."""
    return list(dict.fromkeys(why for r in rows for why in r.get("failed", {}).values()))


def table(rows: Sequence[dict]) -> Any:
    """A rich table of the measurements, a line for every side; the ratios are ours over that side's."""
    from rich import box
    from rich.table import Table

    told = "time, memory: ours over that side's; rate: of matrix products here, or tokens a second"
    out = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=told,
        caption_justify="left",
    )
    for name in ("step", "size", "side"):
        out.add_column(name, overflow="fold")
    for name in ("ms", "MB", "time", "memory", "rate"):
        out.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        about = [r["method"] if r["task"] == "step" else r["task"], r["size"]]
        for side in _sides(r):
            if f"{side}_ms" in r:
                to = "" if side == r.get("against") else "compiled_"
                ratios = (r.get(f"{to}time_ratio"), r.get(f"{to}memory_ratio")) if side != "ours" else (None, None)
                cells = [f"{r[f'{side}_ms']:.1f}", f"{r[f'{side}_peak'] / 1e6:.0f}"]
                cells += ["" if x is None else f"{x:.2f}" for x in ratios]
                share = f"{100 * r['share']:.0f} %" if side == "ours" and "share" in r else ""
                cells += [f"{r[f'{side}_tokens_s']:.0f} /s" if f"{side}_tokens_s" in r else share]
            else:
                cells = ["failed"]
            out.add_row(*about, {"peft": "PEFT"}.get(side, side), *cells)
            about = ["", ""]
    return out


# --- against length and rank ------------------------------------------------------------------------------------------


KINDS = {"length": [f"M,t={t},b=1" for t in LENGTHS], "rank": [f"M,r={r}" for r in RANKS]}


def sweep(against: str | None, rounds: int, threads: int, dtype: str = "float32") -> Plan:
    """A LoRA step of size M against sequence length (one row) and rank. Raises `Bad` without matplotlib, which draws it."""
    if find_spec("matplotlib") is None:
        raise Bad("the plots need matplotlib: pip install matplotlib")
    return plan(against, [size for sizes in KINDS.values() for size in sizes], ["lora"], rounds, threads, dtype=dtype)


def write_sweep(folder: Path, rows: list[dict], against: str | None) -> None:
    """speed.json and speed_*.png, of the rows there are."""
    from minipeft.checkpoints.files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "speed.json", rows)
    by_size = {r["size"]: r for r in rows if not r.get("failed")}
    for (kind, sizes), at in zip(KINDS.items(), (LENGTHS, RANKS), strict=True):
        there = [(x, by_size[size]) for x, size in zip(at, sizes, strict=True) if size in by_size]
        if there:
            _plot(folder / f"speed_{kind}.png", kind, [x for x, _ in there], [r for _, r in there], against)


def _plot(path: Path, kind: str, at: Sequence[int], rows: list[dict], against: str | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, kind_of, unit, label in zip(axes, ("ms", "peak"), (1, 1e6), ("ms a step", "peak MB"), strict=True):
        for side, name in [("ours", "minipeft")] + ([(against, "torch + PEFT")] if against else []):
            axis.plot(at, [r[f"{side}_{kind_of}"] / unit for r in rows], marker="o", label=name)
        axis.set(xlabel={"length": "tokens in the row", "rank": "rank"}[kind], ylabel=label, xscale="log", yscale="log")
        axis.set_xticks(at, [str(x) for x in at], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


# --- where a step goes ------------------------------------------------------------------------------------------------


def profile(
    size: str,
    method: str,
    steps: int = 5,
    dtype: str = "float32",
    so_far: Callable[[list[dict]], None] = lambda rows: None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict]:
    """Calls, milliseconds and bytes of results of every op of a step, forward and backward apart, most time first.

    `so_far` is called after each step with the same of the steps until then.
    """
    from minipeft.engine import operators, ops, tensor
    from minipeft.train import AdamW

    spent: dict[tuple[str, str], list[float]] = {}

    def size_of(x: Any) -> int:
        if isinstance(x, tuple | list):
            return sum(map(size_of, x))
        return int(getattr(getattr(x, "value", x), "nbytes", 0))

    def timed(op: str, way: str, f: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = f(*args, **kwargs)
            entry = spent.setdefault((op, way), [0, 0.0, 0])
            for i, more in enumerate((1, time.perf_counter() - start, size_of(found))):
                entry[i] += more
            return found

        return call

    def watched(op: str, f: Callable) -> Callable:
        f = timed(op, "forward", f)

        def call(*args: Any, **kwargs: Any) -> Any:
            found = f(*args, **kwargs)
            if type(found) is tensor.Tensor and found.node.parents:
                vjps = found.node.vjps
                found.node.vjps = (
                    timed(op, "backward", vjps) if callable(vjps) else tuple(timed(op, "backward", v) for v in vjps)
                )
            return found

        return call

    step = our_step(size, method, graph=False, dtype=dtype, given=given)
    step()
    known = {name: f for name, f in tensor.OPS.items() if getattr(ops, name, None) is f}
    kept = tensor._accumulate, AdamW.step
    try:
        for name, f in known.items():
            setattr(ops, name, watched(name, f))
        operators.give()
        tensor._accumulate, AdamW.step = timed("sums", "backward", kept[0]), timed("AdamW", "update", kept[1])  # type: ignore[method-assign]
        whole = 0.0
        for done in range(1, steps + 1):
            start = time.perf_counter()
            step()
            whole += time.perf_counter() - start
            rows = _shares(spent, whole, done)
            so_far(rows)
    finally:
        for name, f in known.items():
            setattr(ops, name, f)
        operators.give()
        tensor._accumulate, AdamW.step = kept  # type: ignore[method-assign]
    return rows


def _shares(spent: dict[tuple[str, str], list[float]], whole: float, steps: int) -> list[dict]:
    rows: list[dict[str, Any]] = [
        dict(op=op, way=way, calls=n / steps, ms=1000 * t / steps, bytes=b / steps, share=t / whole)
        for (op, way), (n, t, b) in sorted(spent.items(), key=lambda x: -x[1][1])
    ]
    rest = whole / steps - sum(r["ms"] for r in rows) / 1000
    return [*rows, dict(op="the rest", way="", calls=0.0, ms=1000 * rest, bytes=0.0, share=rest * steps / whole)]


def profile_table(rows: Sequence[dict]) -> Any:
    """A rich table of a profile."""
    from rich.table import Table

    out = Table("op", "way", "calls", "ms", "share", "MB made", header_style="bold")
    for r in rows:
        out.add_row(
            r["op"],
            r["way"],
            f"{r['calls']:.0f}",
            f"{r['ms']:.2f}",
            f"{100 * r['share']:.1f} %",
            f"{r['bytes'] / 1e6:.1f}",
        )
    return out


if __name__ == "__main__":
    worker(*sys.argv[1:])
