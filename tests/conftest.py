"""Settings that every test shares."""

import functools
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is loaded: the workers share the cores already
if sys.dont_write_bytecode:  # some hundred processes that tests start would each compile the package again
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

import typer.main
from hypothesis import HealthCheck, settings

typer.main.get_command = functools.cache(typer.main.get_command)  # of one command line, which hundreds of tests call

collect_ignore_glob = ["record/*"]  # programs that write test data with other libraries are no tests

for name, examples in dict(default=10, wide=20).items():  # wide: --hypothesis-profile wide, as .ci/run has it
    settings.register_profile(
        name,
        deadline=None,  # the first example of a run pays for imports
        derandomize=True,  # the same examples on every machine
        max_examples=examples,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],  # a busy machine is not a fault of the test
    )
settings.load_profile("default")


def pytest_collection_finish():
    """What is there for all of the run need not be looked through each time that garbage is collected."""
    gc.collect()
    gc.freeze()
