"""docs/peft.md: what becomes of every field of PEFT's configurations. `python -m minipeft.interop.peft.page` writes it anew.

Nothing in it is listed by hand: which fields there are, and whether they are read, the `SPEC`s tell, and the rest is found
(`minipeft.interop.peft.tuners`).
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minipeft.conformance.places import ARCH
from minipeft.errors import Bad, Note
from minipeft.interop.peft.config import checked
from minipeft.interop.peft.fields import COMMON, Config
from minipeft.interop.peft.registry import method_name, specs
from minipeft.interop.peft.spec import Spec
from minipeft.interop.peft.tuners import (
    OTHER_BASES,
    VERSION,
    Tuner,
    Words,
    first_on_llama,
    is_given,
    is_word,
    known_tuners,
    tuners_of,
    value_at,
)
from minipeft.model.arch import Arch

ROOT = Path(__file__).parents[3]
PAGE, TESTS = ROOT / "docs" / "peft.md", ROOT / "tests"
WIDTH = 60  # letters of names in one row
NONE = "—"


def _reading(tuner: Tuner, name: str) -> str:
    """What becomes of a field when a file is read."""
    if "." in name:
        return "yes"
    told = []
    for method, field in tuner.known[name]:
        ours = [f"`{o}`" for spec in tuner.methods.values() for o, t in spec.settings.items() if t == name]
        ours += [f"`{s.patterns[name]}` by module" for s in tuner.methods.values() if name in s.patterns]
        what = {"read": ", ".join(dict.fromkeys(ours)) or "yes", "plain": f"needless: {field.why}"}
        word = what.get(field.fate, f"refused: {field.why}")
        told.append(f"{word} ({method})" if len(tuner.known[name]) > 1 else word)
    return "; ".join(told)


def _writing(tuner: Tuner, name: str) -> str:
    """What a field of a written file goes by."""
    usual = {w.method: value_at(w.config, name) for w in tuner.written if not w.varied}
    moved = [w for w in tuner.written if w.varied and value_at(w.config, name) != usual[w.method]]
    told = [w.varied for w in moved]
    told += [f"`{s.patterns[name]}` by module" for s in tuner.methods.values() if name in s.patterns]
    seen = {json.dumps(v) for config in tuner.again if (v := value_at(config, name)) not in (None, tuner.default(name))}
    fixed: dict[str, list[str]] = {}
    for method, value in usual.items():
        if value not in (None, tuner.default(name)) and all(w.method != method for w in moved):
            fixed.setdefault(json.dumps(value, default=list), []).append(method)
    for value, methods in fixed.items():
        some = len(methods) < len(usual)
        if some or not seen - fixed.keys():
            told.append(f"`{value}`" + (f" ({', '.join(methods)})" if some else "") if value[0] not in "[{" else "yes")
    if seen - fixed.keys() and not moved and not any(name in s.patterns for s in tuner.methods.values()):
        told.append("yes")
    return ", ".join(dict.fromkeys(told)) or NONE


def _told(cases: Sequence[str]) -> str:
    """Some recorded adapters: the first, how many more, and on which other bases."""
    if not cases:
        return NONE
    own = cases[0].split("/")[0]
    bases = sorted({c.split("/")[0] for c in cases} - {own})
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return cases[0] + more + (f" ({', '.join(bases)})" if bases else "")


def _rows(cells: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows of a table, those with the same cells behind the first as one, unless it gets long."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        groups.setdefault(cell[1:], []).append(cell[0])
    for rest, names in groups.items():
        line: list[str] = []
        for name in names:
            if line and len(", ".join([*line, name])) > WIDTH:
                yield f"| {', '.join(line)} | {' | '.join(rest)} |"
                line = []
            line.append(name)
        yield f"| {', '.join(line)} | {' | '.join(rest)} |"


FIELDS = ["| field | read | written | replayed |", "|---|---|---|---|"]
MODES = ["| field | mode | read as | written by | replayed |", "|---|---|---|---|---|"]


def _names(tuner: Tuner) -> Iterator[str]:
    """The fields of a tuner, and those of its dictionaries."""
    for name, known in tuner.known.items():
        yield name
        for part in known[0][1].kind.parts:
            yield f"{name}.{part}"


def _modes(tuner: Tuner, names: Iterable[str], words: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Rows of the words that fields may be; and of what makes another method of ours, if it is set."""
    for name in names:
        head, _, part = name.partition(".")
        field = tuner.known[head][0][1]
        kind = field.kind.parts[part] if part else field.kind
        every = list(dict.fromkeys([*words.get(name, ()), *kind.options]))
        rows = [(_shown(word), *_mode(tuner, name, word, partial(is_word, word))) for word in every]
        if not every and field.fate == "read" and not part:
            value = next((tuner.recorded[c][name] for c in tuner.cases(name)), True)
            row = _mode(tuner, name, value, partial(is_given, field.default))
            if row[0].split(",")[0] in tuner.methods:
                rows.append(("`true`" if value is True else "given", *row))
        yield from (f"| `{name}` {row}" for row in _rows(rows))


def _mode(tuner: Tuner, name: str, word: Any, holds: Callable[[Any], bool]) -> tuple[str, str, str]:
    """What a field is read as with a word, what writes it so, and in which recorded adapters it is so."""
    by = [f"{w.method} {w.varied}".strip() for w in tuner.written if holds(value_at(w.config, name))]
    again = any(holds(value_at(config, name)) for config in tuner.again)
    writes = ", ".join(_short(by)) or ("yes" if again else "left out" if word == tuner.default(name) else NONE)
    return _probed(tuner, name, word), writes, _told([c for c, v in tuner.recorded.items() if holds(value_at(v, name))])


def _shown(word: Any) -> str:
    return f"`{word if isinstance(word, str) else json.dumps(word)}`"


def _short(labels: Iterable[str]) -> list[str]:
    """Without a method's variations where the method itself is among them."""
    found = dict.fromkeys(labels)
    return [x for x in found if " " not in x or x.split()[0] not in found]


def _plain(tuner: Tuner) -> list[Config]:
    """Configurations as usual: with no more than there must be, and of the recorded adapter that is nearest to that."""
    usual = {name: field.default for name, ((_, field), *_) in tuner.known.items()}
    needed = [name for name, ((_, field), *_) in tuner.known.items() if field.needed]

    def unusual(case: str) -> tuple[bool, int]:
        return not case.startswith("llama/"), sum(tuner.recorded[case].get(k, v) != v for k, v in usual.items())

    recorded = [tuner.recorded[c] for c in sorted(tuner.recorded, key=unusual)[:1]]
    return [usual | {k: config[k] for k in needed} for config in recorded] + recorded


def _settings(config: Config, arch: Arch) -> tuple[str, Config]:
    """Which method of ours a configuration is, with which settings."""
    given = checked(config)
    name = method_name(given)
    try:
        return name, dict(specs()[name].read(given, arch))
    except KeyError:
        return name, {}


def _probed(tuner: Tuner, name: str, word: Any) -> str:
    """What a configuration is read as that has this word, and the usual ones else."""
    head, _, part = name.partition(".")
    if len({spec.peft_type for spec in tuner.methods.values()}) > 1:
        return "yes"  # all of them read it
    value = re.sub(r"\[.*\]", "4", word) if isinstance(word, str) else word
    told = ""
    for plain, arch in itertools.product(_plain(tuner), (ARCH, OTHER_BASES[-1])):  # some words are for two stacks
        try:
            found, new = _settings(plain | {head: {part: value} if part else value}, arch)
        except Bad as why:
            told = told or _first(str(why).removeprefix("adapter_config.json: "))
            continue
        try:
            usual, old = _settings(plain | ({head: {}} if part else {}), arch)
        except Bad:
            return "yes"  # as others are refused there
        if found != usual:
            return ", ".join([found, *_equations(new, [k for k in new if k not in old])])
        differ = _equations(new, [k for k in new if old.get(k) != new[k]])
        return ", ".join(differ) or ("yes" if tuner.known[head][0][1].fate == "read" else "no difference")
    if not told:
        return NONE
    return f"refused: {told}"


def _equations(settings: Config, names: Iterable[str]) -> list[str]:
    return [f"`{k}` = {json.dumps(settings[k])}" for k in names]


def _first(line: str) -> str:
    """The beginning of a message."""
    first, _, rest = re.split(r"([:;] |, )", line, maxsplit=1) if re.search(r"[:;] |, ", line) else (line, "", "")
    return first if " " in first else line


def page(tests: Path | None = TESTS) -> str:
    """The page, with the adapters that are recorded in a folder of tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        return _page(tuners_of(tests if tests is not None and tests.exists() else None), known_tuners())


def _page(every: Mapping[str, Tuner], listed: Words) -> str:
    lines = [INTRODUCTION.format(version=VERSION), "## Every tuner", "", *OVERVIEW]
    for kind in listed:
        lines.append(_overview(kind, every.get(kind)))
    lines += ["", "All of them have the fields of `PeftConfig`:", "", *FIELDS]
    merged = _merged(every)
    lines += [*_rows(_cells(merged, COMMON)), "", *MODES, *_modes(merged, COMMON, {})]
    for kind, words in listed.items():
        lines += ["", f"## {kind}", ""]
        if kind not in every:
            lines += [*FIELDS, *_rows((f"`{name}`", NONE, NONE, NONE) for name in words)]
            continue
        tuner = every[kind]
        own = [name for name in _names(tuner) if name not in COMMON]
        lines += [f"Methods: {', '.join(tuner.methods)}.", *_patches(tuner), "", *FIELDS, *_rows(_cells(tuner, own))]
        if modes := list(_modes(tuner, own, words)):
            lines += ["", *MODES, *modes]
    return "\n".join(lines) + "\n"


def _patches(tuner: Tuner) -> Iterator[str]:
    """What becomes of them on a convolution, where there is anything to be told."""
    told = {name: spec.patches for name, spec in tuner.methods.items() if spec.keys and spec.patches != Spec.patches}
    if there := [name for name, keys in told.items() if not isinstance(keys, str)]:
        yield f"On a convolution: {', '.join(there)}."
    yield from dict.fromkeys(f"Refused on a convolution: {why}." for why in told.values() if isinstance(why, str))


def _cells(tuner: Tuner, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    for name in names:
        yield f"`{name}`", _reading(tuner, name), _writing(tuner, name), _told(tuner.cases(name))


def _merged(every: Mapping[str, Tuner]) -> Tuner:
    """All tuners as one, for the fields that all have."""
    methods = {n: s for t in every.values() for n, s in t.methods.items()}
    recorded = {c: v for t in every.values() for c, v in t.recorded.items()}
    again = [config for t in every.values() for config in t.again]
    return Tuner(
        methods, {name: [("", field)] for name, field in COMMON.items()}, dict(sorted(recorded.items(), key=first_on_llama)),
        again, tuple(w for t in every.values() for w in t.written),
    )  # fmt: skip


OVERVIEW = ["| tuner | methods | read | needless | refused | written | recorded |", "|---|---|---|---|---|---|---|"]


def _overview(kind: str, tuner: Tuner | None) -> str:
    if tuner is None:
        return f"| [{kind}](#{kind.lower()}) |" + f" {NONE} |" * 6
    own = {name: known[0][1].fate for name, known in tuner.known.items()}
    fates = [str(sum(f == fate for f in own.values())) for fate in ("read", "plain", "refused")]
    written = sum(_writing(tuner, name) != NONE for name in own)
    bases = ", ".join(dict.fromkeys(c.split("/")[0] for c in tuner.recorded))
    cells = [f"[{kind}](#{kind.lower()})", ", ".join(tuner.methods), *fates, str(written)]
    return f"| {' | '.join(cells)} | {len(tuner.recorded)}: {bases} |"


INTRODUCTION = """\
# PEFT's configurations, field by field

What becomes of every field of `adapter_config.json`, for every tuner of Hugging Face PEFT {version}. The page is
generated by `python -m minipeft.interop.peft.page` and lists nothing by hand: it asks the code what is read, writes every
method with each of its settings varied, and looks through the adapters that PEFT has written into `tests/data/peft`.

- **read** names our setting that the field becomes, or says *yes* where it tells something else: which modules, for
  instance. *needless* is a field that changes nothing of what is computed with a file's tensors; *refused* one that does
  and is not supported, so that a file in which it is set is refused in one line.
- **written** names what the field goes by in a file that we save: our settings, *by module* where modules may differ, or
  the base. A value is what it always is, for these methods if some are named; *yes*: the adapter tells it. {none}: it is
  left out, or is PEFT's default always.
- **replayed** are the recorded adapters in which the field is not PEFT's default, as `base/case`: the first, how many
  more there are, and their other bases. What PEFT computed with each, we compute too ([guide](guide.md), section 8).

*On a convolution* are the methods that are read and written on ViT's patches, which are a convolution there; no other is.

A **mode** is a word that a field may be; or *given*, if the field makes another method of ours where it is set. *read as*
names that method, or our settings which become others; *no difference*: what is computed with a file is the same. *left
out* is PEFT's default, which we do not write. A tuner that is not read here has {none} everywhere.
""".replace("{none}", NONE)
