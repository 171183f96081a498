"""A bottleneck of parameterised hypercomplex layers."""

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.conformance.laws import moved
from minipeft.errors import Bad
from minipeft.methods.bottleneck.compacter import Compacter
from minipeft.methods.bottleneck.houlsby import Houlsby
from minipeft.methods.bottleneck.pfeiffer import Pfeiffer


def kron(R, left, right):
    return sum(np.kron(R[i], left[i] @ right[i]) for i in range(len(R)))


@pytest.mark.parametrize(("reads", "other"), [("output", Houlsby), ("sum", Pfeiffer)])
def test_it_is_a_bottleneck_with_kronecker_products_for_weights(reads, other):
    model = tiny.model("bert")
    batch = tiny.example(model)
    method = Compacter(n=2, rank=3, reduction=4.0, f="silu", reads=reads)
    adapted = moved(attach(model, method, targets="mlp.out"), by=0.3)
    own = adapted.adapters[0].grouped()
    plain = attach(model, other(reduction=4.0, f="silu"), targets="mlp.out")
    theta = {}
    for site in plain.adapters[0].at:
        a, R = own[site], own[""]["R"]
        found = dict(Wd=kron(R, a["Dl"], a["Dr"]).T, bd=a["bd"], Wu=kron(R, a["Ul"], a["Ur"]).T, bu=a["bu"])
        theta |= {f"default/{site}:{k}": v for k, v in found.items()}
    np.testing.assert_allclose(adapted.logits(batch), plain.replace(theta).logits(batch), rtol=1e-11, atol=1e-11)


def test_rules_are_shared_and_counted_once():
    adapter = attach(tiny.model(), Compacter(n=2, reduction=4.0)).adapters[0]
    d, m, sites = 24, 6, len(adapter.at)
    assert sites == 4 and adapter.size == 2**3 + sites * (2 * (d + m) + d + m)  # rank 1: 2 R (d + m) a site
    assert {k for k in adapter.trained if k.startswith(":")} == {":R"}


def test_how_it_starts():
    arrays = attach(tiny.model(), Compacter(n=2, reduction=4.0, rank=4), seed=3).adapters[0].grouped()
    assert 0.3e-4 < arrays[""]["R"].std() < 3e-4
    drawn = np.concatenate([a["Dl"].ravel() for site, a in arrays.items() if site])  # (12, 4) a slice
    assert abs(drawn.std() / (2 / 16) ** 0.5 - 1) < 0.1
    assert not any(a["bd"].any() or a["bu"].any() for site, a in arrays.items() if site)


def test_widths_that_do_not_divide():
    with pytest.raises(Bad, match=r"compacter: n must divide the widths 24 and 6, found 5, at layers.0.attn.out"):
        attach(tiny.model(), Compacter(n=5, reduction=4.0))
