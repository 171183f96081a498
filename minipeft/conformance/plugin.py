"""A pytest plugin: `pytest -p minipeft.conformance.plugin --conformance python:module:object` adds a test for every recorded case.

`--conformance-method` and `--conformance-check` (both may be repeated) choose among them; known failures stand in a file given by
`--conformance-expect`; `--conformance-require forward,grad` adds a test for every method that these checks, or groups of checks, are
answered. The summary says of every method what was not answered, and of failures what they have in common.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minipeft.plain import plain


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minipeft conformance")
    group.addoption(
        "--conformance", metavar="IMPLEMENTATION", help="python:module:object, exec:'command', or a harness"
    )
    group.addoption("--conformance-method", action="append", metavar="METHOD", help="only this method")
    group.addoption("--conformance-check", action="append", metavar="CHECK", help="only this check")
    group.addoption("--conformance-expect", metavar="FILE", help="known failures")
    group.addoption("--conformance-require", metavar="CHECKS", help="checks or groups that must be answered")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    name = config.getoption("--conformance")
    if name:
        parent = Cases.from_parent(session, name="conformance", path=Path(str(config.rootpath)))
        try:
            items.extend(parent.collect())
        except ValueError as why:  # a Bad
            raise pytest.UsageError(plain(why)) from None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from minipeft.conformance.findings import findings
    from minipeft.conformance.results import from_lines
    from minipeft.conformance.verdicts import grouped, verdict

    every = (report for some in terminalreporter.stats.values() for report in some)
    told = [v for r in every for k, v in getattr(r, "user_properties", ()) if k == KEPT and r.when == "call"]
    results = [r for text in told for r in from_lines(text)]
    if results:
        terminalreporter.section("conformance")
    for (method, name), some in grouped(results).items():
        if (found := verdict(some)).there:
            terminalreporter.write_line(plain(f"{name} {method}: {found}"))
    for f in findings(results):
        terminalreporter.write_line(plain(f"{f.first.implementation}: {f.headline}: {f.first.id}"))


KEPT = "minipeft conformance"  # under which a test's report keeps its result, which other processes hand on


class Cases(pytest.Collector):
    """All recorded cases, judged together at the first that is run."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.results: dict[str, Any] | None = None
        self.expected: list[Any] = []
        self.required: dict[str, tuple[str, ...]] = {}

    def collect(self) -> Any:
        from minipeft.conformance import expect, verdicts, verify
        from minipeft.conformance.program import command_of

        option = self.config.getoption
        command_of(option("--conformance"))
        self.chosen = verify.choose(methods=option("--conformance-method"), checks=option("--conformance-check"))
        if path := option("--conformance-expect"):
            self.expected = expect.read_expectations(Path(path))
        items: list[Any] = [One.from_parent(self, name=case.id) for case in self.chosen.cases]
        if (words := option("--conformance-require")) is not None:
            self.required = verdicts.required(words, (c.check for c in self.chosen.cases))
            methods = dict.fromkeys(c.method for c in self.chosen.cases)
            items += [Required.from_parent(self, name=f"required.{method}") for method in methods]
        return items

    def judged(self) -> dict[str, Any]:
        from minipeft.conformance import expect, verify
        from minipeft.processes import orphans_ended

        if self.results is None:
            implementation = self.config.getoption("--conformance")
            try:
                with orphans_ended():
                    found = verify.run(implementation, self.chosen)
            except verify.NotStarted as why:
                found = verify.unstarted(implementation, self.chosen, why)
            self.results = {r.id: r for r in expect.explained(found, self.expected)}
        return self.results


class Judged(pytest.Item):
    """A test of what was judged."""

    parent: Cases

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return str(excinfo.value) if isinstance(excinfo.value, Wrong) else str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.name


class One(Judged):
    """One case."""

    def runtest(self) -> None:
        from minipeft.conformance.expect import unexpected
        from minipeft.conformance.results import to_lines

        parent = self.parent
        result = parent.judged()[self.name]
        self.user_properties.append((KEPT, to_lines([result])))
        if result.outcome in ("SKIP", "N/A"):
            pytest.skip(plain(f"{result.reason} {result.url}".strip()))
        said = unexpected([result], [e for e in parent.expected if e.matches(result)])
        if said:
            raise Wrong(plain(said[0]) + (f"; it equals {', '.join(result.diagnosis)}" if result.diagnosis else ""))


class Required(Judged):
    """What is required of one method."""

    def runtest(self) -> None:
        from minipeft.conformance.verdicts import lacking

        mine = [r for r in self.parent.judged().values() if f"required.{r.method}" == self.name]
        named = self.config.getoption("--conformance-method") or ()
        for lines in lacking(mine, self.parent.required, named).values():
            raise Wrong(plain(lines[0]))


class Wrong(Exception):
    """A case that an implementation failed."""
