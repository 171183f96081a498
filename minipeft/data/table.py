"""A user's own CSV file of labelled texts. What would lose rows or make classes of punctuation is refused by its line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from pathlib import Path

from minipeft.checkpoints.files import existing, read_file
from minipeft.data.splits import SPLITS, Splits, grouped, split_of
from minipeft.errors import Bad, near
from minipeft.limits import TABLE_BYTES

FIELD = 1 << 24  # characters that a field may have
MANY = 50  # classes from which on a label column is worth a look


def read_csv(path: str | Path) -> Splits:
    """A CSV file with the columns text and label, and perhaps split (train, valid or test; else by a hash of the text).

    UTF-8, commas between the columns, quotes around a text with commas, quotes or line breaks, and a quote inside of it
    doubled (RFC 4180). Rows without a label are left out. `notes` of what is returned say how many rows were read and which
    classes look odd. Raises `Bad`, in one line, for a missing file or column, a row of more or fewer columns than the header, a
    quote that swallows rows, empty text, an unknown split, a single class, or a split with nothing in it.
    """
    path = existing(path)
    lines = list(io.StringIO(_text(path), newline=""))
    records = _records(path, lines)
    header, at = _header(path, records)
    rows: list[tuple[int, str, str, str]] = []  # line, split, label, text
    seen: Counter[str] = Counter()
    for _, _, row in records[1:]:
        if len(row) == len(header):
            seen[row[at["label"]].strip()] += 1
    unlabelled = 0
    for first, last, row in records[1:]:
        if len(row) != len(header):
            raise Bad(_ragged(path, first, row, header))
        if last > first:
            _swallowed(path, lines, first, last, header, at, seen)
        text, label = row[at["text"]].strip(), row[at["label"]].strip()
        split = row[at["split"]].strip() if "split" in at else ""
        if not text:
            raise Bad(f"{path}: line {last} has no text")
        if split and split not in SPLITS:
            raise Bad(f"{path}: line {last}: split {split!r}; expected train, valid or test{near(split, SPLITS)}")
        if label:
            rows.append((first, split or split_of(text), label, text))
        else:
            unlabelled += 1
    found = grouped([row[1:] for row in rows])
    classes = found["train"].classes
    if len(classes) < 2:
        raise Bad(f"{path}: expected two labels or more, found {', '.join(classes) or 'none'}")
    for split in ("train", "test"):
        if not len(found[split]):
            raise Bad(f"{path}: nothing in the {split} split of {len(rows)} labelled rows")
    found.notes = (_count(path, found, unlabelled), *_odd_classes(path, rows, found))
    return found


def _text(path: Path) -> str:
    data: bytes | bytearray = read_file(path, TABLE_BYTES)
    try:
        if path.suffix == ".gz":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(TABLE_BYTES + 1)
            if len(data) > TABLE_BYTES:
                raise Bad(f"{path}: expected at most {TABLE_BYTES:,} bytes of CSV, it unpacks to more")
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as why:
        raise Bad(f"{path}: expected a CSV file in UTF-8: {why}") from None


def _records(path: Path, lines: list[str]) -> list[tuple[int, int, list[str]]]:
    """(first line, last line, fields) of every record that is not blank; lines count from 1."""
    before = csv.field_size_limit(FIELD)
    reader = csv.reader(lines, strict=True)
    out, first = [], 1
    try:
        for row in reader:
            if any(field.strip() for field in row):
                out.append((first, reader.line_num, row))
            first = reader.line_num + 1
    except csv.Error as why:
        last = reader.line_num
        if "unexpected end of data" in str(why):
            ended = "is not closed before the file ends"
        elif "expected after" in str(why):
            ended = f"closes before the end of its field{f', in line {last}' if last > first else ''}"
        else:
            raise Bad(f"{path}: line {last}: expected a CSV file in UTF-8: {why}") from None
        raise Bad(
            f'{path}: line {first}: a quote (") opens here and {ended}; expected quotes around a whole field, doubled inside of it'
        ) from None
    finally:
        csv.field_size_limit(before)
    return out


def _header(path: Path, records: list[tuple[int, int, list[str]]]) -> tuple[list[str], dict[str, int]]:
    """The names of the columns, and where text, label and split stand; spaces around a name and its case do not matter."""
    header = [name.strip() for name in records[0][2]] if records else []
    names = [name.casefold() for name in header]
    at: dict[str, int] = {}
    for needed in ("text", "label", "split"):
        if names.count(needed) > 1:
            raise Bad(f"{path}: expected one column {needed!r}, found {names.count(needed)}")
        if needed in names:
            at[needed] = names.index(needed)
        elif needed != "split":
            other = next((c for c in "\t;|" if len(header) == 1 and c in header[0]), "")
            what = {"\t": "tabs", ";": "semicolons", "|": "bars"}.get(other)
            if what:
                raise Bad(f"{path}: expected commas between the columns text and label, found {what}: {header[0]!r}")
            raise Bad(f"{path}: no column {needed!r}; found {', '.join(header) or 'none'}{near(needed, header)}")
    return header, at


def _ragged(path: Path, line: int, row: list[str], header: list[str]) -> str:
    columns = f"{len(row)} column{'s' if len(row) > 1 else ''}"
    why = "; a text with a comma needs quotes around it" if len(row) > len(header) else ""
    return f"{path}: line {line} has {columns}, expected {len(header)} ({', '.join(header)}){why}"


def _swallowed(
    path: Path, lines: list[str], first: int, last: int, header: list[str], at: dict[str, int], seen: Counter[str]
) -> None:
    """Refuse a record of several lines of which two or more are rows of their own: a stray quote opened it, another closed it.

    One of its lines may look like a row: that with the label.
    """

    # a text's own commas shift what comes after it: count columns from the end that is not shifted
    place = at["label"] - (len(header) if at["label"] > at["text"] else 0)

    def looks_like_a_row(line: str) -> bool:
        fields = line.replace('"', "").rstrip("\r\n").split(",")
        return len(fields) >= len(header) and fields[place].strip() in seen

    alike = [i for i in range(first, last + 1) if looks_like_a_row(lines[i - 1])]
    if len(alike) > 1:
        raise Bad(
            f'{path}: line {first}: a quote (") opens in this row and closes in line {last}, and {len(alike)} of the lines between '
            "look like rows of their own; expected quotes around a whole field, doubled inside of it"
        )


def _count(path: Path, found: Splits, unlabelled: int) -> str:
    sizes = ", ".join(f"{len(found[s]):,} {s}" for s in SPLITS)
    total = sum(len(found[s]) for s in SPLITS)
    left = f"; {unlabelled:,} without a label left out" if unlabelled else ""
    classes = found["train"].classes
    shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
    return f"{path}: {total:,} labelled rows ({sizes}), {len(classes)} classes ({shown}){left}"


def _odd_classes(path: Path, rows: list[tuple[int, str, str, str]], found: Splits) -> list[str]:
    """Lines about classes that may be none."""
    lines: dict[str, list[int]] = {}
    for line, _, label, _ in rows:
        lines.setdefault(label, []).append(line)
    out = []
    once = [f"{label!r} (line {where[0]})" for label, where in lines.items() if len(where) == 1]
    if len(lines) > MANY:
        out.append(f"{path}: {len(lines)} classes: is label a column of classes?")
    if once:
        some = ", ".join(once[:3]) + (f" and {len(once) - 3} more" if len(once) > 3 else "")
        out.append(f"{path}: seen in one row only: {some}")
    folded: dict[str, list[str]] = {}
    for label in lines:
        folded.setdefault(label.casefold(), []).append(label)
    out += [
        f"{path}: classes that differ by case alone: {', '.join(same)}" for same in folded.values() if len(same) > 1
    ]
    never = [c for i, c in enumerate(found["train"].classes) if i not in set(found["train"].labels)]
    if never:
        out.append(f"{path}: no row to train on: {', '.join(map(repr, never[:5]))}{', …' if len(never) > 5 else ''}")
    return out
