"""The site is built of a checkout, without a dead link; what cannot be is refused before anything is written."""

import numpy as np
import pytest

from minipeft.errors import Bad
from minipeft.site.build import build
from minipeft.site.pictures import caption, svg
from minipeft.site.trained import Seen


def test_a_folder_that_is_no_site_is_not_touched(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is of the extra `site`")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Bad, match="is no site"):
        build(tmp_path, ["lora"])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_caption_says_rank_and_size():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((9, 7))
    D = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 7))
    said = caption(Seen("a.weight", W, W + D, True))
    assert "of rank 2" in said and f"{np.linalg.norm(D) / np.linalg.norm(W):.2g} of its norm" in said
    assert "grew from 9 to 12 rows: 3 are" in caption(Seen("a", W, np.ones((12, 7)), False))
    assert "does nothing there" in caption(Seen("a", W, W, False))


def test_the_same_picture_again():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    W = np.random.default_rng(0).standard_normal((6, 5))
    one, other = (svg(Seen("a.weight", W, 2 * W, True)) for _ in range(2))
    assert one == other and one.startswith("<svg")


@pytest.mark.slow
def test_the_site_of_two_methods(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is of the extra `site`")
    count = build(tmp_path / "site", ["lora", "prefix_tuning"])  # mkdocs refuses a dead link
    page = (tmp_path / "site" / "methods" / "lora.html").read_text(encoding="utf-8")
    assert count > 10 and "<math" in page and "<svg" in page and 'class="effect"' in page
    assert "http" not in "".join(line for line in page.splitlines() if "<script" in line or "stylesheet" in line)
    assert build(tmp_path / "site", ["lora"]) < count  # replaced
