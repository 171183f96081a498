"""What a slider says is what the method does: counts and ranks have closed forms."""

from minipeft.conformance import tiny
from minipeft.method import method_class
from minipeft.site.effects import effects


def test_counts_ranks_and_shares():
    found = effects(method_class("lora"))
    arch = tiny.ARCHS["llama"]
    assert {e.value: (e.trained, e.rank) for e in found["r"]} == {r: (2 * r * arch.d, r) for r in (1, 2, 3, 4, 6, 8)}
    shares = [e.share / e.value for e in found["alpha"]]  # ΔW is linear in α
    assert max(shares) - min(shares) < 1e-12 * max(shares)


def test_what_is_out_of_range_is_left_out_and_what_changes_no_weight_has_none():
    assert [e.value for e in effects(method_class("c3a"))["block"]] == [1, 2, 3, 4, 6]  # 8 divides no width there
    assert effects(method_class("houlsby")) == {}
