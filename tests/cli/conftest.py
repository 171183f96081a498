"""Running the command line, inside the test's process or, where signals and terminals are meant, in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(capsys):
    """A command's exit status, standard output and standard error."""
    from minipeft.cli import main

    def called(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return called


@pytest.fixture
def mistake(call):
    """The one line that a mistake is answered with."""

    def mistaken(*words):
        status, out, err = call(*words)
        assert status == 2 and not out, (status, out, err)
        told = [line for line in err.splitlines() if line.startswith("minipeft: ")]
        assert len(told) == 1 and err.endswith(told[0] + "\n"), err
        return told[0]

    return mistaken


@pytest.fixture
def started():
    """A command in a process of its own, its output in pipes; what is still running at the end of the test is killed."""
    running = []

    def start(*words, cwd=None, **more):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | more
        env = {k: v for k, v in env.items() if v is not None}
        command = [sys.executable, "-m", "minipeft", *map(str, words)]
        running.append(subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()
