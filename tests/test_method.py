import ast
import dataclasses
import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import one_part
import pytest

import minipeft.methods
from minipeft.arrays import declared, intervenes, rate, trained, when
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw, draw_all
from minipeft.errors import Bad
from minipeft.method import (
    METHODS,
    Here,
    Method,
    Site,
    caches,
    is_weight,
    load_methods,
    method_class,
    samples,
    weight_of,
)
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.batch import batch
from minipeft.model.generate import generate
from minipeft.settings import small
from minipeft.targets import sites

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))


@pytest.fixture
def registry():
    """The registry, put back as it was."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_every_file_under_methods_is_registered():
    files = {p.stem for p in Path(*minipeft.methods.__path__).glob("*/*.py") if p.stem != "__init__"}
    assert {METHODS[n].__module__.rsplit(".", 1)[1] for n in SHIPPED} == files and len(SHIPPED) == len(files)
    assert minipeft.METHODS is METHODS


@pytest.mark.parametrize("name", SHIPPED)
def test_every_method_is_a_frozen_dataclass_named_as_its_file(name):
    cls = METHODS[name]
    file = cls.__module__.rsplit(".", 1)[1]
    assert cls.name == name and name.replace("_", "") == file.replace("_", "") and re.fullmatch(r"[a-z0-9_]+", name)
    assert dataclasses.is_dataclass(cls) and issubclass(cls, Method)
    method = small(cls, tiny.ARCHS["llama"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.targets = "x"
    assert hash(method) == hash(dataclasses.replace(method)) and cls.__doc__


def test_importing_the_package_imports_neither_methods_nor_other_libraries():
    heavy = "torch, transformers, peft, rich, typer, tokenizers, matplotlib, hypothesis, minipeft.methods.lowrank.lora"
    code = f"import sys, minipeft; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_class_names_in_snake_case(registry):
    @dataclass(frozen=True)
    class SomeNewThing2D(Method):
        pass

    class Child(LoRA):
        pass

    class Named(LoRA):
        name = "third-cousin"

    class Hidden(LoRA, register=False):
        pass

    assert (SomeNewThing2D.name, Child.name, Named.name, Hidden.name) == ("some_new_thing2_d", "child", "third-cousin", "hidden")  # fmt: skip
    assert registry["some_new_thing2_d"] is SomeNewThing2D and registry["third-cousin"] is Named
    assert "hidden" not in registry and LoRA.name == "lora"


def test_two_methods_of_one_name(registry):
    with pytest.raises(
        TypeError, match=r"two methods are named 'lora': minipeft\.methods\.lowrank\.lora\.LoRA and .*\.Lora"
    ):

        class Lora(Method):
            pass

    class Mine(Method):
        name = "mine"

    with pytest.raises(TypeError, match="two methods are named 'mine'"):

        class Other(Method):
            name = "mine"

    class Mine(Method):  # noqa: F811  (the same again, as when a notebook's cell is run twice)
        name = "mine"

    assert registry["mine"] is Mine and registry["lora"] is LoRA


@pytest.mark.parametrize(
    ("word", "hint"),
    [("lroa", "lora"), ("prefix", "prefix_tuning"), ("adapter", "_adapter"), ("zzz", "")],
)
def test_a_method_that_is_unknown(word, hint):
    with pytest.raises(Bad, match=f"method {word!r} is unknown") as caught:
        method_class(word)
    found = re.search(r"\(did you mean (.*)\?\)", str(caught.value))
    assert (hint in found[1] if hint else True) and "\n" not in str(caught.value)
    assert str(len(METHODS)) in str(caught.value)


OWN = '''
"""A method of the user's own."""
from dataclasses import dataclass
import numpy as np
import one_part
from minipeft import Method
from minipeft.declare import fill, setting, stored, trained

@dataclass(frozen=True)
class RowGain(Method):
    """A gain for every output, around a fixed one."""
    targets: str = "attn.v.weight"
    start: float = 1.0

    g = trained("out", start=setting("start"))
    g0 = stored("out", start=fill(0.5))

    def weight(self, W, *, g, g0):
        return W * (g + g0)[:, None]
'''


def test_a_file_of_the_users_own_registers_when_it_is_imported(tmp_path, registry):
    (tmp_path / "row_gain.py").write_text(OWN)
    spec = importlib.util.spec_from_file_location("row_gain", tmp_path / "row_gain.py")
    sys.modules["row_gain"] = module = importlib.util.module_from_spec(spec)
    try:
        with pytest.raises(Bad, match="method 'row_gain' is unknown"):
            method_class("row_gain")
        spec.loader.exec_module(module)
        assert method_class("row_gain") is module.RowGain
        model = tiny.model()
        adapted = attach(model, "row_gain")
        name = "layers.0.attn.v.weight"
        assert np.allclose(adapted.run().param(name), 1.5 * model.params[name], rtol=1e-15)
        assert adapted.adapters[0].size == 2 * 12 and len(adapted.adapters[0].stored) == 2
        spec.loader.exec_module(module)  # again
    finally:
        del sys.modules["row_gain"]


# --- what a method is shown -------------------------------------------------------------------------------------------


def test_the_layer_of_a_site():
    layers = {n: s.layer for n, s in sites(tiny.model("t5")).items()}
    assert layers["encoder.layers.1.attn.q.weight"] == 1 and layers["layers.0.cross.q.out"] == 0
    assert layers["head.weight"] is None and layers["embed.tokens.weight"] is None


def test_here_shows_what_the_transformer_shows():
    run = attach(tiny.model(), LoRA()).run()
    here = Here(run, "encoder.layers.12.attn.q.weight", {}, {"x": 3})
    assert (here.x, here.layer, here.arch, here.train) == (3, "encoder.layers.12", run.arch, False)
    with pytest.raises(AttributeError, match=r"site encoder.layers.12.attn.q.weight shows no 'y'; it shows x"):
        _ = here.y
    with pytest.raises(Bad, match="this method routes by task; the batch has no task_ids"):
        here.tasks(2, 1)
    assert (Here(run, "layers.1.mlp.out", {}).param("attn.k.weight") == run.param("layers.1.attn.k.weight")).all()
    assert Here(run, "embed.out", {}).layer == ""


def test_dropout_is_off_but_in_training():
    adapted = attach(tiny.model(), LoRA())
    x = np.ones((50, 40), np.float32)
    assert Here(adapted.run(), "layers.0.in", {}).dropout(x, 0.5) is x
    run = adapted.run(train=True, rng=np.random.default_rng(0))
    assert Here(run, "layers.0.in", {}).dropout(x, 0.0) is x
    out = Here(run, "layers.0.in", {}).dropout(x, 0.2)
    assert out.dtype == np.float32 and set(np.unique(out)) == {np.float32(0), np.float32(1 / np.float32(0.8))}
    assert 0.15 < (out == 0).mean() < 0.25


def test_a_method_without_anything_does_nothing():
    @dataclass(frozen=True)
    class Nothing(Method, register=False):
        targets: str = "attn.q.weight"

    method = Nothing()
    site = Site("layers.0.attn.q.weight", (2, 3), "linear", tiny.ARCHS["llama"])
    facts = Facts(method, site, None)
    assert draw(facts) == {} == draw(facts, shared=True) and draw_all(method, [site], None) == {site.name: (method, {})}
    assert method.penalty({}) is None and rate(method, "A") == 1 and declared(Nothing).held is None
    assert not is_weight(method) and is_weight(LoRA()) and caches(method) and not intervenes(method)
    with pytest.raises(Bad, match=r"nothing changes weights, but target layers.0.attn.q.weight is a weight|nothing"):
        attach(tiny.model(), method)


def test_the_protocol_has_twelve_members():
    """And all of them stand in the guide's table."""
    body = ast.parse(inspect.getsource(Method)).body[0]
    names = (
        getattr(n, "name", None) or n.target.id
        for n in ast.walk(body)
        if isinstance(n, ast.FunctionDef | ast.AnnAssign)
    )
    own = {n for n in names if not n.startswith("_")} - {"name"}
    assert len(own) == 12, sorted(own)
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide[guide.index("| member | says |") : guide.index("All else follows.")]
    assert own == set(re.findall(r"^\| `(\w+)", table, re.M))


def test_what_is_sampled_is_sampled_in_training_alone(registry):
    """`forward` beside `change`: the change says what is merged and what is computed otherwise."""

    @dataclass(frozen=True)
    class Noisy(Method):
        D = trained("out", "in")

        def change(self, *, D):
            return D

        def forward(self, x, base, here, *, D):
            return base(x) + x @ (D * here.random(D.shape) + here.normal(D.shape)).T

    rng = np.random.default_rng(0)
    W, D, x = rng.standard_normal((5, 4)), rng.standard_normal((5, 4)), rng.standard_normal((3, 4))
    drawn = np.random.default_rng(7)
    noise, more = drawn.random(D.shape), drawn.standard_normal(D.shape)
    np.testing.assert_allclose(one_part.output(Noisy(), dict(D=D), x, W), x @ (W + D).T, atol=1e-13)
    sampled = one_part.output(Noisy(), dict(D=D), x, W, train=True, rng=np.random.default_rng(7))
    np.testing.assert_allclose(sampled, x @ (W + D * noise + more).T, atol=1e-13)
    np.testing.assert_allclose(weight_of(Noisy(), W, dict(D=D)), W + D)
    assert samples(Noisy(), train=True) and not samples(Noisy(), train=False)

    @dataclass(frozen=True)
    class Always(Noisy):
        always: bool = True

        @when("always")
        def forward(self, x, base, here, *, D):
            return base(x) + x @ (D * here.normal(D.shape)).T

    noise = np.random.default_rng(7).standard_normal(D.shape)
    for always in (True, False):
        made = Always(always=always)
        got = one_part.output(made, dict(D=D), x, W, rng=np.random.default_rng(7))
        np.testing.assert_allclose(got, x @ (W + (D * noise if always else D)).T, atol=1e-13)
        np.testing.assert_allclose(weight_of(made, W, dict(D=D)), W + D)


@pytest.mark.parametrize("cached", [False, True])
def test_a_method_is_told_what_is_prompt_and_what_generation_has_made(registry, cached):
    seen = []

    @dataclass(frozen=True)
    class Watching(Method):
        def forward(self, x, base, here):
            seen.append((here.past, here.made, here.prefill))
            return base(x)

    adapted = attach(tiny.model(), Watching(), targets="layers.0.attn.q.weight")
    generate(adapted, batch(input_ids=[[3, 4, 5]]), 3, use_cache=cached)
    assert seen == [(3 * (i > 0) + max(i - 1, 0), 0, i == 0) if cached else (0, i, True) for i in range(3)]
    with pytest.raises(Bad, match="this method needs task_ids; the batch has none"):
        here = Here(adapted.run(), "layers.0.attn.q.weight", {})
        here.host("task_ids")
