import pytest

from minipeft.compare import prepare

collect_ignore = ["conftest.py"]  # it holds no doctests, and another folder has a module of this name


@pytest.fixture(scope="session")
def task():
    """A small task on the decoder of the package."""
    return prepare(steps=3, rows=8, length=12, held_out=40)
