"""The task: a base with a classifier, its tokenizer, and the batches that all methods see."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft import data as datasets
from minipeft.adapted import Adapted
from minipeft.arrays import needs
from minipeft.attaching import attach
from minipeft.checkpoints import load, with_head
from minipeft.engine.backend import to_host
from minipeft.errors import Bad
from minipeft.method import Method
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.model.batch import Batch, batch
from minipeft.text import ByteTokenizer, Tokenizer, cut, load_tokenizer, padded

SHORT = 24  # tokens of a snippet of the package: enough to tell its source, and half the time of whole ones
LONG = 256  # tokens of a user's text, unless --length says more
ROOM = 16  # positions left for virtual tokens
HELD_OUT = 2000  # labelled texts to judge on, at most
PLAIN = 200  # held-out texts for the original task


@dataclass(frozen=True)
class Task:
    """What all methods see. `notes` are lines that one should read: what was cut, left out, or looks odd."""

    model: Model
    language: Model | None  # the same arrays with the language-model head, for a decoder
    train: tuple[Batch, ...]  # gone through in turn
    test: tuple[Batch, ...]
    text: tuple[Batch, ...]  # held-out text, for the original task
    text_before: float | None  # the base's loss on it
    classes: tuple[str, ...]
    steps: int
    length: int
    shares: tuple[float, ...] = ()  # how likely each class is, from what is trained on (Laplace's rule)
    notes: tuple[str, ...] = ()

    @property
    def widest(self) -> Batch:
        """The batch that takes the most memory."""
        return max(self.train, key=lambda b: b.input_ids.size)

    @property
    def labels(self) -> np.ndarray:
        """The classes of all held-out examples, in order."""
        return np.concatenate([b.host("labels") for b in self.test])


def head_of(model: Model) -> list[str]:
    """The parameters of the classifier, with a dense layer in front of it that the base had not."""
    return [k for k in model.params if k.startswith("score.") or k in model.drawn]


def prepare(
    base: str | Path | None = None, csv: str | Path | None = None, *, steps: int = 150, rows: int = 32,
    length: int | None = None, held_out: int = HELD_OUT, seed: int = 0, dtype: Any = None,
) -> Task:  # fmt: skip
    """The task: the base of the package or a checkpoint folder, on the snippets of the package or a user's CSV file.

    `length` is how many tokens a text may have; by default as many as 95 % of a user's texts have, and 24 of a snippet.
    `seed` draws the order of the training texts and what the classifier's layers start from. `dtype` is as in `load`;
    default float32. Raises `Bad` for a base that reads no text or whose tokenizer is another model's, and for a length
    beyond what the base has positions for.
    """
    for name, value in (("steps", steps), ("rows", rows), ("held_out", held_out)):
        if value < 1:
            raise Bad(f"{name} must be at least 1, found {value}")
    folder = Path(base) if base is not None else datasets.BASE
    model = load(folder, dtype if dtype is not None else np.float32)
    arch = model.arch
    if arch.encoder_layers or arch.patch:
        raise Bad(f"{folder}: compare needs a text encoder or a decoder, found {arch.family}")
    tokenizer = load_tokenizer(folder, arch.vocab)
    snippets = datasets.load_snippets() if csv is None else datasets.read_csv(csv)
    notes = list(snippets.notes)
    if isinstance(tokenizer, ByteTokenizer):
        notes.append(f"{folder}: no tokenizer, so a token is a byte of UTF-8")
    tokens = _Tokens(tokenizer, arch, folder)
    length = _length(tokens, snippets, csv is None, length, arch)
    everyone, test = snippets["train"], snippets["test"].first(held_out)
    if len(snippets["test"]) > held_out:
        notes.append(f"judged on {held_out:,} of {len(snippets['test']):,} held-out texts")
    order = np.random.default_rng(seed).permutation(len(everyone))[: steps * rows]
    used = [everyone.texts[i] for i in order] + list(test.texts)
    long = sum(len(tokens[t]) > length for t in used)
    if long:
        notes.append(
            f"{long:,} of {len(used):,} texts ({100 * long / len(used):.0f} %) are cut at {length} tokens (--length)"
        )

    language = model if arch.head == "lm" else None
    classified = with_head(model, "classify", len(everyone.classes), seed)
    if classified.arch.problem:  # of the classifier that the file had; here a text has one class
        classified = dataclasses.replace(classified, arch=dataclasses.replace(classified.arch, problem=""))
    text: tuple[Batch, ...] = ()
    if language is not None:
        ids, mask = padded([cut(tokens[t], length) for t in datasets.held_out_text()[:PLAIN]], tokenizer.pad_id)
        labels = np.where(mask == 1, ids, -100)
        text = (batch(input_ids=ids, attention_mask=mask, labels=labels, task_ids=np.zeros(len(ids), int)),)
        both = dataclasses.replace(arch, labels=len(everyone.classes))
        language = dataclasses.replace(model, arch=both, params={**classified.params, **model.params})
    counts = 1 + np.bincount(everyone.labels, minlength=len(everyone.classes))  # what was never seen is not impossible
    made = Task(
        classified,
        language,
        tuple(_batches(tokens, everyone, rows, length, order)),
        tuple(_batches(tokens, test, 100, length, np.arange(len(test)))),
        text,
        None,
        everyone.classes,
        steps,
        length,
        tuple(counts / counts.sum()),
        tuple(notes),
    )
    return dataclasses.replace(made, text_before=text_loss(Adapted(classified), made))


class _Tokens(dict[str, list[int]]):
    """The ids of texts, made once each, and seen to be the model's."""

    def __init__(self, tokenizer: Tokenizer, arch: Arch, folder: Path) -> None:
        super().__init__()
        self.tokenizer, self.arch, self.folder = tokenizer, arch, folder
        self._known([tokenizer.pad_id])

    def __missing__(self, text: str) -> list[int]:
        self[text] = self._known(self.tokenizer.encode_one(text))
        return self[text]

    def _known(self, ids: list[int]) -> list[int]:
        if max(ids, default=0) >= self.arch.vocab:
            raise Bad(
                f"{self.folder}: its tokenizer is another model's: it gives id {max(ids)}, the model has {self.arch.vocab:,} tokens"
            )
        return ids


def _length(tokens: _Tokens, snippets: datasets.Splits, own: bool, length: int | None, arch: Arch) -> int:
    """How many tokens a text may have."""
    limit = arch.max_positions - arch.first_position - ROOM if arch.max_positions else None
    if length is not None:
        if length < 2:
            raise Bad(f"--length must be at least 2, found {length}")
        if limit is not None and length > limit:
            raise Bad(
                f"--length {length}: expected at most {limit}: the base has {limit + ROOM} positions, {ROOM} of them are for virtual tokens"
            )
        return length
    if own:
        length = SHORT
    else:  # the same whatever the seed
        some = [*snippets["train"].texts[:1000], *snippets["test"].texts[:1000]]
        most = int(np.quantile([len(tokens[t]) for t in some], 0.95, method="higher"))
        length = min(max(8, -8 * (-most // 8)), LONG)
    return length if limit is None else max(2, min(length, limit))


def _batches(tokens: _Tokens, snippets: datasets.Snippets, rows: int, length: int, order: np.ndarray) -> list[Batch]:
    """Batches of similar lengths, in a fixed order."""
    cuts = {i: cut(tokens[snippets.texts[i]], length) for i in order}
    if len(order) >= 4 * rows:  # sort by length within groups of batches, so that little is padding
        groups = np.arange(len(order)) // (8 * rows)
        order = order[np.lexsort((np.array([len(cuts[i]) for i in order]), groups))]
    out = []
    for i in range(0, len(order), rows):
        some = order[i : i + rows]
        ids, mask = padded([cuts[j] for j in some], tokens.tokenizer.pad_id)
        labels = np.array([snippets.labels[j] for j in some])
        out.append(batch(input_ids=ids, attention_mask=mask, labels=labels, task_ids=np.zeros(len(some), int)))
    if len(out) > 8:
        out = [out[i] for i in np.random.default_rng(len(out)).permutation(len(out))]
    return out


def judged(adapted: Adapted, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """The loss of every labelled example, in float64, and whether its class was found."""
    losses, right = [], []
    for b in batches:
        z = to_host(adapted.logits(b)).astype(np.float64)
        labels = b.host("labels")
        z -= z.max(axis=-1, keepdims=True)
        losses.append(np.log(np.exp(z).sum(axis=-1)) - z[np.arange(len(z)), labels])
        right.append(z.argmax(axis=-1) == labels)
    return np.concatenate(losses), np.concatenate(right)


def judge(adapted: Adapted, batches: Sequence[Batch]) -> tuple[float, float]:
    """Mean loss and accuracy on labelled batches."""
    losses, right = judged(adapted, batches)
    return float(losses.mean()), float(right.mean())


def text_loss(adapted: Adapted, task: Task) -> float | None:
    """Mean loss on held-out text with the language-model head, the adapters as they are."""
    if task.language is None:
        return None
    model = dataclasses.replace(task.language, params={**task.language.params, **adapted.model.params})
    there = dataclasses.replace(adapted, model=model)
    return sum(float(to_host(there.forward(b).loss)) for b in task.text) / len(task.text)


def start(task: Task, method: Method, seed: int = 0, name: str = "default") -> Adapted:
    """The method attached to the task's model, the classifier trained whole beside it."""
    data = task.train[:2] if needs(method) else ()
    return attach(task.model, method, name=name, train_whole=head_of(task.model), data=data, seed=seed)
