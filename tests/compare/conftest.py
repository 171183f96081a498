import pytest

from minipeft.compare import prepare


@pytest.fixture(scope="session")
def task():
    """A small task on the decoder of the package."""
    return prepare(steps=3, rows=8, length=12, held_out=40)
