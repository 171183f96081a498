"""One method with one seed, measured; and many of them in processes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints.native import save_adapter
from minipeft.compare.rates import usual_rate
from minipeft.compare.task import Task, head_of, judged, prepare, start, text_loss
from minipeft.engine.backend import explained, peak_memory, to_host
from minipeft.engine.backend import name as backend_name
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import METHODS, Method, is_weight, load_methods, method_class
from minipeft.processes import deaf_to_interrupts
from minipeft.processes import pool as processes
from minipeft.settings import part_of, small
from minipeft.train import AdamW, fit

HEAD_LR = 2e-2  # of the classifier alone
JUDGES = ("majority", "frozen")  # rows that are no methods

# One method of each family; the selective one, full fine-tuning, is the yardstick.
FAMILIES: dict[str, str] = json.loads(Path(__file__).with_name("families.json").read_text("utf-8"))
WHOLE = FAMILIES["selective"]  # trains parameters as they are: the classifier, here


@dataclass
class Outcome:
    """What one method with one seed gave. Bytes and seconds are of this run, on this machine."""

    method: str
    seed: int = 0
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (n,) of every held-out example, after training
    right: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (n,)
    trained: int = 0  # numbers, the classifier not counted
    share: float = 0.0  # of the base's parameters, in percent
    lr: float | None = None
    step_seconds: float | None = None  # median
    peak_bytes: int | None = None  # most at once in a step on the widest batch
    optimiser_bytes: int | None = None
    file_bytes: int | None = None
    text_before: float | None = None  # loss on held-out text: of the base, the adapter on, and off again
    text_on: float | None = None
    text_off: float | None = None
    merge_error: float | None = None  # largest difference of the merged model's logits; None: does not merge
    base_unchanged: bool = True
    curve: list[float] = field(default_factory=list)  # the task's loss of every step, penalties left out
    note: str = ""  # why there is nothing, if so


def everything() -> list[str]:
    """All methods, by name."""
    load_methods()
    return sorted(METHODS)


def family_of(name: str) -> str:
    """The family of a method, which is the folder of its file; "" for a row that is none."""
    return "" if name in JUDGES else method_class(name).__module__.split(".")[-2]


def measure(
    task: Task, method: str | Method, *, seed: int = 0, lr: float | None = None, with_peak: bool = True
) -> Outcome:
    """ "majority", "frozen", or a method: trained on the task and measured. `lr` None is the usual rate of each.

    Raises `Bad` where a method does not fit the base or its loss is not finite.
    """
    if method == "majority":
        return _majority(task, seed)
    if method == "frozen":
        alone = attach(task.model, METHODS[WHOLE](targets=" ".join(head_of(task.model))), seed=seed)
        return _trained(task, alone, "frozen", HEAD_LR if lr is None else lr, seed, with_peak)
    cls = method_class(method) if isinstance(method, str) else type(method)
    made = sized(task, cls, seed, lr) if isinstance(method, str) else method
    begun = start(task, made, seed)
    return _trained(task, begun, cls.name, usual_rate(cls) if lr is None else lr, seed, with_peak)


def _majority(task: Task, seed: int) -> Outcome:
    """Always the class that was seen most often, as likely as it was seen."""
    labels = task.labels
    losses = -np.log(np.asarray(task.shares))[labels]
    right = labels == int(np.argmax(task.shares))
    return Outcome("majority", seed, losses, right, text_before=task.text_before)


def sized(task: Task, cls: type[Method], seed: int = 0, lr: float | None = None) -> Method:
    """The method at a size that suits the model; one that is built over others gets as many as it has by default, each of a share of the batches."""
    if (part := part_of(cls)) is None:
        return small(cls, task.model.arch)
    setting, inner = part
    parts, n = [], len(getattr(cls(), setting))
    for i in range(n):
        share = task.train[i * len(task.train) // n : (i + 1) * len(task.train) // n] or task.train[:1]
        one = attach(task.model, small(inner, task.model.arch), name=f"part{i}", seed=seed + i)
        whole = attach(one, METHODS[WHOLE](targets=" ".join(head_of(task.model))), name="head")
        rule = AdamW(lr=usual_rate(inner) if lr is None else lr)
        done = fit(whole, share, steps=max(task.steps // n, 1), optimiser=rule, schedule="linear", clip=1.0)
        parts.append(done.adapted.adapters[0])
    return cls.from_adapters(parts)  # type: ignore[attr-defined]


def _trained(task: Task, begun: Adapted, name: str, lr: float, seed: int, with_peak: bool) -> Outcome:
    head = sum(begun.model.params[k].size for k in head_of(begun.model))
    trained = begun.adapters[0].size - sum(
        int(begun.adapters[0].arrays[k].size) for k in begun.adapters[0].trained if k.startswith("score.")
    )
    out = Outcome(name, seed, trained=trained, share=100 * trained / (task.model.size - head), lr=lr)
    out.text_before = task.text_before
    digest = begun.model.digest()
    rule = AdamW(lr=lr)
    if with_peak:
        with peak_memory() as peak:
            fit(begun, [task.widest], steps=1, optimiser=rule, clip=1.0, seed=seed)
        out.peak_bytes = peak[0]

    clock = (
        time.process_time if backend_name() == "numpy" else time.perf_counter
    )  # what else runs here is no cost of it
    stamps = [clock()]
    done = fit(
        begun,
        task.train,
        steps=task.steps,
        optimiser=rule,
        schedule="linear",
        warmup=max(task.steps // 10, 1),
        clip=1.0,
        seed=seed,
        progress=lambda *_: stamps.append(clock()),
    )
    after = done.adapted
    out.step_seconds = float(np.median(np.diff(stamps)))
    out.optimiser_bytes = done.optimiser_bytes
    out.curve = [loss - more for loss, more in zip(done.losses, done.penalties, strict=True)]
    out.losses, out.right = judged(after, task.test)
    if not np.isfinite(out.losses).all():
        raise Bad(f"after {task.steps} steps the held-out loss is not finite")
    out.text_on, out.text_off = text_loss(after, task), text_loss(after.using(), task)
    out.base_unchanged = after.model.digest() == digest
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(after, Path(folder) / "adapter")
        out.file_bytes = sum(f.stat().st_size for f in (Path(folder) / "adapter").iterdir())
    if all(map(is_weight, after.adapters[0].at.values())):
        got, want = Adapted(merge(after)).logits(task.test[0]), after.logits(task.test[0])
        out.merge_error = float(abs(to_host(got - want)).max())
    return out


# --- many, in processes -----------------------------------------------------------------------------------------------


def compare(
    methods: Sequence[str | Method] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    lr: float | None = None,
    jobs: int | None = None,
    progress: Callable[[Outcome], None] | None = None,
    **setting: Any,
) -> dict[str, list[Outcome]]:
    """{name: an outcome for every seed} of "majority", "frozen" and the methods; default: one of each family.

    A method that fails with a seed has an outcome whose `note` says why. `setting` are the arguments of `prepare`, its seed
    aside. Each of `jobs` processes (default: one for each core, or one in all on a GPU) works on one thread, so that the
    numbers do not depend on how many there are. `progress(outcome)` is called as each ends. When this is interrupted the
    processes are ended. Raises `Bad` for an unknown name, for a method that is named twice, and for no seed.
    """
    load_methods()
    wanted: dict[str, str | Method] = {name: name for name in JUDGES}
    for m in methods or FAMILIES.values():
        name = method_class(m).name if isinstance(m, str) else m.name
        if name in wanted:
            raise Bad(f"method {name!r} is named twice")
        wanted[name] = m
    if not seeds or len(set(seeds)) < len(seeds):
        raise Bad(f"seeds: expected one or more, each once, found {', '.join(map(str, seeds)) or 'none'}")
    cores = len(os.sched_getaffinity(0)) if backend_name() == "numpy" else 1
    found: dict[str, dict[int, Outcome]] = {name: {} for name in wanted}
    with processes(jobs or cores, _start_worker, dict(setting)) as pool:
        running: dict[Future[Outcome], tuple[str, int]] = {}
        with deaf_to_interrupts():  # processes start as they get work
            for name, m, seed in ((name, m, seed) for name, m in wanted.items() for seed in seeds):
                running[pool.submit(_work, m, name, seed, lr, seed == seeds[0])] = name, seed  # peak: once
        for done in as_completed(running):
            name, seed = running[done]
            try:
                found[name][seed] = done.result()
            except BrokenProcessPool:
                found[name][seed] = Outcome(
                    name, seed, note="its process was ended from outside; is there enough memory?"
                )
            if progress is not None:
                progress(found[name][seed])
    return {name: [by_seed[s] for s in seeds] for name, by_seed in found.items()}


_setting: dict[str, Any] = {}  # of a worker process


def _start_worker(setting: dict[str, Any]) -> None:
    _setting.update(setting)
    load_methods()


@lru_cache(maxsize=8)
def _task(seed: int) -> Task:
    return prepare(seed=seed, **_setting)


def _work(method: str | Method, name: str, seed: int, lr: float | None, with_peak: bool) -> Outcome:
    try:
        with explained():
            return measure(_task(seed), method, seed=seed, lr=lr, with_peak=with_peak)
    except Bad as why:
        return Outcome(name, seed, note=str(why))
    except Exception as why:  # one method's row, not the end of all others
        return Outcome(name, seed, note=f"{type(why).__name__}: {why}")
