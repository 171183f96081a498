import csv
import gzip
import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import FOLDER, SPLITS, corpus, held_out_text, load_snippets, read_csv, split_of
from minipeft.errors import Bad


def words(text):
    """A text without case and punctuation, for comparing."""
    return tuple("".join(c if c.isalnum() else " " for c in text.casefold()).split())


@pytest.fixture(scope="module")
def table():
    with gzip.open(FOLDER / "snippets.csv.gz", "rt", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


# --- the snippets of the package --------------------------------------------------------------------------------------


def test_no_words_stand_in_two_splits(table):
    seen = {}
    for row in table:
        assert seen.setdefault(words(row["text"]), row["split"]) == row["split"]
    assert len(table) == 23_555 and set(seen.values()) == set(SPLITS)


def test_splits_are_a_tenth_a_tenth_and_the_rest(table):
    shares = {s: n / len(table) for s, n in Counter(r["split"] for r in table).items()}
    assert shares["train"] == pytest.approx(0.8, abs=0.01)
    assert shares["valid"] == pytest.approx(0.1, abs=0.01) and shares["test"] == pytest.approx(0.1, abs=0.01)
    assert all(split_of(r["text"]) == r["split"] for r in table[::50])


def test_snippets_are_balanced_where_they_are_judged(table):
    held = load_snippets()
    assert set(held) == set(SPLITS)
    rows = {(r["text"], r["label"], r["split"]) for r in table}
    for split, snippets in held.items():
        assert len(snippets) == len(snippets.texts) == len(snippets.labels) and snippets.classes == (
            "negative",
            "positive",
        )
        assert {(t, snippets.classes[y], split) for t, y in zip(snippets.texts, snippets.labels)} <= rows
    for split in ("valid", "test"):
        counts = Counter(held[split].labels)
        assert counts[0] == counts[1] > 100
    few = held["test"].first(7)
    assert few.texts == held["test"].texts[:7] and few.labels == held["test"].labels[:7] and len(few) == 7


def test_what_is_held_out_was_not_pretrained_on(table):
    seen, unseen = {words(t) for t in corpus()}, {words(t) for t in held_out_text()}
    assert not seen & unseen and len(corpus()) == sum(r["split"] == "train" for r in table)
    assert set(map(words, load_snippets()["test"].texts)) <= unseen
    assert sorted(held_out_text()) == sorted(r["text"] for r in table if r["split"] == "test")


def test_reading_twice_gives_the_same():
    assert load_snippets() == load_snippets() and held_out_text() == held_out_text()
    texts = list(load_snippets()["test"].texts)
    assert texts != sorted(texts)  # in an order of their own: a part of them is a sample
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest().startswith("9c34881eb69c")


@given(st.text())
def test_the_split_depends_on_the_words_alone(text):
    assert split_of(text) == split_of(f"  {text}!! ") and split_of(text) in SPLITS
    assert split_of("Good, very good.") == split_of("good very   GOOD")


# --- a user's own CSV -------------------------------------------------------------------------------------------------


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


FEW = "text,label,split\nfine,yes,train\nbad,no,train\ngood,yes,test\n"


def test_a_csv_with_splits(tmp_path):
    held = read_csv(written(tmp_path / "x.csv", FEW))
    assert held["train"].classes == ("no", "yes") and held["test"].texts == ("good",) and held["test"].labels == (1,)
    assert dict(zip(held["train"].texts, held["train"].labels)) == {"fine": 1, "bad": 0} and len(held["valid"]) == 0


def test_a_csv_as_spreadsheets_write_it(tmp_path):
    quoted = 'label;x,text,label\r\n1,"one, ""two""\r\nthree",a\r\n'
    rows = "".join(f"2,text number {i},{'ab'[i % 2]}\r\n" for i in range(60))
    held = read_csv(written(tmp_path / "x.csv", quoted + rows, "utf-8-sig"))
    texts = {t: s for s in SPLITS for t in held[s].texts}
    assert len(texts) == 61 and 'one, "two"\r\nthree' in texts and all(split_of(t) == s for t, s in texts.items())


def test_a_zipped_csv(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(FEW.encode()))
    assert read_csv(path) == read_csv(written(tmp_path / "x.csv", FEW))


def test_what_has_no_label_is_left_out(tmp_path):
    held = read_csv(written(tmp_path / "x.csv", FEW + "perhaps,,train\n"))
    assert len(held["train"]) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column 'text'; found none"),
        ("texts,label\na,b\n", r"no column 'text'; found texts, label \(did you mean texts\?\)"),
        ("text,lable\na,b\n", r"no column 'label'; found text, lable \(did you mean lable\?\)"),
        (FEW + ",yes,train\n", "line 5 has no text"),
        (FEW + "ok,yes,tset\n", r"line 5: split 'tset'; expected train, valid or test \(did you mean test"),
        ("text,label\n" + "".join(f"text {i},a\n" for i in range(50)), "expected two labels or more, found a"),
        ("text,label\n", "expected two labels or more, found none"),
        ("text,label,split\na,x,train\nb,y,train\n", "nothing in the test split of 2 labelled rows"),
        ("text,label,split\na,x,test\nb,y,test\n", "nothing in the train split"),
        ("text,label\na,\0b\n" + "c" * 200_000 + ",d\n", "."),
        ('text,label,split\n"one\ntwo",yes,train\n,no,train\n', "line 4 has no text"),
    ],
)
def test_a_csv_that_does_not_do(tmp_path, text, says):
    with pytest.raises(Bad, match=says) as caught:
        read_csv(written(tmp_path / "x.csv", text))
    assert "\n" not in str(caught.value) and "x.csv" in str(caught.value)


def test_files_that_are_none(tmp_path):
    written(tmp_path / "reviews.csv", FEW)
    with pytest.raises(Bad, match=r"no such file \(did you mean reviews.csv\?\)"):
        read_csv(tmp_path / "review.csv")
    for name, content in {
        "latin.csv": "text,label\nüber,x\n".encode("latin-1"),
        "no.csv.gz": b"text",
        "cut.csv.gz": gzip.compress(FEW.encode())[:-9],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Bad, match="expected a CSV file in UTF-8"):
            read_csv(tmp_path / name)
    with pytest.raises(Bad, match="cannot be read"):
        read_csv(tmp_path)
