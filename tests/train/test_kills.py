"""Trainings that are killed at any moment, between the two files of a save too, and started again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import files
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.processes import _children
from minipeft.settings import small
from minipeft.train import AdamW, fit

STEPS, KILLS = 30, 20
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
FILES = ("training.safetensors", "adapter.safetensors", "adapter.json")


def train(method, folder):
    load_methods()
    adapted = attach(tiny.model(), small(METHODS[method], tiny.ARCHS["llama"]), seed=3)
    batches = [tiny.example(adapted.model, seed=d) for d in (1, 2)]
    done = fit(
        adapted, batches, steps=STEPS, optimiser=AdamW(lr=0.01), schedule="cosine", warmup=3, clip=1.0, seed=5,
        checkpoint=folder / FILES[0], every=1, workers=int(os.environ.get("WORKERS", 1)),
    )  # fmt: skip
    save_adapter(done.adapted, folder)


def dying(moment):
    """Kills this process before or after it gives a file its place; `moment` counts both."""
    left, place = [moment], os.replace

    def replace(*paths):
        for at in (lambda: None, lambda: place(*paths)):
            at()
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    files.os.replace = replace


def started(method, folder, moment=0, workers=1):
    command, env = [sys.executable, __file__, method, str(folder), str(moment)], ENVIRONMENT | {"WORKERS": str(workers)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout.readline() == b"begins\n", process.stderr.read()
    return process


def ended(process):
    """Whether it came to its end, before it was killed."""
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adalora", "vera", "osf", "prefix_tuning"])
def test_a_hundred_kills(method, tmp_path):
    """Twenty of each method: it ends with the same bytes, and what lies there until then is whole or told to be not."""
    before = time.perf_counter()
    assert ended(started(method, tmp_path / "undisturbed"))
    seconds = time.perf_counter() - before
    expected = {name: (tmp_path / "undisturbed" / name).read_bytes() for name in FILES}
    moments, chance, kills, runs, torn = random.Random(method), tmp_path / "killed", 0, 0, 0
    last = 2 * STEPS + 4  # a run that begins afresh gives a file its place so many times, before and after
    while kills < KILLS:
        folder = chance / str(runs)
        if kills % 3 == 0:  # between the files of the last save, wherever the run begins
            left = STEPS - trained(folder)
            process = started(method, folder, 2 * left + moments.choice([1, 2, 3, 4]))
        elif kills % 3 == 1:
            process = started(method, folder, moments.randint(1, last))
        else:
            process = started(method, folder)
            time.sleep(moments.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
        if ended(process):
            assert {name: (folder / name).read_bytes() for name in FILES} == expected
            runs += 1
            continue
        kills += 1
        try:
            load_adapter(tiny.model(), folder)
        except Bad as why:
            assert "\n" not in str(why)
            torn += 1
    assert ended(started(method, folder)) and torn
    assert {name: (folder / name).read_bytes() for name in FILES} == expected


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
@pytest.mark.parametrize("method", ["adalora", "osf"])
def test_kills_of_ranks(method, tmp_path):
    """Of rank 0 or another, of any number of them, once they have begun as two: the bytes are those of two."""
    assert ended(started(method, tmp_path / "undisturbed", workers=2))
    moments, folder, workers, kills = random.Random(method), tmp_path / "killed", 2, 0
    while kills < KILLS // 2:
        process = started(method, folder, workers=workers)
        while not trained(folder) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.02))
        others = _children(process.pid)
        if others and kills % 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(moments.choice(others), signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 1, -signal.SIGKILL), said
        assert process.returncode != 1 or (b"Bad: rank" in said and b"was ended by SIGKILL" in said), said
        if process.returncode == 0:  # to its end
            assert all((folder / f).read_bytes() == (tmp_path / "undisturbed" / f).read_bytes() for f in FILES)
            folder, workers = tmp_path / str(kills), 2
            kills += 1  # none, but time is short
            continue
        kills, workers = kills + 1, moments.choice([1, 2, 3])
    assert ended(started(method, folder, workers=2 if not trained(folder) else 3))
    assert all((folder / f).read_bytes() == (tmp_path / "undisturbed" / f).read_bytes() for f in FILES)


def trained(folder):
    """How many steps its checkpoint has."""
    file = folder / FILES[0]
    return len(files.read_tensors(file, keys=["losses"])["losses"]) if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "vera"])
def test_a_save_over_another_that_is_killed_is_told(method, tmp_path):
    """After the arrays have their place and before their description has its own."""
    load_methods()
    save_adapter(attach(tiny.model(), small(METHODS[method], tiny.ARCHS["llama"]), seed=4), tmp_path)
    load_adapter(tiny.model(), tmp_path)
    assert not ended(started(method, tmp_path, 2 * STEPS + 2))
    with pytest.raises(Bad, match="are not of one save: it was interrupted"):
        load_adapter(tiny.model(), tmp_path)
    assert ended(started(method, tmp_path))
    load_adapter(tiny.model(), tmp_path)


if __name__ == "__main__":
    if int(sys.argv[3]):
        dying(int(sys.argv[3]))
    print("begins", flush=True)
    train(sys.argv[1], Path(sys.argv[2]))
