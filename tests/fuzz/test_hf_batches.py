"""Edge batches against transformers, live in float64: where both compute, they compute the same."""

import importlib
import json
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from batches import ROOT, base, drawn

from minipeft.adapted import Adapted
from minipeft.errors import Bad
from minipeft.model.batch import batch

pytestmark = pytest.mark.hf
RECORD = Path(__file__).parents[1] / "record"


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    sys.path.insert(0, str(RECORD))
    from float64 import as_float64

    with as_float64():
        yield
    sys.path.remove(str(RECORD))


@cache
def theirs(name):
    import torch

    config = json.loads((ROOT / name / "config.json").read_text())
    cls = getattr(importlib.import_module("transformers"), config["architectures"][0])
    asked = dict(dtype=torch.float64, attn_implementation="eager", output_loading_info=True)
    model, about = cls.from_pretrained(ROOT / name, **asked)
    return None if about["missing_keys"] else model.eval()  # it does not read the names that a wrapper leaves


def asked(name, given):
    """What transformers makes of it: (logits or hidden state, loss or None); None where it raises."""
    import torch

    if (model := theirs(name)) is None:
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in given.items()}
            out = model(**tensors, use_cache=False)
    except Exception:
        return None
    kinds = ("logits", "prediction_logits", "last_hidden_state")
    return next(out[kind] for kind in kinds if kind in out).numpy(), getattr(out, "loss", None)


def differences(seed, n, changes):
    """(base, what was changed, why) of each batch that is computed otherwise, and how many both compute."""
    found, both = [], 0
    for name, given, told in drawn(seed, n, changes):
        model = base(name)
        try:
            out = Adapted(model).forward(batch(**given))
        except Bad:
            continue
        given = {k: v for k, v in given.items() if k not in ("task_ids",) and v is not None}
        if (there := asked(name, given)) is None:
            continue
        both += 1
        mine = out.hidden if out.logits is None else out.logits
        want, loss = there
        if np.isnan(want).any():  # its softmax of infinite scores
            continue
        error = abs(mine - want).max() if mine.shape == want.shape else np.inf
        if not error <= 1e-11 * max(1, abs(want).max()):
            found.append((name, told, f"output apart by {error:.1e}"))
        elif (
            loss is not None
            and np.isfinite(float(loss))
            and not abs(float(out.loss) - float(loss)) <= 1e-11 * max(1, abs(float(loss)))
        ):
            found.append((name, told, f"loss {float(out.loss)} and {float(loss)}"))
    return found, both


@pytest.mark.parametrize("seed", range(2))
def test_where_both_compute_they_compute_the_same(seed):
    found, both = differences(seed, 250, (0, 3))
    assert not found and both > 80, found
