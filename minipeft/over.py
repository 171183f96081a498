"""Methods that are built over trained adapters of another method: mixtures of experts, fusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from minipeft.arrays import declared
from minipeft.errors import Bad
from minipeft.method import Method
from minipeft.settings import part_of


def beginning(method: Any, given: Mapping[str, Mapping[str, Any]]) -> Any:
    """The method, with arrays to begin with in place of what their starts say: {site: {name: array}}, "" for what is shared."""
    object.__setattr__(method, "given", given)
    return method


class OverAdapters(Method, register=False):
    """A method whose setting `parts` holds others, with arrays of theirs: drawn afresh, or given trained."""

    given: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # {site: {"A0": …}} of adapters that were given

    @classmethod
    def from_adapters(cls, adapters: Sequence[Any], **fields: Any) -> Any:
        """A method over these trained adapters (`minipeft.adapted.Adapter`), at all of their sites.

        Raises `Bad` for adapters of another method, with settings that differ from site to site, or, where the method
        needs them all at every site, at other sites than the first.
        """
        setting, part = part_of(cls) or ("", Method)
        same_sites = any(p.same_sites for p in declared(cls).parts.values())
        trained: dict[str, dict[str, Any]] = {}
        for k, adapter in enumerate(adapters):
            if same_sites and (type(adapter.method) is not part or set(adapter.at) != set(adapters[0].at)):
                first = adapters[0].name
                raise Bad(
                    f"{cls.name}: adapter {adapter.name!r} must be {part.__name__}, at the same sites as {first!r}"
                )
            if any(method != adapter.method for method in adapter.at.values()):
                raise Bad(
                    f"{cls.name}: adapter {adapter.name!r} is not the same method at all sites, or trains whole modules"
                )
            for site, arrays in adapter.grouped().items():
                trained.setdefault(site, {}).update({f"{name}{k}": a for name, a in arrays.items()})
        made = cls(**{"targets": " ".join(trained), setting: tuple(a.method for a in adapters), **fields})
        return beginning(made, trained)
