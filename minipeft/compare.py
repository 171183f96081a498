"""The main job: adapt one base to one task with every method, and measure what each costs and gives.

Every method trains on the same batches from the same start, the family's classifier beside it;
"head_only" trains nothing but that. What a decoder lost of its original task is its loss on held-out text, before and after.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from minipeft import data as datasets
from minipeft.checkpoints import load, with_head
from minipeft.checkpoints.native import save_adapter
from minipeft.engine.backend import explained, peak_memory, to_host
from minipeft.engine.backend import name as backend_name
from minipeft.errors import Bad, Unfit
from minipeft.method import METHODS, Method, load_methods, method_class
from minipeft.model.arch import Batch, Model, batch
from minipeft.run import Adapted, attach, merge
from minipeft.text import Tokenizer, encode, load_tokenizer
from minipeft.train import AdamW, fit

HEAD_LR = 1e-2


@dataclass(frozen=True)
class Task:
    """A base with a classifier, its tokenizer, and the batches that all methods see."""

    model: Model
    language: Model | None  # the same arrays with the language-model head, for a decoder
    train: tuple[Batch, ...]
    test: tuple[Batch, ...]
    text: tuple[Batch, ...]  # held-out text, for the original task
    text_before: float | None  # the base's loss on it
    classes: tuple[str, ...]


def head_of(model: Model) -> list[str]:
    """The parameters of the classifier, with a dense layer in front of it that the base had not."""
    return [k for k in model.params if k.startswith("score.") or k in model.drawn]


@dataclass
class Row:
    """One method's measurements. Bytes and seconds are of this run, on this machine."""

    method: str
    trained: int = 0
    share: float = 0.0  # of all parameters, in percent
    optimiser_bytes: int = 0
    peak_bytes: int = 0
    step_seconds: float = 0.0
    loss_before: float = float("nan")  # on held-out examples
    loss_after: float = float("nan")
    accuracy: float = float("nan")
    text_before: float | None = None
    text_after: float | None = None
    file_bytes: int = 0
    merge_error: float | None = None  # largest difference of the merged model's logits; None: does not merge
    base_unchanged: bool = True
    curve: list[float] = field(default_factory=list)
    note: str = ""


def prepare(
    base: str | Path | None = None, csv: str | Path | None = None, *, steps: int = 40, rows: int = 32, length: int = 32,
    held_out: int = 400, seed: int = 0, dtype: Any = None,
) -> Task:  # fmt: skip
    """The task: the base of the package or a checkpoint folder, on the snippets of the package or a user's CSV file.

    `dtype` is as in `load`; default float32.
    """
    folder = Path(base) if base is not None else datasets.BASE
    model = load(folder, dtype or np.float32)
    tokenizer = load_tokenizer(folder)
    snippets = datasets.load_snippets() if csv is None else datasets.read_csv(csv)
    arch = model.arch
    if arch.encoder_layers or arch.patch:
        raise Bad(f"{folder}: compare needs a text encoder or a decoder, found {arch.family}")
    if arch.vocab < tokenizer.vocab and arch.vocab <= tokenizer.pad_id:
        raise Bad(f"{folder}: the tokenizer has {tokenizer.vocab} tokens, the model {arch.vocab}")
    language = model if arch.head == "lm" else None
    classes = snippets["train"].classes
    task = with_head(model, "classify", len(classes), seed)
    if arch.max_positions:
        length = min(length, arch.max_positions - arch.first_position - 16)  # room for virtual tokens
    order = np.random.default_rng(seed).permutation(len(snippets["train"]))
    train = _batches(tokenizer, snippets["train"], rows, length, order[: steps * rows] if len(order) else order)
    test = _batches(tokenizer, snippets["test"].first(held_out), 100, length, None)
    text = []
    if language is not None:
        ids, mask = encode(tokenizer, datasets.held_out_text()[:100], length)
        text = [
            batch(
                input_ids=ids,
                attention_mask=mask,
                labels=np.where(mask == 1, ids, -100),
                task_ids=np.zeros(len(ids), int),
            )
        ]
    if language is not None:
        both = dataclasses.replace(arch, labels=len(classes))
        language = dataclasses.replace(model, arch=both, params={**task.params, **model.params})
    made = Task(task, language, tuple(train), tuple(test), tuple(text), None, classes)
    return dataclasses.replace(made, text_before=text_loss(Adapted(task), made))


def _batches(tokenizer: Tokenizer, snippets: datasets.Snippets, rows: int, length: int, order: Any) -> list[Batch]:
    """Batches of similar lengths, in a fixed order."""
    order = np.arange(len(snippets)) if order is None else np.asarray(order)
    sizes = np.array([len(snippets.texts[i]) for i in order])
    if len(order) >= 4 * rows:  # sort by length within groups of batches, so that little is padding
        groups = np.arange(len(order)) // (8 * rows)
        order = order[np.lexsort((sizes, groups))]
    out = []
    for i in range(0, len(order), rows):
        some = order[i : i + rows]
        ids, mask = encode(tokenizer, [snippets.texts[j] for j in some], length)
        labels = np.array([snippets.labels[j] for j in some])
        out.append(batch(input_ids=ids, attention_mask=mask, labels=labels, task_ids=np.zeros(len(some), int)))
    if len(out) > 8:
        out = [out[i] for i in np.random.default_rng(len(out)).permutation(len(out))]
    return out


def judge(adapted: Adapted, batches: Sequence[Batch]) -> tuple[float, float]:
    """Mean loss and accuracy on labelled batches."""
    loss, right, n = 0.0, 0, 0
    for b in batches:
        out = adapted.forward(b)
        loss += float(to_host(out.loss)) * b.rows
        right += int((out.logits.argmax(axis=-1) == b.labels).sum())
        n += b.rows
    return loss / n, right / n


def text_loss(adapted: Adapted, task: Task) -> float | None:
    """Mean loss on held-out text with the language-model head, the adapters as they are."""
    if task.language is None:
        return None
    model = dataclasses.replace(task.language, params={**task.language.params, **adapted.model.params})
    there = dataclasses.replace(adapted, model=model)
    return sum(float(to_host(there.forward(b).loss)) for b in task.text) / len(task.text)


def start(task: Task, method: Method, seed: int = 0, name: str = "default") -> Adapted:
    """The method attached to the task's model, the classifier trained whole beside it."""
    whole = () if method.name == "full" else head_of(task.model)
    return attach(
        task.model, method, name=name, train_whole=whole, data=task.train[:2] if method.needs else (), seed=seed
    )


def measure_method(task: Task, cls: type[Method], *, seed: int = 0, lr: float | None = None) -> Row:
    """Train one method on the task and measure it."""
    method = _built(task, cls, seed, lr)
    begun = start(task, method, seed)
    return _trained_row(task, begun, cls.name, cls.usual_lr if lr is None else lr, seed)


def _built(task: Task, cls: type[Method], seed: int, lr: float | None) -> Method:
    """The method at a size that suits the model; one that is built over others gets two of them, trained on half each."""
    if not cls.parts:
        return cls.sized(task.model.arch)
    inner = METHODS[cls.parts]
    half = len(task.train) // 2
    parts = []
    for i, share in enumerate((task.train[:half], task.train[half:])):
        one = attach(task.model, inner.sized(task.model.arch), name=f"part{i}", seed=seed + i)
        whole = attach(one, METHODS["full"](targets=" ".join(head_of(task.model))), name="head")
        done = fit(whole, share, steps=len(share), optimiser=AdamW(lr=inner.usual_lr), schedule="linear", clip=1.0)
        parts.append(done.adapted.adapters[0])
    return cls.from_adapters(parts)  # type: ignore[attr-defined]


def _trained_row(task: Task, begun: Adapted, name: str, lr: float, seed: int) -> Row:
    adapter = begun.adapters[0]
    head = sum(begun.model.params[k].size for k in head_of(begun.model))
    row = Row(name, trained=adapter.size - (0 if name == "full" else head))
    row.share = 100 * row.trained / (task.model.size - head)
    digest = task.model.digest() if begun.model is task.model else begun.model.digest()
    row.loss_before, _ = judge(begun, task.test)
    row.text_before = task.text_before

    with peak_memory() as peak:
        fit(begun, task.train[:1], steps=1, optimiser=AdamW(lr=lr), clip=1.0, seed=seed)
    row.peak_bytes = peak[0]

    stamps = [time.perf_counter()]

    def step(t: int, total: int, loss: float, tokens: int) -> None:
        stamps.append(time.perf_counter())

    n = len(task.train)
    done = fit(
        begun,
        task.train,
        steps=n,
        optimiser=AdamW(lr=lr),
        schedule="linear",
        warmup=max(n // 10, 1),
        clip=1.0,
        seed=seed,
        progress=step,
    )
    after = done.adapted
    row.step_seconds = float(np.median(np.diff(stamps)))
    row.optimiser_bytes, row.curve = done.optimiser_bytes, done.losses
    row.loss_after, row.accuracy = judge(after, task.test)
    row.text_after = text_loss(after, task)
    row.base_unchanged = after.model.digest() == digest
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(after, Path(folder) / "adapter")
        row.file_bytes = sum(f.stat().st_size for f in (Path(folder) / "adapter").iterdir())
    if all(m.merges for m in after.adapters[0].at.values()):
        got, want = Adapted(merge(after)).logits(task.test[0]), after.logits(task.test[0])
        row.merge_error = float(abs(to_host(got - want)).max())
    return row


def untouched(task: Task) -> Row:
    """The base as it is, with an untrained classifier."""
    loss, accuracy = judge(Adapted(task.model), task.test)
    return Row(
        "base",
        loss_before=loss,
        loss_after=loss,
        accuracy=accuracy,
        text_before=task.text_before,
        text_after=task.text_before,
        merge_error=None,
    )


def measure(task: Task, name: str, *, seed: int = 0, lr: float | None = None) -> Row:
    """One row: "base", "head_only" or a method. What does not fit the base has a row that says so."""
    if name == "base":
        return untouched(task)
    try:
        if name == "head_only":
            alone = attach(task.model, METHODS["full"](targets=" ".join(head_of(task.model))), seed=seed)
            row = _trained_row(task, alone, name, HEAD_LR if lr is None else lr, seed)
            row.trained, row.share = 0, 0.0
            return row
        return measure_method(task, METHODS[name], seed=seed, lr=lr)
    except Unfit as why:
        return Row(name, note=str(why))


def compare(
    names: Sequence[str] = (),
    *,
    seed: int = 0,
    lr: float | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **setting: Any,
) -> list[Row]:
    """The base, the classifier alone, and every method (or those named), best accuracy first.

    `setting` are the arguments of `prepare`. Each of `jobs` processes (default: one for each core, or one in all on a GPU)
    works on one thread, so that the numbers do not depend on how many there are. `progress(done, all, name)` is called after each row.
    Raises `Bad` for an unknown name.
    """
    load_methods()
    wanted = ["base", "head_only", *(method_class(n).name for n in names or sorted(METHODS))]
    rows = []
    cores = len(os.sched_getaffinity(0)) if backend_name() == "numpy" else 1
    with _pool(jobs or cores, seed=seed, **setting) as pool:
        running = {pool.submit(_work, name, seed, lr): name for name in wanted}
        for i, done in enumerate(as_completed(running), 1):
            rows.append(done.result())
            if progress is not None:
                progress(i, len(wanted), running[done])
    return sorted(rows, key=lambda r: (-1.0 if r.note else r.accuracy, r.method), reverse=True)


@contextmanager
def _pool(jobs: int, **setting: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that have prepared the task, each on one thread."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = {k: os.environ.get(k) for k in threads}
    os.environ |= threads  # a process reads these when it starts
    try:
        with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (setting,)) as pool:
            yield pool
    finally:
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})


_task: Task | None = None  # of a worker process


@explained()
def _start_worker(setting: dict[str, Any]) -> None:
    global _task
    load_methods()
    _task = prepare(**setting)


@explained()
def _work(name: str, seed: int, lr: float | None) -> Row:
    assert _task is not None
    return measure(_task, name, seed=seed, lr=lr)


# --- showing it -------------------------------------------------------------------------------------------------------


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda r: r.method,
    "accuracy": lambda r: f"{100 * r.accuracy:.1f} %",
    "trained": lambda r: f"{r.trained:,}",
    "% of base": lambda r: f"{r.share:.3g}",
    "loss before": lambda r: f"{r.loss_before:.3f}",
    "after": lambda r: f"{r.loss_after:.3f}",
    "text before": lambda r: "–" if r.text_before is None else f"{r.text_before:.3f}",
    "text after": lambda r: "–" if r.text_after is None else f"{r.text_after:.3f}",
    "ms/step": lambda r: f"{1000 * r.step_seconds:.1f}",
    "peak": lambda r: _bytes(r.peak_bytes),
    "optimiser": lambda r: _bytes(r.optimiser_bytes),
    "file": lambda r: _bytes(r.file_bytes),
    "merge error": lambda r: "no merge" if r.merge_error is None else f"{r.merge_error:.1e}",
    "base": lambda r: "same" if r.base_unchanged else "CHANGED",
}


def cells(row: Row) -> list[str]:
    """One row of the table as text."""
    if row.note:
        return [row.method, row.note, *[""] * (len(COLUMNS) - 2)]
    if row.method == "base":
        return [
            f(row) if c in ("method", "accuracy", "loss before", "after", "text before", "text after", "base") else "–"
            for c, f in COLUMNS.items()
        ]
    return [f(row) for f in COLUMNS.values()]


def table(rows: Sequence[Row]) -> Any:
    """A rich table of the rows."""
    from rich.table import Table

    out = Table(title=None, header_style="bold", row_styles=("", "dim"), pad_edge=False)
    for i, c in enumerate(COLUMNS):
        out.add_column(c, justify="left" if i == 0 else "right", no_wrap=True)
    for r in rows:
        out.add_row(*cells(r), style="bold" if r.method in ("base", "head_only") else None)
    return out


def figure(rows: Sequence[Row]) -> Any:
    """Loss curves, and accuracy against trained parameters, as a matplotlib figure. Raises `Bad` without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise Bad("plots need matplotlib: pip install matplotlib") from None
    rows = [r for r in rows if not r.note]
    fig, (left, right) = plt.subplots(1, 2, figsize=(15, 6), constrained_layout=True)
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, max(len(rows), 2)))
    for r, c in zip(rows, colours):
        if r.curve:
            smooth = np.convolve(r.curve, np.ones(5) / 5, "valid") if len(r.curve) >= 5 else r.curve
            left.plot(np.arange(len(smooth)) + 1, smooth, color=c, lw=1.2, label=r.method)
        if r.trained:
            right.plot(r.trained, 100 * r.accuracy, "o", color=c)
            right.annotate(
                r.method, (r.trained, 100 * r.accuracy), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    for r in rows:
        if r.method in ("base", "head_only"):
            right.axhline(100 * r.accuracy, color="grey", ls=":" if r.method == "base" else "--", lw=1)
            right.annotate(
                r.method, (0.01, 100 * r.accuracy), xycoords=("axes fraction", "data"), fontsize=7, color="grey"
            )
    left.set(xlabel="step", ylabel="training loss (mean of 5 steps)", title="loss curves")
    left.legend(fontsize=6, ncols=2)
    right.set(
        xscale="log",
        xlabel="trained parameters",
        ylabel="held-out accuracy, %",
        title="accuracy against trained parameters",
    )
    return fig


def write_png(rows: Sequence[Row], path: str | Path) -> None:
    """The plots as a PNG file."""
    import io

    from minipeft.checkpoints.files import write_bytes

    held = io.BytesIO()
    figure(rows).savefig(held, format="png", dpi=110)
    write_bytes(path, held.getvalue())


def write_html(rows: Sequence[Row], path: str | Path, about: str = "") -> None:
    """One self-contained page: the table and the plots."""
    import html
    import io

    from minipeft.checkpoints.files import write_bytes

    held = io.StringIO()
    figure(rows).savefig(held, format="svg")
    svg = held.getvalue()[held.getvalue().index("<svg") :]
    head = "".join(f"<th>{html.escape(c)}</th>" for c in COLUMNS)
    body = "".join(
        f"<tr class={r.method if r.method in ('base', 'head_only') else 'm'}>"
        + "".join(f"<td>{html.escape(c)}</td>" for c in cells(r)) + "</tr>\n"
        for r in rows
    )  # fmt: skip
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}"
        "th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
        "th:first-child,td:first-child{text-align:left}tr.base,tr.head_only{background:#f3f3ef;font-weight:600}"
        "svg{max-width:100%;height:auto}.wide{overflow-x:auto}"
        "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}th,td{border-color:#444}"
        "tr.base,tr.head_only{background:#2a2a2a}svg{background:#fff}}"
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>minipeft compare</title><style>{style}</style><h1>minipeft compare</h1><p>{html.escape(about)}</p>"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{svg}</html>\n"
    )
    write_bytes(path, page.encode())
