"""Ranks that mpiexec starts: the same bytes as forked ones, and one that fails ends all."""

import ctypes
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.cli import main
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.lowrank.adalora import AdaLoRA
from minipeft.processes import launched
from minipeft.train import AdamW, fit, mpi

ROOT = Path(__file__).parents[2]
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
ranks = pytest.mark.skipif(not (MPIEXEC and find_spec("mpi4py")), reason="needs mpi4py and an mpiexec")


@dataclass(frozen=True)
class Failing(AdaLoRA, register=False):
    """What goes wrong in rank 1 alone, after two steps of a training that is not resumed."""

    name = "adalora"

    def after_step(self, step):
        super().after_step(step)
        if step.t == 3 and launched()[0] == 1 and (how := os.environ.get("FAILS")):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise dict(bad=Bad("no more of this"), error=KeyError("x"), interrupt=KeyboardInterrupt)[how]


def train(checkpoint, workers, shift=0):
    adapted = attach(tiny.model(), Failing(r=3, target_r=2), seed=3)
    data = [tiny.example(adapted.model, rows=rows, seed=rows + shift) for rows in (5, 1, 4)]
    return fit(
        adapted,
        data,
        steps=6,
        optimiser=AdamW(lr=0.01),
        clip=1.0,
        seed=5,
        workers=workers,
        checkpoint=checkpoint,
        every=1,
    )


def run(n, *words, **more):
    """What n ranks of a program say and how they end."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | more
    env |= dict(
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
    )
    words = [MPIEXEC, "-n", str(n), sys.executable, *map(str, words)]
    begun = time.monotonic()
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr, time.monotonic() - begun


@ranks
def test_a_killed_rank_ends_all_and_one_process_goes_on(tmp_path):
    train(tmp_path / "whole", 2)
    status, _, err, _ = run(2, __file__, tmp_path / "killed", FAILS="kill")
    assert status and "Traceback" not in err and (tmp_path / "killed").read_bytes() != (tmp_path / "whole").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "killed"}
    assert train(tmp_path / "killed", 1).ranks == 1
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.wide
@ranks
@pytest.mark.parametrize(("how", "says"), [("bad", "no more of this"), ("error", "KeyError: 'x'")])
def test_a_rank_that_fails_is_told_by_rank_0(how, says, tmp_path):
    status, out, err, _ = run(2, __file__, tmp_path / how, FAILS=how)
    assert status and out == f"rank 1: {says}\n", (status, out, err)


@ranks
@pytest.mark.slow
def test_ranks_of_different_trainings_and_one_that_is_interrupted(tmp_path):
    status, out, err, _ = run(3, __file__, tmp_path / "t", DIFFERENT="1")
    assert status == 2 and out == "rank 1: has another data than rank 0\n", (status, out, err)
    status, out, err, seconds = run(2, __file__, tmp_path / "i", FAILS="interrupt")
    assert status and seconds < 5, (status, out, err)


@ranks
@pytest.mark.slow
def test_three_ranks_share_out_parts_and_numbers_unevenly(tmp_path):
    status, out, err, _ = run(3, __file__, tmp_path / "mpi")
    train(tmp_path / "forked", 3)
    assert status == 0, (out, err)
    assert (tmp_path / "mpi").read_bytes() == (tmp_path / "forked").read_bytes()


class Pair:
    """A communicator of NCCL among threads, on memory of the host: what is sent waits until its group ends."""

    NCCL_UINT8 = 1

    def __init__(self, rank, boxes):
        self.rank, self.boxes, self.group = rank, boxes, None

    def groupStart(self):
        self.group = []

    def send(self, at, n, kind, peer, stream):
        self.boxes[self.rank, peer].put(ctypes.string_at(at, n))

    def recv(self, at, n, kind, peer, stream):
        self.group.append((at, n, peer))

    def groupEnd(self):
        for at, n, peer in self.group:
            found = self.boxes[peer, self.rank].get(timeout=20)
            assert len(found) == n
            ctypes.memmove(at, found, n)


class OnDevice(np.ndarray):
    """An array that says where it lies as CuPy's do."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


@pytest.mark.parametrize("parts", [(1, 1), (0, 1), (1, 2, 1), (0, 0, 1)])
def test_what_nccl_hands_on_is_added_up_in_the_order_of_the_parts(parts, monkeypatch):
    """With a stand-in for NCCL: each rank is handed its share of the numbers, and all are given the sums."""
    stream = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=0))
    monkeypatch.setattr(mpi.xp, "cuda", stream, raising=False)
    monkeypatch.setattr(mpi.Nccl, "empty", staticmethod(lambda shape, dtype: np.empty(shape, dtype).view(OnDevice)))
    monkeypatch.setattr(mpi.Nccl, "there", staticmethod(lambda x: x.view(OnDevice)))
    size, rng = len(parts), np.random.default_rng(0)
    boxes = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    given = [rng.standard_normal((p, 7)).astype(np.float32) * 10.0 ** rng.integers(-6, 6, (p, 7)) for p in parts]
    every = np.concatenate(given)
    expected = every[0]
    for more in every[1:]:
        expected = expected + more

    def of_rank(rank):
        world = object.__new__(mpi.World)
        world.rank, world.size = rank, size
        world.wire = mpi.Nccl(it := Pair(rank, boxes), rank, it)
        return np.asarray(world._added(given[rank], parts))

    with ThreadPoolExecutor(size) as pool:
        for found in pool.map(of_rank, range(size)):
            assert found.tobytes() == expected.tobytes()


@pytest.mark.wide
@ranks
def test_the_command_is_the_same_under_mpiexec(tmp_path):
    lines = [f"{'good' if i % 2 else 'bad'} {i},{'ab'[i % 2]},{'test' if i % 8 == 7 else 'train'}" for i in range(80)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label,split", *lines]))
    given = ["--data", tmp_path / "texts.csv", "--length", 8, "--set", "r=2", "--steps", 3]
    status, out, err, _ = run(2, "-m", "minipeft", "train", "lora", tmp_path / "mpi", *given)
    assert status == 0 and out.count("\n") == 1 and "2 ranks of which each sent" in out, (out, err)
    assert err.count("judging") <= 1
    with pytest.raises(SystemExit, match="0"):
        main(["train", "lora", *map(str, [tmp_path / "forked", *given, "--workers", 2])])
    for name in ("training.safetensors", "adapter.safetensors", "adapter.json"):
        assert (tmp_path / "mpi" / name).read_bytes() == (tmp_path / "forked" / name).read_bytes(), name


@ranks
@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path):
    status, out, err, _ = run(2, "-m", "minipeft", "train", "lorra", tmp_path / "a")
    assert (status, out) == (2, "") and err.count("minipeft: method 'lorra' is unknown") == 1 == err.count("\n")


def test_what_mpiexec_started():
    assert launched() == (0, 1)


if __name__ == "__main__":
    try:
        train(Path(sys.argv[1]), "mpi", shift=launched()[0] if os.environ.get("DIFFERENT") else 0)
    except Bad as why:
        if not launched()[0]:
            print(why, flush=True)
        sys.exit(2)
