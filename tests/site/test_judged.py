"""A method's page tells what the field found, and which deviations concern it."""

import re

from minipeft.method import METHODS, load_methods
from minipeft.site import judged

load_methods()
FIELD = """# Who
| method | minipeft 0.1.0 | mlx-lm 1 | other 2 |
|---|---|---|---|
| lora | `✓✓` PASS 2 of 2 | `✗·` FAIL 1 of 2 (1 wrong: a \\| b) | – |
| lora_ga | `✓✓` PASS 3 of 3 | – | – |
"""
DEVIATIONS = """# Deviations
## it-lora-ga-reload
text
## it-combine
of `lora.combine.*`
## it-dora
text
"""


def test_who_has_the_method():
    assert judged.verdicts("lora", FIELD) == [
        ("minipeft 0.1.0", "`✓✓` PASS 2 of 2"),
        ("mlx-lm 1", "`✗·` FAIL 1 of 2 (1 wrong: a \\| b)"),
    ]
    assert judged.verdicts("dora", FIELD) == []


def test_which_sections_concern_a_method():
    of = {name: judged.sections(name, DEVIATIONS) for name in ("lora", "lora_ga", "dora", "loha")}
    assert of == {"lora": ["it-combine"], "lora_ga": ["it-lora-ga-reload"], "dora": ["it-dora"], "loha": []}


def test_links_lead_to_anchors():
    text = (judged.DOCS / "deviations.md").read_text(encoding="utf-8")
    anchors = {
        line[3:].lower() for line in text.splitlines() if line.startswith("## ")
    }  # as slugs are made of single words
    links = {
        a for name in METHODS for block in judged.told(name) for a in re.findall(r"deviations\.md#([^)]*)\)", block)
    }
    assert "ours" in links and links <= anchors


def test_every_section_concerns_some_method_or_all():
    """What is told of no method by name is told of cases of all."""
    text = (judged.DOCS / "deviations.md").read_text(encoding="utf-8")
    heads = {line[3:] for line in text.splitlines() if line.startswith("## ")} - {"Ours"}
    found = {head for name in METHODS for head in judged.sections(name)}
    assert len(found) > 0.7 * len(heads), heads - found
