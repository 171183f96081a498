"""Ranks that are processes: forked ones here, those of mpiexec in test_mpi.py."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ranks import bits, in_turn

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine.fast import blocks
from minipeft.engine.mapped import Mapped
from minipeft.errors import Bad, Note
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.processes import _children
from minipeft.settings import small
from minipeft.train import AdamW, fit, workers

load_methods()
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")


def begun(method="lora", dtype=np.float64, **more):
    model = tiny.model("llama", dtype)
    adapted = attach(model, small(METHODS[method], model.arch), seed=3)
    return adapted, [tiny.example(model, rows=rows, seed=rows) for rows in (5, 1, 4)]


HOW = dict(steps=6, optimiser=AdamW(lr=0.01), schedule="cosine", warmup=2, clip=1.0, seed=5)


@pytest.mark.parametrize(
    ("method", "n", "dtype"), [("lora", 2, np.float32), ("adalora", 2, np.float64), ("osf", 3, np.float64)]
)
def test_processes_are_one_process_with_micro_batches(method, n, dtype):
    adapted, data = begun(method, dtype)
    threads, before = blocks.threads_of_library(), _children(os.getpid())
    seen = []
    done = fit(adapted, data, workers=n, progress=lambda *a: seen.append(a), **HOW)
    assert bits(done) == bits(fit(adapted, in_turn(data, n), **HOW))
    assert [a[:3] for a in seen] == [(t, 6, loss) for t, loss in enumerate(done.losses, 1)]
    assert done.ranks == n and blocks.threads_of_library() == threads and _children(os.getpid()) == before


def test_what_lies_in_a_file_is_converted_before_there_are_workers(monkeypatch):
    """Else each would hold numbers of its own."""
    model = tiny.model("llama", np.float32)
    params = {k: Mapped(np.asarray(W).astype(np.float64), k, kept=np.float32) for k, W in model.params.items()}
    adapted = attach(dataclasses.replace(model, params=params), LoRA(r=2))
    fork, held = os.fork, []
    monkeypatch.setattr(os, "fork", lambda: held.append(all("_held" in vars(W) for W in params.values())) or fork())
    done = fit(adapted, [tiny.example(model, rows=2)], steps=2, workers=2)
    assert held == [True] and bits(done) == bits(
        fit(attach(model, LoRA(r=2)), in_turn([tiny.example(model, rows=2)], 2), steps=2)
    )


class Enough(Exception):
    pass


def stopped(t, *_):
    if t == 3:
        raise Enough


@pytest.mark.parametrize(
    ("first", "then"), [(3, 2), *(pytest.param(*n, marks=pytest.mark.wide) for n in ((2, 3), (3, 1)))]
)
def test_a_training_goes_on_with_any_number_of_ranks(first, then, tmp_path):
    adapted, data = begun("adalora")
    how, before = HOW | dict(every=1), _children(os.getpid())
    for n, progress, name in ((first, None, "whole"), (first, stopped, "killed"), (then, None, "killed")):
        try:
            fit(adapted, data, workers=n, progress=progress, checkpoint=tmp_path / name, **how)
        except Enough:
            assert _children(os.getpid()) == before and (tmp_path / name).exists()
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


@dataclass(frozen=True)
class Failing(LoRA, register=False):
    """What goes wrong in rank 1 alone."""

    how: str = ""

    def after_step(self, step):
        if step.t == 2 and os.getpid() != PARENT:
            if self.how == "bad":
                raise Bad("no more of this")
            if self.how == "error":
                raise KeyError("x")
            if self.how == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)


PARENT = os.getpid()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("bad", "^rank 1: no more of this$"),
        ("error", "^rank 1: KeyError: 'x'$"),
        ("exit", "^rank 1: its process ended with status 3; the training ends with it$"),
        ("kill", "^rank 1: its process was ended by SIGKILL; the training ends with it$"),
    ],
)
def test_a_rank_that_fails_ends_the_training_with_a_line(how, says, tmp_path):
    adapted = attach(tiny.model(), Failing(r=2, how=how))
    global PARENT
    PARENT, before = os.getpid(), _children(os.getpid())
    data = [tiny.example(adapted.model, rows=4)]
    with pytest.raises(Bad, match=says):
        fit(adapted, data, steps=5, workers=3 if how == "kill" else 2, checkpoint=tmp_path / "t", every=1)
    assert _children(os.getpid()) == before and [p.name for p in tmp_path.iterdir()] == ["t"]


def test_what_all_ranks_find_is_told_as_one_process_tells_it():
    adapted, data = begun()
    with pytest.raises(Bad, match=r"^step 1: the loss is nan"), np.errstate(all="ignore"):
        fit(adapted.replace({k: x * np.nan for k, x in adapted.theta.items()}), data, steps=2, workers=2)


def test_auto_says_how_many_and_why(monkeypatch):
    adapted, data = begun()
    monkeypatch.setattr(workers, "cores", lambda: 4)
    short = "of 4 threads: 4 cores, 5 rows a batch: a step is too short to be shared out"
    assert workers.chosen(adapted, data) == (1, short)
    monkeypatch.setattr(workers, "PAYS", 0)
    assert workers.chosen(adapted, data) == (3, "of 1 thread each: 4 cores, 5 rows a batch")  # two rows, as four have
    assert workers.chosen(adapted, data, 16) == (5, "of 3 threads each: 16 cores, 5 rows a batch")
    assert workers.chosen(adapted, data[1:2]) == (1, "of 4 threads: 4 cores, 1 row a batch")
    with pytest.warns(Note, match="^3 workers of 1 thread each: 4 cores, 5 rows a batch$"):
        assert fit(adapted, data, steps=1, workers="auto").ranks == 3


def test_there_are_none_elsewhere(monkeypatch):
    adapted, data = begun()
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert workers.chosen(adapted, data) == (1, "processes are forked on Linux alone; `mpiexec` makes several anywhere")
    with pytest.raises(Bad, match="workers: expected 1, found 2: processes are forked on Linux alone"):
        fit(adapted, data, steps=1, workers=2)


# --- the command line -------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


def command(folder, *words):
    """A training on few texts."""
    lines = [f"{'good' if i % 2 else 'bad'} {i},{'ab'[i % 2]},{'test' if i % 8 == 7 else 'train'}" for i in range(80)]
    (folder / "texts.csv").write_text("\n".join(["text,label,split", *lines]))
    given = ["--data", folder / "texts.csv", "--length", 8, "--set", "r=2", *words]
    return [sys.executable, "-m", "minipeft", "train", "lora", str(folder / "a"), *map(str, given)]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.wide
@pytest.mark.parametrize("who", ["worker", "interrupted", "itself"])
def test_a_command_that_is_ended_leaves_nobody_behind(who, tmp_path):
    words = command(tmp_path, "--steps", 5000, "--workers", 2)
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "a" / "training.safetensors").exists() and process.poll() is None:
            time.sleep(0.02)
        (child,) = _children(process.pid)
        begun = time.monotonic()
        pid, number = dict(
            worker=(child, signal.SIGKILL),
            interrupted=(process.pid, signal.SIGINT),
            itself=(process.pid, signal.SIGKILL),
        )[who]
        os.kill(pid, number)
        status, err = process.wait(20), process.stderr.read()
    assert time.monotonic() - begun < 3 and "Traceback" not in err, err
    assert status == dict(worker=2, interrupted=130, itself=-9)[who]
    if who == "worker":
        assert err.endswith("minipeft: rank 1: its process was ended by SIGKILL; the training ends with it\n")
    time.sleep(0.1)
    assert not alive(child)
    assert {p.name for p in (tmp_path / "a").iterdir()} <= {"training.safetensors"}
