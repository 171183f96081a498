"""What a slider says is what the method does: counts and ranks have closed forms."""

import base64
import html
import json
import re

import numpy as np
import pytest

from minipeft.conformance import tiny
from minipeft.method import method_class
from minipeft.site.effects import STEPS, effects, sliders


def test_counts_ranks_and_shares():
    found = effects(method_class("lora"))
    arch = tiny.ARCHS["llama"]
    assert {e.value: (e.trained, e.rank) for e in found["r"]} == {r: (2 * r * arch.d, r) for r in (1, 2, 3, 4, 6, 8)}
    shares = [e.share / e.value for e in found["alpha"]]  # ΔW is linear in α
    assert max(shares) - min(shares) < 1e-12 * max(shares)
    off, on = found["rslora"]  # α/√r for α/r
    assert (off.value, on.value) == (False, True) and np.allclose(on.values, off.values * 8**0.5, rtol=1e-12)
    for e in found["r"]:
        assert np.linalg.norm(e.values) == pytest.approx(np.linalg.norm(e.change), rel=1e-12)


def test_what_is_out_of_range_is_left_out():
    assert [e.value for e in effects(method_class("c3a"))["block"]] == [1, 2, 3, 4, 6]  # 8 divides no width there


def test_of_an_activation_the_last_hidden_state():
    found = effects(method_class("houlsby"))["reduction"]
    arch, trained = tiny.ARCHS["llama"], {e.value: e.trained for e in found}
    assert trained == {
        v: 4 * (2 * m * arch.d + m + arch.d) for v in trained for m in (int(arch.d / v),)
    }  # attn, mlp; 2 layers
    assert all(e.change.shape[1] == arch.d and e.share > 0 for e in found)


def test_a_slider_has_all_it_shows():
    """Pictures are of one scale, and the value in use comes first."""
    cls = method_class("lora")
    found = effects(cls)
    of = dict(zip(found, sliders(cls, found).splitlines()))
    (data,) = re.findall(r'data-rows="([^"]*)"', of["r"])
    rows, tried = json.loads(html.unescape(data)), found["r"]
    assert len(rows) == len(tried) and 'value="5"' in of["r"] and "<code>r = 8</code>" in of["r"]
    most = max(abs(e.change).max() for e in tried)
    for row, e in zip(rows, tried):
        seen = np.frombuffer(base64.b64decode(row["change"]), np.int8).reshape(-1, row["wide"]) / STEPS * most
        assert abs(seen - e.change).max() <= most / STEPS / 2 * (1 + 1e-9)
        assert len(row["values"]) == e.rank and row["facts"][0] == f"{e.trained:,} numbers trained"
    assert max(v for row in rows for v in row["values"]) == 1.0
    assert "<code>rslora = False</code>" in of["rslora"]
