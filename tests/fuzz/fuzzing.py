"""The fuzzer of files: `python tests/fuzz/fuzzing.py [--files N] [--seed S] [--write]`.

Every file that is drawn is a valid one with one to three mutations. It is read, and what was read is used, in a process that is
watched: nothing may take more than SECONDS or BYTES. `--write` puts the table into docs/robustness.md.
"""

from __future__ import annotations

import argparse
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import mutations
import subjects

from minipeft import limits
from minipeft.errors import Bad

SECONDS, BYTES = 5.0, 500 << 20  # a file may take, read and used
PATIENCE = (
    300  # seconds until a process that does not answer is killed: a file of a million tensors is drawn in there too
)
PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"
OUTCOMES = ("clear", "same", "altered", "unclear", "other exception", "hang", "memory", "knowable")
SOUND = OUTCOMES[:3]
REASONS = (  # (kind, where what is read differs, why that cannot be known)
    ("base", r"arch\.", "another legal value of a field of config.json: nothing says which it was"),
    ("base", r"(param|spare)\.", "other finite numbers of the same shape in a base's file: the format has no digest"),
    ("PEFT adapter", r"(array|trained|base)\.", "other finite numbers, or other legal tensors, in PEFT's file: it has no digest"),
    ("PEFT adapter", r"(setting|option|weight|name)\.", "another legal value of a field of adapter_config.json"),
    ("CSV table", r"", "another text or label of a CSV file"),
    ("expectations", r"", "another text in a file of expectations"),
    ("results", r"", "another number or text in a file of results"),
    ("tokenizer", r"", "another legal tokenizer"),
)  # fmt: skip
ODD = re.compile("[\x00-\x1f\x7f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # what does something to a terminal


class Hung(BaseException):
    """It takes too long."""


def hung(*_: Any) -> None:
    raise Hung


def place(why: BaseException) -> str:
    """Where an exception came from, in the package if it was there."""
    frames = traceback.extract_tb(why.__traceback__)
    own = [f for f in frames if "/minipeft/" in f.filename]
    at = (own or frames)[-1]
    return f"{type(why).__name__} at {at.filename.rpartition('minipeft/')[2]}:{at.lineno}"


def drawn(seed: int, i: int) -> tuple[subjects.Subject, dict[str, Any], list[str]]:
    """The i-th file of a seed: what it was, its mutated files, and what was done to them."""
    rng = np.random.default_rng([seed, i])
    kinds = list(subjects.MAKERS)
    kind = kinds[
        rng.choice(len(kinds), p=np.array([subjects.SHARES[k] for k in kinds]) / sum(subjects.SHARES.values()))
    ]
    names = list(subjects.MAKERS[kind])
    subject = subjects.subject(kind, names[rng.integers(len(names))])
    while True:
        files, told = mutations.mutated(dict(subject.files), rng)
        if told:
            return subject, files, told


def outcome(subject: subjects.Subject, files: dict[str, Any]) -> tuple[str, str]:
    """(outcome, what was said or where) of reading these files and using what was read."""
    with tempfile.TemporaryDirectory() as folder:
        for name, what in files.items():
            mutations.put(Path(folder) / name, what)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = subject.read(Path(folder))
                parts = subject.parts(found)
                if parts != subjects.undamaged(subject.kind, subject.name):
                    subject.use(found)
            said = ""
        except Bad as why:
            said = str(why).replace(folder, "")
        except Hung:
            return "hang", f"more than {SECONDS:g} s"
        except Exception as why:
            return "other exception", place(why)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if (more := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BYTES:
        return "memory", f"{more / 1024:.0f} MB"
    if said:
        fits = 10 <= len(said) <= limits.MESSAGE and not ODD.search(said)
        return ("clear", "") if fits else ("unclear", repr(said[:200]))
    was = subjects.undamaged(subject.kind, subject.name)
    changed = sorted(k for k in was.keys() | parts.keys() if was.get(k) != parts.get(k))
    if not changed:
        return "same", ""
    for kind, where, why in REASONS:
        if kind == subject.kind and all(re.match(where, k) for k in changed[:1]):
            return "altered", why
    return "knowable", changed[0]


def judged(seed: int, i: int) -> tuple[int, str, str, str, str, list[str]]:
    """(i, kind, name, outcome, detail, mutations)."""
    subject, files, told = drawn(seed, i)
    return i, subject.kind, subject.name, *outcome(subject, files), told


def work(seed: int, pipe: Any) -> None:
    """Judge the files whose numbers come through a pipe."""
    signal.signal(signal.SIGALRM, hung)
    most = 4 << 30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for i in iter(pipe.recv, None):
        pipe.send(judged(seed, i))


class Worker:
    """A process that judges one file after another."""

    def __init__(self, seed: int) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(seed, other), daemon=True)
        self.process.start()
        other.close()
        self.asked, self.since = -1, time.monotonic()

    def ask(self, i: int) -> None:
        self.asked, self.since = i, time.monotonic()
        self.pipe.send(i)


def run(n: int, seed: int = 0, jobs: int = 2, tell: Any = lambda done, found: None) -> list[tuple]:
    """Judge n files in processes of their own; one that dies, or does not answer, is judged by that."""
    found: list[tuple] = []
    rest = iter(range(n))
    workers = [Worker(seed) for _ in range(jobs)]
    busy = []

    def next_of(w: Worker) -> None:
        if (i := next(rest, None)) is not None:
            w.ask(i)
            busy.append(w)

    for w in workers:
        next_of(w)
    while busy:
        for w in list(busy):
            try:
                answer = w.pipe.recv() if w.pipe.poll(0.002) else None
            except (EOFError, OSError):
                answer = (w.asked, *lost(seed, w.asked, "other exception", "the process ended"))
                busy.remove(w)
                w = Worker(seed)
            else:
                if answer is None and time.monotonic() - w.since < PATIENCE:
                    continue
                busy.remove(w)
                if answer is None:
                    w.process.kill()
                    answer = (w.asked, *lost(seed, w.asked, "hang", f"killed after {PATIENCE} s"))
                    w = Worker(seed)
            found.append(answer)
            tell(len(found), found)
            next_of(w)
    for w in workers:
        w.process.kill()
    return sorted(found)


def lost(seed: int, i: int, kind: str, detail: str) -> tuple:
    subject, _, told = drawn(seed, i)
    return subject.kind, subject.name, kind, detail, told


def defects(found: list[tuple]) -> dict[str, list[tuple]]:
    """What must not be, by outcome and place."""
    out: dict[str, list[tuple]] = {}
    for one in found:
        if one[3] not in SOUND:
            where = one[4] if one[3] != "unclear" else ""
            out.setdefault(f"{one[3]}: {one[1]}: {where}", []).append(one)
    return dict(sorted(out.items(), key=lambda item: -len(item[1])))


def table(found: list[tuple]) -> str:
    """The outcomes, in Markdown."""
    lines = [
        "| files | tried | clear | same | altered | other exception | hang, memory | knowable |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in [*subjects.MAKERS, "all"]:
        of = Counter(one[3] for one in found if kind in (one[1], "all"))
        bad = of["other exception"] + of["unclear"], of["hang"] + of["memory"]
        cells = [sum(of.values()), of["clear"], of["same"], of["altered"], *bad, of["knowable"]]
        lines.append(f"| {kind} | " + " | ".join(f"{n:,}" for n in cells) + " |")
    lines += ["", "| accepted though altered | files |", "|---|---|"]
    reasons = Counter(one[4] for one in found if one[3] == "altered")
    lines += [f"| {why} | {n:,} |" for why, n in reasons.most_common()]
    return "\n".join(lines)


def bounds() -> str:
    """The limits with their reasons, in Markdown."""
    text = Path(limits.__file__).read_text(encoding="utf-8")
    rows = re.findall(r"^([A-Z_]+) = .*?# (.*)$", text, re.MULTILINE)
    return "\n".join(
        [
            "| limit | value | |",
            "|---|---|---|",
            *(f"| {name} | {getattr(limits, name):,} | {why} |" for name, why in rows),
        ]
    )


def put(page: str, mark: str, text: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, _, rest = page.partition(begin)
    return before + begin + text + "\n" + end + rest.partition(end)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    begun = time.monotonic()

    def tell(done: int, found: list[tuple]) -> None:
        if done % 500 == 0 or done == asked.files:
            bad = sum(one[3] not in SOUND for one in found)
            print(
                f"{done:,} of {asked.files:,} files, {bad} defects, {time.monotonic() - begun:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    found = run(asked.files, asked.seed, asked.jobs, tell)
    print(table(found))
    for what, ones in defects(found).items():
        print(f"{len(ones):4} × {what}\n       {ones[0][0]} {ones[0][2]}: {'; '.join(ones[0][5])[:300]} {ones[0][4]}")
    if asked.write:
        page = PAGE.read_text(encoding="utf-8")
        head = f"{asked.files:,} files, seed {asked.seed}: `python tests/fuzz/fuzzing.py --files {asked.files} --seed {asked.seed} --write`.\n\n"
        PAGE.write_text(put(put(page, "outcomes", head + table(found)), "limits", bounds()), encoding="utf-8")


if __name__ == "__main__":
    main()
