"""The names that others call our modules by."""

from __future__ import annotations

import re
from collections.abc import Mapping


class Names:
    """A bijection between our module names and a checkpoint family's, from a table of patterns with {n} for a layer.

    `stored` has the names of those that are called otherwise in files. They are also what the modules were called when such
    a file was new, so that older adapters name them too: `ours` knows both.
    """

    def __init__(
        self, table: Mapping[str, str], transposed: tuple[str, ...] = (), stored: Mapping[str, str] | None = None
    ) -> None:
        self.table = dict(table)
        in_files = dict(stored or {})
        self._to_ours = [(self._regex(theirs), ours) for t in (self.table, in_files) for ours, theirs in t.items()]
        self._to_stored = [(self._regex(ours), theirs) for ours, theirs in (self.table | in_files).items()]
        self._to_theirs = [(self._regex(ours), theirs) for ours, theirs in self.table.items()]
        self.transposed = tuple(self._regex(t) for t in transposed)  # ours, stored (in, out) in their files

    @staticmethod
    def _regex(pattern: str) -> re.Pattern:
        return re.compile(re.escape(pattern).replace(r"\{n\}", r"(?P<n>\d+)"))

    @staticmethod
    def _swap(rules: list, module: str) -> str | None:
        for pattern, target in rules:
            if found := pattern.fullmatch(module):
                return target.format(**found.groupdict())
        return None

    def ours(self, module: str) -> str | None:
        """Our name of their module, None if it is not in the table."""
        return self._swap(self._to_ours, module)

    def theirs(self, module: str) -> str | None:
        """Their name of our module, None if it is not in the table."""
        return self._swap(self._to_theirs, module)

    def stored(self, module: str) -> str | None:
        """The name of our module in files, None if it is not in the table."""
        return self._swap(self._to_stored, module)

    def all(self, module: str) -> list[str]:
        """Their names of our module, today's first."""
        return list(dict.fromkeys(n for n in (self.theirs(module), self.stored(module)) if n))

    def is_transposed(self, module: str) -> bool:
        """Whether their file stores this module's (our name) weight as (in, out)."""
        return any(p.fullmatch(module) for p in self.transposed)
