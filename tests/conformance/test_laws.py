"""All laws on all methods; and each law is seen to fail on an error planted for it."""

import itertools
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from minipeft.conformance import laws, tiny
from minipeft.engine import fast
from minipeft.engine.tensor import OPS, op
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, frozen, load_methods
from minipeft.methods.bottleneck.pfeiffer import Pfeiffer
from minipeft.methods.lowrank.lora import LoRA

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = list(tiny.ARCHS)


# in float32 a decoder, an encoder and an encoder-decoder; the other families have no arithmetic of their own
IN_FLOAT32 = ["llama", "bert", "t5"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_law_holds(name, dtype):
    verdicts = list(laws.check(METHODS[name], None if dtype is np.float64 else IN_FLOAT32, dtype=dtype))
    assert {v.law for v in verdicts if v.outcome == "pass"} == set(laws.LAWS)
    assert not [f"{v.law} on {v.family}: {v.reason}" for v in verdicts if v.outcome == "fail"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_law_holds_on_the_text_alone(name):
    with fast.text():
        verdicts = list(laws.check(METHODS[name], ["bert" if name == "bitfit" else "llama"], dtype=np.float64))
    assert {v.law for v in verdicts if v.outcome == "pass"} == set(laws.LAWS)
    assert not [f"{v.law}: {v.reason}" for v in verdicts if v.outcome == "fail"]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_fits_most_families(name):
    """A method that fits nowhere would pass every law."""
    fits = [f for f in FAMILIES if laws.case(METHODS[name].sized(tiny.ARCHS[f]), f) is not None]
    assert {"llama", "bert"} <= set(fits) or (name == "bitfit" and "bert" in fits)


# --- settings drawn by Hypothesis ---------------------------------------------------------------------------------------


def one_of(*choices):
    return st.sampled_from(choices)


ranks, flag, positive = st.integers(1, 6), st.booleans(), st.floats(0.5, 8.0)
LORA = dict(r=ranks, alpha=positive, rslora=flag)
BOTTLENECK = dict(reduction=one_of(2.0, 3.0, 8.0, 100.0), f=one_of("gelu", "silu", "tanh"))
EXPERTS = st.lists(st.builds(LoRA, r=ranks, alpha=positive), min_size=1, max_size=2).map(tuple)
DRAWN = {
    "adalora": dict(r=st.integers(3, 6), target_r=st.integers(1, 2), alpha=positive, orth=one_of("norm", "squared")),
    "adapter_fusion": dict(
        adapters=st.lists(st.builds(Pfeiffer, reduction=one_of(2.0, 5.0), f=one_of("gelu", "tanh")), min_size=1, max_size=2).map(tuple),
        query=one_of("input", "output"),
    ),
    "bitfit": dict(part=one_of("all", "small")),
    "dora": LORA | dict(lora_bias=st.just(False), grad=one_of("detached", "full")),
    "eva": LORA | dict(rho=one_of(1.0, 2.0), whiten=flag),
    "fourierft": dict(n_frequency=st.integers(1, 60), scaling=positive, seed=st.integers(0, 9), start=one_of("normal", "zero")),
    "full": {},
    "houlsby": BOTTLENECK | dict(start=one_of("normal", "zero")),
    "ia3": dict(inputs=one_of("mlp.down.weight", "", "attn.k.weight")),
    "invertible": BOTTLENECK | dict(start=one_of("normal", "zero")),
    "ladder_side": dict(r=one_of(2, 4, 8), f=one_of("gelu", "silu")),
    "llama_adapter": dict(K=ranks),
    "loha": dict(r=ranks, alpha=positive),
    "lokr": dict(r=ranks, alpha=positive, factor=one_of(-1, 4, 12), decompose_both=flag, start=one_of("peft", "lycoris")),
    "lora": LORA | dict(lora_bias=flag, targets=one_of(LoRA.targets, "all-linear", "embed.tokens.weight|all-linear")),
    "lora_ga": dict(r=ranks, alpha=positive, reading=one_of("paper", "peft"), direction=one_of("ArB2r", "A2rBr")),
    "lora_plus": LORA,
    "loreft": dict(r=ranks, n_pre=st.integers(0, 4), n_suf=st.integers(1, 4), tied=flag),
    "oft": dict(block=one_of(2, 3, 4, 8), cayley=one_of("neumann", "exact"), block_share=flag),
    "osf": dict(effective_rank=one_of(None, 3, 0.5)),
    "p_tuning": dict(p=ranks, encoder=one_of("lstm", "mlp"), hidden=one_of(0, 5), layers=one_of(1, 2)),
    "parallel_adapter": BOTTLENECK | dict(s=positive, learned_scale=flag, reads=one_of("input", "residual")),
    "pfeiffer": BOTTLENECK | dict(start=one_of("normal", "zero")),
    "pissa": dict(r=ranks, alpha=positive),
    "poly": dict(r=ranks, n_tasks=one_of(1, 2), n_skills=st.integers(1, 3), n_splits=one_of(1, 2)),
    "prefix_tuning": dict(p=ranks, hidden=one_of(0, 5), start=one_of("normal", "zero"), positions=one_of("after", "zero")),
    "prompt_tuning": dict(p=ranks, start=one_of("normal", "vocab")),
    "qlora": LORA | dict(block=one_of(16, 64), double_quant=flag),
    "shira": dict(r=st.integers(1, 4), scale=positive, seed=one_of(None, 3)),
    "trainable_tokens": dict(tokens=st.lists(st.integers(2, 49), min_size=1, max_size=4, unique=True).map(tuple)),
    "vera": dict(r=ranks, d_initial=positive, seed=st.integers(0, 9)),
    "x_lora": dict(
        experts=EXPERTS, softmax=flag, temperature=positive,
        start=one_of("zero", "random"), gamma=positive,
    ),
}  # fmt: skip
SLOW = {"learns", "frozen", "dtype"}  # these train; they are run at the usual settings above


def test_every_method_has_settings_to_draw():
    assert sorted(DRAWN) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=3, phases=[Phase.generate])  # no shrinking: one example takes up to a second
@given(data=st.data())
def test_laws_hold_for_drawn_settings(name, data):
    drawn = {field: data.draw(choices, label=field) for field, choices in DRAWN[name].items()}
    family = data.draw(st.sampled_from(FAMILIES), label="family")
    there = laws.case(METHODS[name](**drawn), family, seed=data.draw(st.integers(0, 99), label="seed"))
    for law, holds in laws.LAWS.items():
        if there is not None and law not in SLOW:
            holds(there)


# --- planted errors -----------------------------------------------------------------------------------------------------

DOC = """Yardstick: right, so that one thing can be wrong. Nobody 2026, https://example.org

    W' = W + B A

    A  (r, in)   trained   small
    B  (out, r)  trained   0

Size     r (in + out) numbers per adapted matrix.
Merges   exactly.
Differs  on purpose.
"""


@dataclass(frozen=True)
class Right(Method, register=False):
    """LoRA without frills, of which every planted error changes one thing."""

    targets: str = "attn.q.weight attn.v.weight"
    r: int = 3
    doc = DOC

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(register=False)
        _in_a_module_of_its_own(cls)

    def init(self, site, rng):
        out, in_ = site.shape
        return dict(A=0.3 * rng.standard_normal((self.r, in_)), B=np.zeros((out, self.r)))

    def weight(self, W, *, A, B):
        return W + B @ A


def _in_a_module_of_its_own(cls):
    """The laws read a method's page from the docstring of its module."""
    module = types.ModuleType(f"planted.{cls.__name__}", cls.doc)
    sys.modules[module.__name__] = module
    cls.__module__ = module.__name__


_in_a_module_of_its_own(Right)


def laws_broken(method):
    """{law: reason} of the laws that the method breaks on the tiny Llama."""
    METHODS[method.name] = type(method)  # loading a saved adapter looks its method up
    try:
        return {v.law: v.reason for v in laws.check(method, ["llama"]) if v.outcome == "fail"}
    finally:
        del METHODS[method.name]


def test_the_yardstick_breaks_no_law():
    assert not laws_broken(Right())


def test_a_start_that_is_no_identity():
    class Started(Right):
        def init(self, site, rng):
            arrays = super().init(site, rng)
            return arrays | dict(B=arrays["B"] + 1e-9)

    assert "identity at layers.0.attn.q.weight" in laws_broken(Started())["identity"]


def test_an_identity_in_the_logits_alone():
    """RMS norm hides a factor on the last residual stream from the logits, but not from the site."""

    class Doubled(Right):
        targets = "layers.1.out"

        def init(self, site, rng):
            return {}

        def apply(self, h, here):
            return h * 2.0

        weight = property()

    there = laws.case(Doubled(targets="layers.1.out"))
    with pytest.raises(laws.Broken, match=r"identity at layers\.1\.out"):
        laws.identity(there)


def test_a_stored_array_that_moves():
    class Leaking(Right):
        def init(self, site, rng):
            return super().init(site, rng) | dict(c=frozen(np.ones(3)))

        def weight(self, W, *, A, B, c):
            return W + B @ A

        def after_step(self, step):
            for arrays in step.stored.values():
                arrays["c"].setflags(write=True)
                arrays["c"] *= 1.01

    assert "a stored array changed" in laws_broken(Leaking())["frozen"]


def test_a_write_to_the_base():
    class Writing(Right):
        def weight(self, W, *, A, B):
            W += 1e-3
            return W + B @ A

    with pytest.raises(ValueError, match="read-only"):
        laws_broken(Writing())


def test_training_that_trains_nothing():
    class Idle(Right):
        def weight(self, W, *, A, B):
            return W

    assert "learns" in laws_broken(Idle())


@op
def too_large(x):
    """The identity, its gradient 1 % too large."""
    return x * 1.0, (lambda g: 1.01 * g,)


@op
def untransposed(x):
    """The transpose of a square matrix, its gradient left as it came."""
    return x.T.copy(), (lambda g: g,)


for planted in ("too_large", "untransposed"):
    del OPS[planted]  # they are no ops of the engine


@pytest.mark.parametrize("error", [too_large, untransposed], ids=lambda f: f.__name__)
def test_a_wrong_gradient(error):
    class Off(Right):
        def weight(self, W, *, A, B):
            return W + B @ (error(A[:, :3]) @ A)

    broken = laws_broken(Off())
    assert list(broken) == ["gradient"] and "random direction of A" in broken["gradient"]


def test_a_lost_scale_in_the_fast_path():
    class Fast(Right):
        def weight(self, W, *, A, B):
            return W + 2.0 * (B @ A)

        def forward(self, x, base, here, *, A, B):
            return base(x) + (x @ A.T) @ B.T

    broken = laws_broken(Fast())
    assert "forward against weight at layers.0.attn.q.weight" in broken["forward"]
    assert "merged logits" in broken["merge"]


def test_a_transposed_factor_in_the_fast_path():
    class Turned(Right):
        targets = "layers.0.attn.o.weight"

        def forward(self, x, base, here, *, A, B):
            return base(x) + (x @ B) @ A

    assert "forward" in laws_broken(Turned(targets="layers.0.attn.o.weight"))


def test_a_merge_that_forgets_something():
    class Halved(Right):
        def bias(self, b, *, A, B):  # told to `linear`, not to `merge`
            return b

        def forward(self, x, base, here, *, A, B):
            return base(x) + (x @ A.T) @ B.T + 1e-6

    assert "merged logits" in laws_broken(Halved())["merge"]


def test_a_float64_that_leaks():
    class Wide(Right):
        def weight(self, W, *, A, B):
            return W + np.float64(0.5) * (B @ A)

    assert "became float64 in a float32 model" in laws_broken(Wide())["dtype"]


def test_ascent_instead_of_descent():
    class Uphill(Right):
        def after_backward(self, step):
            for arrays in step.grads.values():
                for name in arrays:
                    arrays[name] = -arrays[name]

    assert "learns" in laws_broken(Uphill())


def test_something_that_is_not_saved():
    ticks = itertools.count()

    class Remembering(Right):
        def weight(self, W, *, A, B):
            return W + B @ A * (1 + 1e-3 * (next(ticks) % 7))

    assert "computes something else" in laws_broken(Remembering())["round_trip"]


@pytest.mark.parametrize(
    ("line", "wrong", "law"),
    [
        ("A  (r, in) ", "A  (in, r) ", "table"),
        ("A  (r, in)   trained", "A  (r, in)   stored ", "table"),
        ("    B  (out, r)  trained   0\n", "", "table"),
        ("    B  (out, r)  trained   0\n", "    B  (out, r)  trained   0\n    C  (out)     trained   0\n", "table"),
        ("Merges   exactly.", "Merges   no: it cannot.", "table"),
        ("r (in + out)", "r in + out", "size"),
    ],
)
def test_a_page_that_is_not_true(line, wrong, law):
    assert line in DOC
    mistaken = DOC.replace(line, wrong)

    class Misread(Right):
        doc = mistaken

    assert list(laws_broken(Misread())) == [law]


def test_unknown_families_are_named():
    with pytest.raises(Bad, match="did you mean llama"):
        list(laws.check(Right(), ["lama"]))
