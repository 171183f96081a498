"""A pytest plugin: `pytest -p minipeft.conformance.plugin --conformance python:module:object` adds a test for every recorded case.

`--conformance-method` and `--conformance-check` (both may be repeated) choose among them; known failures stand in a file given by
`--conformance-expect`.
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


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    name = config.getoption("--conformance")
    if name:
        parent = Cases.from_parent(session, name="conformance", path=Path(str(config.rootpath)))
        try:
            items.extend(parent.collect())
        except ValueError as why:  # a Bad
            raise pytest.UsageError(plain(why)) from None


class Cases(pytest.Collector):
    """All recorded cases, judged together at the first that is run."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.results: dict[str, Any] | None = None
        self.expected: list[Any] = []

    def collect(self) -> Any:
        from minipeft.conformance import expect, verify
        from minipeft.conformance.program import command_of

        option = self.config.getoption
        command_of(option("--conformance"))
        self.chosen = verify.choose(methods=option("--conformance-method"), checks=option("--conformance-check"))
        if path := option("--conformance-expect"):
            self.expected = expect.read_expectations(Path(path))
        return [One.from_parent(self, name=case.id) for case in self.chosen.cases]

    def result(self, name: str) -> Any:
        from minipeft.conformance import verify
        from minipeft.processes import orphans_ended

        if self.results is None:
            implementation = self.config.getoption("--conformance")
            try:
                with orphans_ended():
                    found = verify.run(implementation, self.chosen)
            except verify.NotStarted as why:
                found = verify.unstarted(implementation, self.chosen, why)
            self.results = {r.id: r for r in found}
        return self.results[name]


class One(pytest.Item):
    """One case."""

    def runtest(self) -> None:
        from minipeft.conformance.expect import unexpected

        parent: Any = self.parent
        result = parent.result(self.name)
        if result.outcome in ("SKIP", "N/A"):
            pytest.skip(plain(f"{result.reason} {result.url}".strip()))
        said = unexpected([result], [e for e in parent.expected if e.matches(result)])
        if said:
            raise Wrong(plain(said[0]) + (f"; it equals {', '.join(result.diagnosis)}" if result.diagnosis else ""))

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return str(excinfo.value) if isinstance(excinfo.value, Wrong) else str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.name


class Wrong(Exception):
    """A case that an implementation failed."""
