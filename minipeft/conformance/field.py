"""Everybody at once: every harness in an environment of its own, judged on all cases, compared with what is known of it.

`minipeft verify field FOLDER` makes the environments under FOLDER with pip, runs all harnesses, and writes the matrix of the field:
docs/field.html, docs/field.md, docs/field.png. What each is known to fail stands in `minipeft/interop/NAME/known.toml`, with a report's address or a section of
docs/deviations.md.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipeft.conformance import expect
from minipeft.conformance.program import NotStarted
from minipeft.conformance.results import Result
from minipeft.conformance.verify import Chosen, run, unstarted
from minipeft.errors import Bad
from minipeft.processes import end_group, own_group

HERE = Path(__file__).parent
CORE = ("numpy", "scipy", "safetensors")


@dataclass(frozen=True)
class Environment:
    """What pip installs, line by line, and the harnesses that run there."""

    peers: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...]


ENVIRONMENTS = {
    "common": Environment(
        ("peft", "loralib", "lycoris", "litgpt", "mlx-lm", "keras", "bitsandbytes"),
        (
            (
                "torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "bitsandbytes==0.50.2", "keras==3.15.1", "mlx==0.32.4",
                "mlx-cpu==0.32.4", "lightning==2.6.6", "jsonargparse", "einops", "toml", "absl-py", "namex", "optree", "h5py", "ml-dtypes",
            ),
            ("--no-deps", "loralib==0.1.2", "lycoris-lora==4.1.3", "mlx-lm==0.32.2", "litgpt==0.5.13"),
        ),
    ),
    "adapters": Environment(
        ("adapters",), (("torch==2.13.0", "adapters==1.3.0", "transformers==4.57.6", "huggingface_hub<1"),)
    ),
    "torchtune": Environment(
        ("torchtune",),
        (
            ("torch==2.13.0", "torchao==0.10.0", "torchdata==0.11.0", "datasets", "huggingface_hub", "kagglehub", "sentencepiece",
             "tiktoken", "blobfile", "tokenizers", "tqdm", "omegaconf", "psutil", "Pillow"),
            ("--no-deps", "torchtune==0.6.1"),
        ),
    ),
}  # fmt: skip


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def prepare(folder: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, str]:
    """Make the environments that are not there yet: {harness: its interpreter}. Raises `Bad` if pip fails."""
    root = HERE.parents[1]
    if not (root / "pyproject.toml").exists():
        raise Bad("minipeft verify field runs in a checkout of minipeft: it installs that into each environment")
    out: dict[str, str] = {}
    for name, environment in ENVIRONMENTS.items():
        where, done = folder / name, folder / name / "ready"
        python = python_of(where)
        wanted = repr(environment)
        if not done.exists() or done.read_text() != wanted:
            tell(f"making the environment {name}")
            venv.create(where, with_pip=True)
            for packages in (CORE, *environment.installs, ("--no-deps", "-e", str(root))):
                command = [str(python), "-m", "pip", "install", "--quiet", *packages]
                status, said = _run(command)
                if status:
                    last = (said.strip().splitlines() or ["no message"])[-1]
                    raise Bad(f"environment {name}: pip install {' '.join(packages)} failed: {last}")
            done.write_text(wanted)
        out |= dict.fromkeys(environment.peers, str(python))
    return out


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Its status and what it says on standard error. It ends, with all that it started, if this is interrupted."""
    made = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **own_group())
    try:
        said = made.communicate()[1]
    finally:
        end_group(made)
    return made.returncode, said


def judge_all(
    pythons: dict[str, str], chosen: Chosen, jobs: int, limit: float, progress: Callable[[str, Result], None]
) -> tuple[list[Result], list[str]]:
    """All results, minipeft's own first; and what is not as expected, a line each."""
    results, said = [], []
    for peer in ("minipeft", *pythons):
        known = expect.of_harness(peer)
        try:
            found = run(
                peer, chosen, jobs=jobs, limit=limit, python=pythons.get(peer), progress=lambda r, p=peer: progress(p, r)  # type: ignore[misc]
            )  # fmt: skip
        except NotStarted as why:  # the others are judged all the same
            found = unstarted(peer, chosen, why)
        said += expect.unexpected(found, known)
        results += expect.explained(found, known)
    return results, said
