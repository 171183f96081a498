"""What a setting may be: its type, its range, its words."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.conformance.record.variants import options
from minipeft.drawing import draw_all
from minipeft.engine.factors import singular
from minipeft.errors import Bad
from minipeft.method import METHODS, Site, Step, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import at_least, check, choice, choices, count, kind, positive, within

load_methods()


@dataclass(frozen=True)
class Mine:
    r: int = count(8)
    steps: int = at_least(0, 3)
    factor: float = positive(1.0)
    dropout: float = within("[0, 1)", 0.0)
    kept: int | None = count(None, least=0)
    share: int | float = 1
    word: str = choice("one", "two", "three", reading=True)
    flag: bool = False
    several: tuple[int, ...] = ()
    unknown: "list[Mine]" = field(default_factory=list)  # a type that is not known here is left alone

    def __post_init__(self):
        check(self, "mine")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(r=0), "r must be at least 1, found 0"),
        (dict(r=10**7), "r must be at most 65,536, found 10000000"),
        (dict(r=8.0), "r must be an integer, found 8.0"),
        (dict(r=True), "r must be an integer, found True"),
        (dict(r=None), "r must be an integer, found None"),
        (dict(r="8"), "r must be an integer, found '8'"),
        (dict(factor=0), "factor must be positive, found 0"),
        (dict(factor=1e-300), "factor must lie between 1e-09 and 1e.09, found 1e-300"),
        (dict(factor=float("nan")), "factor must be a number of at most 1e.09, found nan"),
        (dict(factor=10**400), "factor must be a number of at most 1e.09, found 1000.*…"),
        (dict(factor=np.inf), "factor must be a number"),
        (dict(dropout=1), r"dropout must lie in \[0, 1\), found 1"),
        (dict(dropout=-1e-9), r"dropout must lie in \[0, 1\), found -1e-09"),
        (dict(kept=-1), "kept must be at least 0, found -1"),
        (dict(kept="all"), "kept must be an integer or None, found 'all'"),
        (dict(share="1"), "share must be an integer or a number of at most 1e.09, found '1'"),
        (dict(word="thre"), r"word must be one of one, two, three, found 'thre' \(did you mean three"),
        (dict(word=None), "word must be text, found None"),
        (dict(flag=1), "flag must be True or False, found 1"),
        (dict(several=3), "several must be integers, found 3"),
        (dict(several=(1, "2")), "several must be integers, found"),
        (dict(several="12"), "several must be integers, found '12'"),
    ],
)
def test_what_does_not_fit_is_one_line(fields, says):
    with pytest.raises(Bad, match=f"^mine: {says}") as told:
        Mine(**fields)
    assert "\n" not in str(told.value) and len(str(told.value)) < 160


def test_numbers_become_pythons_and_lists_tuples():
    """NumPy's numbers would widen float32."""
    made = Mine(r=np.int64(3), factor=np.float64(2.0), flag=np.bool_(True), several=[np.int32(1), 2], kept=np.array(4))
    assert (made.r, made.factor, made.flag, made.several, made.kept) == (3, 2.0, True, (1, 2), 4)
    assert [type(x) for x in (made.r, made.factor, made.flag, made.several[0])] == [int, float, bool, int]
    assert Mine(factor=3).factor == 3 and Mine(kept=None).kept is None
    model = tiny.model("llama", np.float32)
    assert attach(model, LoRA(alpha=np.float64(4))).logits(tiny.example(model)).dtype == np.float32


def test_choices_are_told():
    assert {n: (c.options, c.reading) for n, c in choices(Mine).items()} == {"word": (("one", "two", "three"), True)}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_number_of_every_method_has_a_range(name):
    """A subclass that says a field anew keeps a range for it; `free` says that there is none."""
    cls = METHODS[name]
    if not cls.__module__.startswith("minipeft."):
        return
    for f in dataclasses.fields(cls):
        if kind(f) in ("int", "float", "int | None"):
            assert "rules" in f.metadata, f.name


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_decomposed(wrong):
    """LAPACK does not return from inf."""
    X = np.ones((4, 3))
    X[1, 2] = wrong
    with pytest.raises(Bad, match="osf: there: expected finite numbers to decompose, found 1 of 12 NaN or infinite"):
        singular("osf: there", X)


@pytest.mark.parametrize("name", ["mica", "osf", "pissa"])
def test_a_weight_that_is_not_finite_is_named(name):
    model, site = tiny.model(), "layers.1.attn.q.weight"
    W = model.params[site].copy()
    W[0, 0] = np.inf
    model = dataclasses.replace(model, params={**model.params, site: W})
    with pytest.raises(Bad, match=f"{name}: {site}: expected finite numbers to decompose"):
        attach(model, name)


@pytest.mark.parametrize(
    ("name", "what"), [("lora_ga", "the gradient at"), ("eva", "inputs of"), ("corda", "the inputs of")]
)
def test_what_was_measured_and_is_not_finite_is_named(name, what):
    model, at = tiny.model(), "layers.1.attn.q.weight"
    seen = dict(inputs=[np.full((5, 24), np.inf)], grad=np.full((24, 24), np.nan))
    site = Site(at, (24, 24), "linear", model.arch, model.params[at], **seen)
    with pytest.raises(Bad, match=f"{name}: {what} {at}: expected finite"), np.errstate(invalid="ignore"):
        draw_all(METHODS[name](r=2), [site], np.random.default_rng(0))


def test_a_projection_of_what_is_not_finite_is_named():
    step = Step(3, 9, {"layers.0.out": {"R": np.full((2, 5), np.inf)}}, {}, {})
    with pytest.raises(Bad, match=r"loreft: R of layers\.0\.out after step 3: expected finite"):
        METHODS["loreft"]().after_step(step)


def test_further_values_are_recorded_beside_flags_and_words():
    @dataclass(frozen=True)
    class Some(METHODS["lora"], register=False):
        depth: int = count(1, also=(2, 3))
        way: str = choice("one", "other")
        rest: float = 0.5

    found = options(Some)
    assert (found["depth"], found["way"], found["rslora"]) == ((2, 3), ("one", "other"), (False, True))
    assert not {"rest", "r", "alpha"} & set(found)
