"""Ctrl-C and SIGTERM: a command ends within a second, shows what it has, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipeft.conformance.laws import LAWS
from minipeft.processes import deaf_to_interrupts, descendants

PEFT_CASES = Path(__file__).parents[1] / "data" / "peft" / "llama"
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def ended(process, said, number=signal.SIGINT):
    """Status, output and errors of a process that is sent a signal once it has said something on standard error."""
    heard = []
    for line in process.stderr:
        heard.append(line.decode())
        if said in heard[-1]:
            break
    below = descendants(process.pid)
    begun = time.monotonic()
    process.send_signal(number)  # to it alone, as `kill` does: what it started does not hear it
    status = process.wait(timeout=20)
    assert time.monotonic() - begun < 3, "a second, and a busy machine's delays"
    out, err = process.stdout.read().decode(), "".join(heard) + process.stderr.read().decode()
    assert "Traceback" not in err and err.endswith("minipeft: interrupted\n"), err
    time.sleep(0.2)
    assert not [pid for pid in below if alive(pid)]
    return status, out, err


SLOWER = (
    "lora",
    "dora",
    "pissa",
    "oft",
    "osf",
    "loha",
    "vera",
    "houlsby",
    "p_tuning",
    "x_lora",
    "ladder_side",
    "adalora",
)


@pytest.mark.wide
@linux
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_check_shows_the_methods_it_has_checked(started, tmp_path, number, status):
    process = started("check", "ia3", *SLOWER, "--json", tmp_path / "out.json")
    got, out, _ = ended(process, f"ia3: {5 * len(LAWS)} hold", number)
    assert got == status and "ia3" in out and f"{5 * len(LAWS)} hold" not in out and f"{len(LAWS)} hold" in out
    assert "ia3" in json.loads((tmp_path / "out.json").read_text())
    assert "adalora" not in out


@linux
def test_replay_shows_the_cases_it_has_replayed(started):
    process = started("replay", *[PEFT_CASES / "lora"] * 400, "--base", PEFT_CASES / "base", "--json", "-")
    status, out, _ = ended(process, "lora: agrees (2 of 400")
    assert status == 130 and 2 <= len(json.loads(out)) < 400


@pytest.mark.wide
@linux
def test_train_keeps_what_it_has_trained(started, tmp_path):
    process = started("train", "lora", tmp_path / "a", "--steps", "5000")
    status, out, err = ended(process, "loss ")
    assert status == 130 and not out and not (tmp_path / "a" / "adapter.json").exists()


@pytest.mark.wide
@linux
def test_compare_shows_the_rows_it_has_and_its_processes_end_with_it(started):
    process = started("compare", "lora", "ia3", "--steps", "5000", "--seeds", "1", "--jobs", "2")
    status, out, _ = ended(process, "majority: ")
    assert status == 130 and "majority" in out and "Interrupted" in out


EARLY = """
import sys
from minipeft.cli import main

class Finder:
    def find_spec(self, name, *rest):
        if name == "numpy":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
main(["list"])
"""


def test_while_numpy_is_read():
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", EARLY], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "minipeft: interrupted\n")


WITHIN_EXEC = """
import signal
from minipeft.cli import main

main([], run=lambda *args, **more: exec("signal.raise_signal(signal.SIGINT)"))
"""


def test_the_status_is_the_same_within_exec(tmp_path):
    (tmp_path / "within.py").write_text(WITHIN_EXEC)
    env = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-m", "within"], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "minipeft: interrupted\n")


STUCK = """
import sys
import numpy as np
from minipeft.cli import main

def factorise(*args, **more):
    print("now", file=sys.stderr, flush=True)
    np.linalg.svd(np.random.default_rng(0).standard_normal((3000, 3000)))

main([], run=factorise)
"""


@linux
def test_what_is_not_in_python_is_not_waited_for():
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", STUCK], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert ended(process, "now")[0] == 130
    finally:
        process.kill()


@linux
def test_a_process_started_deaf_does_not_hear_a_terminal():
    with deaf_to_interrupts():
        process = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(30)"],
                                   stdout=subprocess.PIPE)  # fmt: skip
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
