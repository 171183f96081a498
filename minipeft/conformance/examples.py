"""Names that the examples in methods' docstrings use without importing them: `pytest -p minipeft.conformance.examples`."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace: dict[str, Any]) -> None:
    """np, and what a method meets: a `Site`, an `Arch`, `Tokens`."""
    import numpy as np

    from minipeft.method import Site
    from minipeft.model.arch import Arch
    from minipeft.model.tokens import Tokens

    doctest_namespace.update(np=np, Site=Site, Arch=Arch, Tokens=Tokens)
