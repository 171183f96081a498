"""Time and memory of a training step, beside torch + PEFT.

Each side runs in a process of its own with the same number of threads, and they take turns: a round is some steps of one,
then some of the other, so that what else the machine does falls on both. A step is forward, backward and AdamW in float32, on
Llama-shaped models with tied heads and a gated feed-forward of width 4 d. Memory is the peak of the process's resident set
during a step, less what it held before the model was made.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.errors import Bad, near

# width, layers, heads, tokens a row, rows, vocabulary
SIZES = {
    "S": dict(d=64, layers=2, heads=4, t=64, b=8, vocab=128),
    "M": dict(d=256, layers=4, heads=4, t=128, b=8, vocab=512),
    "L": dict(d=512, layers=8, heads=8, t=128, b=8, vocab=4096),
}
METHODS = ("lora", "prefix_tuning", "oft", "dora")
STEPS = {"S": 20, "M": 4, "L": 1}  # of a turn


# --- our side ---------------------------------------------------------------------------------------------------------


def our_step(size: str, method: str) -> Callable[[], float]:
    """A function that makes one step and returns the loss."""
    from minipeft.checkpoints import family_names
    from minipeft.engine.backend import keep_freed_memory
    from minipeft.method import method_class
    from minipeft.model.arch import Arch, Model, batch
    from minipeft.model.transformer import shapes
    from minipeft.run import attach
    from minipeft.train import AdamW

    keep_freed_memory()
    s = SIZES[size]
    arch = Arch("llama", d=s["d"], layers=s["layers"], heads=s["heads"], ff=4 * s["d"], vocab=s["vocab"], norm="rms",
                act="silu", gated=True, positions="rope", tied=True)  # fmt: skip
    rng = np.random.default_rng(0)
    params = {
        n: np.ones(shape, np.float32) if len(shape) == 1 else (0.02 * rng.standard_normal(shape)).astype(np.float32)
        for n, shape in shapes(arch).items()
    }
    made: dict[str, Any] = {"lora": dict(r=8, targets="all-linear"), "dora": dict(r=8, targets="all-linear"),
            "oft": dict(block=32, targets="all-linear"), "prefix_tuning": dict(p=16)}  # fmt: skip
    adapted = attach(Model(arch, params, family_names(arch)), method_class(method)(**made[method]))
    ids = rng.integers(0, s["vocab"], (s["b"], s["t"]))
    inputs = batch(input_ids=ids, labels=ids)
    optimiser = AdamW(lr=1e-4)
    theta = dict(adapted.theta)
    held: dict[str, Any] = dict(theta=theta, state=optimiser.init(theta), t=0)
    lr = dict.fromkeys(theta, 1e-4)

    def step() -> float:
        loss, grads = adapted.value_and_grad(inputs, held["theta"], train=True)
        held["t"] += 1
        held["theta"], held["state"] = optimiser.step(held["theta"], grads, held["state"], held["t"], lr)
        return float(loss)

    return step


# --- theirs -----------------------------------------------------------------------------------------------------------


def peft_step(size: str, method: str) -> Callable[[], float]:
    """The same step in torch + PEFT, as its users write it."""
    import peft
    import torch
    import transformers

    s = SIZES[size]
    config = transformers.LlamaConfig(
        hidden_size=s["d"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"], intermediate_size=4 * s["d"],
        vocab_size=s["vocab"], tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    made = {
        "lora": lambda: peft.LoraConfig(r=8, target_modules="all-linear"),
        "dora": lambda: peft.LoraConfig(r=8, target_modules="all-linear", use_dora=True),
        "oft": lambda: peft.OFTConfig(oft_block_size=32, target_modules="all-linear"),
        "prefix_tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
    }[method]()
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), made).train()
    ids = torch.randint(0, s["vocab"], (s["b"], s["t"]))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


# --- a worker process -------------------------------------------------------------------------------------------------


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; 0 where the system has no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def worker(side: str, size: str, method: str) -> None:
    """Answer each line on standard input, a number of steps, with their times; the first answer is about memory."""
    if side == "peft":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
    before = _resident("VmRSS")
    step = (our_step if side == "ours" else peft_step)(size, method)
    step()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    about = {"peak": _resident("VmHWM") - before, "loss": step()}
    if side == "ours":
        about["gflops"] = matrix_rate()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


def matrix_rate(n: int = 1024, seconds: float = 0.5) -> float:
    """GFLOP/s of an n × n float32 matrix product here: the best of half a second."""
    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def flops(size: str) -> float:
    """Multiplications and additions a step cannot do without: forward and input gradients of all frozen products."""
    s = SIZES[size]
    d, tokens = s["d"], s["b"] * s["t"]
    layer = 4 * d * d + 3 * d * 4 * d + 2 * s["t"] * d  # projections, feed-forward, attention's two products
    return 2 * 2 * tokens * (s["layers"] * layer + d * s["vocab"])


class _Worker:
    def __init__(self, side: str, size: str, method: str, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        env = os.environ | dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "minipeft.bench", side, size, method]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        self.about = self._read(f"{side} {size} {method}")

    def _read(self, what: str) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            error = self.process.stderr.read().strip().splitlines()  # type: ignore[union-attr]
            raise Bad(f"bench: {what} failed: {error[-1] if error else 'no message'}")
        return json.loads(line)

    def run(self, steps: int) -> list[float]:
        self.process.stdin.write(f"{steps}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self._read("a step")

    def stop(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(timeout=30)


def bench(
    against: str | None, sizes: list[str], methods: list[str], rounds: int, threads: int, console: Any
) -> list[dict]:
    """Measure every size and method; with `against` "peft" in turns with torch + PEFT. Raises `Bad` for unknown words."""
    if against not in (None, "peft"):
        raise Bad(f"--against {against}: expected peft{near(against, ['peft'])}")
    for given, known in ((sizes, SIZES), (methods, METHODS)):
        for w in given:
            if w not in known:
                raise Bad(f"{w!r}: expected one of {', '.join(known)}{near(w, known)}")
    from rich.progress import Progress

    sides = ["ours"] + ([against] if against else [])
    out = []
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task("measuring", total=len(sizes) * len(methods) * rounds)
        for method in methods:
            for size in sizes:
                bar.update(line, description=f"{method} {size}")
                workers = {side: _Worker(side, size, method, threads) for side in sides}
                times: dict[str, list[float]] = {side: [] for side in sides}
                for _ in range(rounds):
                    for side in sides:
                        times[side] += workers[side].run(STEPS[size])
                    bar.advance(line)
                row: dict[str, Any] = {"method": method, "size": size, "threads": threads}
                for side in sides:
                    row |= {
                        f"{side}_ms": 1000 * float(np.median(times[side])),
                        f"{side}_peak": workers[side].about["peak"],
                    }
                    workers[side].stop()
                rate = workers["ours"].about["gflops"]
                row |= {"gflops": rate, "share": flops(size) / (row["ours_ms"] / 1000) / (rate * 1e9)}
                if against:
                    row |= {
                        "time_ratio": row["ours_ms"] / row["peft_ms"],
                        "memory_ratio": row["ours_peak"] / max(row["peft_peak"], 1),
                    }
                out.append(row)
    return out


def table(rows: list[dict]) -> Any:
    """A rich table of the measurements."""
    from rich.table import Table

    against = "time_ratio" in rows[0] if rows else False
    names = ["method", "size", "ms/step", "peak MB", "share of matrix rate"]
    out = Table(*names, *(["PEFT ms", "PEFT MB", "time ratio", "memory ratio"] if against else []), header_style="bold")
    for r in rows:
        cells = [r["method"], r["size"], f"{r['ours_ms']:.1f}", f"{r['ours_peak'] / 1e6:.0f}"]
        cells.append(f"{100 * r['share']:.0f} % of {r['gflops']:.0f} GFLOP/s")
        if against:
            cells += [
                f"{r['peft_ms']:.1f}",
                f"{r['peft_peak'] / 1e6:.0f}",
                f"{r['time_ratio']:.2f}",
                f"{r['memory_ratio']:.2f}",
            ]
        out.add_row(*cells)
    return out


if __name__ == "__main__":
    worker(*sys.argv[1:4])
