"""Regular expressions of others: what Python's `re` says, in a time that is bounded."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import patterns
from minipeft.errors import Bad
from minipeft.limits import PATTERN_LENGTH
from minipeft.patterns import ENDING, first_ending, matches, matching

NAMES = [f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1, 10) for p in "qkv"] + ["lm_head", "score", "q_proj", ""]
WRITTEN = [
    r".*\.(q|v)_proj", r"model\.layers\.(\d|1\d)\..*k_proj$", r"^(?!.*self_attn).*", r"(?i)LM_.*", r"(?:.*?(?:q|k)_proj.*?)|score",
    r"(x?){20}lm_head", r"(\w|\.)+z", r"(a+)+$", "", "lm.head", r"(?P<n>l)m_head", r"(?>lm|l)_head", r"\bscore\b", r"[^.]*", r"(?<=x)a|score",
]  # fmt: skip


@pytest.mark.parametrize("form", ["fullmatch", "match"])
def test_what_is_written_means_what_re_says(form):
    found = matches(WRITTEN, NAMES, "pattern", form)
    for pattern, one in zip(WRITTEN, found, strict=True):
        said = {n: m for n in NAMES if (m := getattr(re.compile(pattern), form)(n))}
        assert one == {n: (m[1] if m.re.groups else None) for n, m in said.items()}, pattern
    assert found == patterns._here(WRITTEN, NAMES, form) == patterns._apart(WRITTEN, NAMES, form, "pattern")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(max_examples=50)
@given(st.text("aq_.*+?()|[]{}1,$^\\d", max_size=8))
def test_any_text_is_one_line_or_what_re_says(pattern):
    if patterns._ways(pattern) * 4 > patterns.WAYS:
        return  # goes to a process of its own
    names = ["q", "aq_a.q", "1", ""]
    try:
        assert matching(pattern, names, "pattern") == {n for n in names if re.fullmatch(pattern, n)}
    except Bad as why:
        assert "\n" not in str(why)
        with pytest.raises(re.error):
            re.compile(pattern)


@pytest.mark.parametrize("pattern", [r"(.*)*_", r"(a?){40}a{40}$|(.+)+=", "(" * 5000 + ")" * 5000, "a" * (PATTERN_LENGTH + 1)], ids=range(4))  # fmt: skip
def test_what_would_never_end_is_one_line(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.2)
    began = time.perf_counter()
    with pytest.raises(Bad) as told:
        matching(pattern, ["a" * 40, "model.layers.0.self_attn.q_proj" * 2], "pattern")
    assert "\n" not in str(told.value) and len(str(told.value)) < 250
    assert time.perf_counter() - began < 5


def test_few_ways_are_told_from_many():
    for pattern in (r".*\.q", "q|k|v", r"(a|b)(c|d)", r"a{3}", r"(x*y)?"):
        assert patterns._ways(pattern) < 300
    for pattern in (r"(a+)+", r"(a|a)*", r"(a*){30}", r"()*", r"(a?){30}", r"(x*x*)?" * 4, r"(a)(?(1)b|c)"):
        assert patterns._ways(pattern) > patterns.WAYS


def test_first_endings_are_those_of_re():
    keys = [
        "layers.1.self_attn.q_proj",
        "k_proj|v_proj",
        "q.proj",
        "q_proj",
        r"layers\.0\..*",
        "score",
        "core",
        "ayers.0.self_attn.q_proj",
        "x" * 500,
    ]
    found = first_ending(keys, NAMES, "pattern")
    for name in NAMES:
        said = next((k for k in keys if re.match(ENDING.replace("{}", k), name)), None)
        assert found.get(name) == said, name
