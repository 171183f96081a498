"""What is wrong with an implementation, from all that it fails: one mistake is looked for that explains as much as it can.

The plainest failure of a method is tried on everything: what others have done wrong, settings read otherwise, arrays taken otherwise,
the text written otherwise. What explains it is tried on the other failures first, so that they have its name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from minipeft.conformance import mutants
from minipeft.conformance.cases import Case
from minipeft.conformance.groups import GROUP_OF
from minipeft.conformance.judge import judge
from minipeft.conformance.moments import MOMENTS, moment
from minipeft.conformance.mutants import killing, supposing
from minipeft.conformance.mutants.killing import answer, is_of
from minipeft.conformance.mutants.rewriting import rewritten
from minipeft.conformance.mutants.supposing import Supposed
from minipeft.conformance.own import Own
from minipeft.conformance.results import Result

SEARCHES = 2  # of a method, in its text; what is not found in so many failures is not looked for in the others
TOLD = 12  # causes of one failure
Answers = Callable[[Case], Mapping[str, Any] | None]


@dataclass(frozen=True, eq=False)
class Failure:
    """A failure, and what was given."""

    case: Case
    got: Mapping[str, Any]
    result: Result


def diagnosed(failures: Sequence[Failure]) -> list[Result]:
    """The results of failures of one implementation, each with what explains it, in the order given."""
    found: dict[str, tuple[str, ...]] = {}
    by: dict[str, list[Failure]] = {}
    for f in failures:
        by.setdefault(f.result.method, []).append(f)
    for mine in by.values():
        found |= _of_method(mine)
    return [dataclasses.replace(f.result, diagnosis=found[f.result.id]) for f in failures]


def _of_method(failures: Sequence[Failure]) -> dict[str, tuple[str, ...]]:
    order = list(GROUP_OF)
    ranked = sorted(failures, key=lambda f: (f.result.variant != "usual", order.index(f.result.check), f.result.id))
    known: dict[str, Answers] = {}
    searches, rough = SEARCHES, dict[str, tuple[str, ...]]()
    passes = [f for f in ranked if f.case.ask == "forward"]
    if all(f.case.config.get("dropout") and "keep" not in f.case.inputs for f in passes):
        # outputs are as wanted without a rate, and are not with one: no two masks that nobody gave are alike
        rough |= dict.fromkeys((f.result.id for f in passes), ("dropout_in_evaluation",))
    drawn: dict[str, tuple[str, ...]] = {}
    for f in ranked:
        if f.case.tolerance == "DRAWN":
            drawn |= _drawn(f)
            rough[f.result.id] = tuple(chain(*_drawn(f).values()))
    for f in ranked:
        if f.result.id in rough:
            continue
        if f.case.tolerance == "REJECT":
            rough[f.result.id] = (*f.case.flags, "any_file_is_taken")
            continue
        if f.case.tolerance == "SHAPES":
            rough[f.result.id] = (*chain(*(drawn.get(name, (said,)) for name, said in _begun(f))), "not_identity")
            continue
        if any(is_of(f.case, f.got, tried(f.case)) for tried in known.values()):
            continue
        said = killing.roughly(f.case, f.got)
        if said:
            rough[f.result.id] = tuple(said)
        made = dict(_search(f, searches > 0))
        searches -= not made
        known |= made
    out, planted = {}, mutants.every()
    for f in ranked:
        names = [name for name, answers in known.items() if is_of(f.case, f.got, answers(f.case))]
        names.sort(
            key=lambda name: f.result.check not in planted[name].checks if name in planted else True
        )  # meant for it
        out[f.result.id] = tuple(names[:TOLD]) or rough.get(f.result.id, ())
    return out


def _drawn(f: Failure) -> dict[str, tuple[str, ...]]:
    """{array: how its numbers begin otherwise than they are to}, of those that do."""
    out: dict[str, list[str]] = {}
    found = {name: float(moment(name, f.got)) for name in f.case.want}
    off = {k for k, v in f.case.want.items() if not abs(found[k] - v) <= f.case.k * f.case.cond[k]}
    for name in dict.fromkeys(k.rpartition(".")[0] for k in sorted(off)):
        is_, want = ({k: float(a.get(f"{name}.{k}", 0.0)) for k in MOMENTS} for a in (found, f.case.want))
        said = out.setdefault(name, [])
        fixed = f.case.cond[f"{name}.square"] <= 1e-5 * want["square"]
        if not is_["square"] or not want["square"]:
            said.append(f"{name} begins at 0" if want["square"] else f"{name} does not begin at 0")
        elif fixed and f"{name}.mean" in f.case.want:
            said.append(f"{name} begins at {is_['mean']:.4g}, not at {float(want['mean']):.4g}")
        elif f"{name}.square" in off:
            said.append(f"{name} begins {math.sqrt(is_['square'] / want['square']):.3g} times as wide as it is to")
        elif f"{name}.kurtosis" in off:
            one, other = ("uniform" if k < 2.4 else "normal" for k in (is_["kurtosis"], want["kurtosis"]))
            said.append(f"{name} begins with {one} numbers, and {other} ones are meant")
        else:
            said.append(f"{name} begins around {is_['mean']:.3g}, not around {float(want['mean'] or 0):.3g}")
    return {name: tuple(said) for name, said in out.items()}


def _begun(f: Failure) -> Iterator[tuple[str, str]]:
    """Of fresh arrays that change the model those that alone must begin otherwise, and what is said of them."""
    right = Own().init(f.case)
    for name in f.case.want:
        if judge(f.case, {**f.got, name: right[name]}, f.result).outcome == "PASS":
            yield name, f"{name} does not begin as it is to: the fresh adapter changes the model"


def _search(f: Failure, deeply: bool) -> Iterator[tuple[str, Answers]]:
    """What explains a failure, by the first of the kinds of mistakes that has one."""
    found = False
    for name, other in killing.alternatives(f.case):
        if is_of(f.case, f.got, answer(other, f.case)):
            found = True
            yield name, partial(_alternative, name, other)
    if found or not deeply:
        return
    for _, kind in groupby(
        chain(((-1, it) for it in supposing.of_arrays(f.case)), rewritten(f.case)), key=itemgetter(0)
    ):
        for _, it in kind:
            for name, answers in _supposed(f, it):
                found = True
                yield name, answers
        if found:
            return


def _supposed(f: Failure, it: Supposed) -> Iterator[tuple[str, Answers]]:
    if it.neutral is None:
        if is_of(f.case, f.got, it.answer(f.case)):
            yield it.words, it.answer
        return
    number = supposing.solved(f.case, f.got, it)
    if number is None:
        return
    for name, of in supposing.called(f.case, number):
        answers = partial(_numbered, it, of)
        if is_of(f.case, f.got, answers(f.case)):
            yield it.words.format(name), answers


def _alternative(name: str, other: Own, case: Case) -> Mapping[str, Any] | None:
    planted = mutants.every().get(name)
    return answer(other, case) if planted is None or planted.concerns(case) else None


def _numbered(it: Supposed, of: Callable[[Case], float | None], case: Case) -> Mapping[str, Any] | None:
    number = of(case)
    return None if number is None else it.answer(case, number)
