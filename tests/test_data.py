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


@pytest.mark.parametrize(
    "column, classes",
    [("source", ("editorials", "movies", "products", "tweets")), ("label", ("negative", "positive"))],
)
def test_snippets_are_balanced(table, column, classes):
    held = load_snippets(column)
    assert set(held) == set(SPLITS)
    rows = {(r["text"], r[column], r["split"]) for r in table}
    for split, snippets in held.items():
        assert len(snippets) == len(snippets.texts) == len(snippets.labels) and snippets.classes == classes
        assert {(t, snippets.classes[y], split) for t, y in zip(snippets.texts, snippets.labels)} <= rows
        counts = Counter(snippets.labels)
        assert len(counts) == len(classes) and len({*counts.values()}) == 1 and counts[0] > 100
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
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest().startswith("672b818db531")


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
        ("text;label\na;b\n", "expected commas between the columns text and label, found semicolons: 'text;label'"),
        ("text\tlabel\na\tb\n", "expected commas between the columns text and label, found tabs"),
        ("text,label,text\na,b,c\n", "expected one column 'text', found 2"),
        (
            FEW + "ok, really,yes,train\n",
            "line 5 has 4 columns, expected 3 .text, label, split.; a text with a comma needs quotes",
        ),
        (FEW + "ok\n", "line 5 has 1 column, expected 3"),
        (
            FEW + '"so,yes,train\nand so,no,test\n',
            'line 5: a quote .". opens here and is not closed before the file ends',
        ),
        (FEW + '"so" he said,yes,train\n', 'line 5: a quote .". opens here and closes before the end of its field;'),
        (FEW + '"so,yes,train\n"so",no,test\n', "line 5: a quote .*closes before the end of its field, in line 6"),
        (
            FEW + '"so,yes,train\nand so",no,test\n',
            "line 5: a quote .* opens in this row and closes in line 6, and 2 of the lines",
        ),
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


@given(st.integers(0, 49), st.integers(1, 40), st.booleans(), st.booleans())
def test_a_stray_quote_loses_no_rows(tmp_path_factory, at, to, closed, label_first):
    """A quote before one text, and one after a later text or none: refused by the line of the first."""
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    rows = [(f"text number {i}", "ab"[i % 2], "train" if i % 3 else "test") for i in range(90)]
    texts = [t for t, _, _ in rows]
    texts[at] = '"' + texts[at]
    if closed:
        texts[at + to] += '"'
    lines = [f"{y},{s},{t}" if label_first else f"{t},{y},{s}" for t, (_, y, s) in zip(texts, rows)]
    written(path, "\n".join(["label,split,text" if label_first else "text,label,split", *lines]) + "\n")
    with pytest.raises(Bad, match=rf"line {at + 2}: a quote"):
        read_csv(path)


@pytest.mark.parametrize("label_first", [True, False])
def test_texts_of_several_lines_are_read(tmp_path, label_first):
    """Line breaks, commas, quotes inside of quotes, and words that are classes."""
    texts = ["a, b\nc, d", 'he said ""yes""\n\nand went', "yes\nno", "yes,\nno, train"]
    rows = [(f'"{t}"', "yes" if i % 2 else "no", "train" if i % 3 else "test") for i, t in enumerate(texts * 3)]
    lines = [f"{y},{s},{t}" if label_first else f"{t},{y},{s}" for t, y, s in rows]
    header = "label,split,text" if label_first else "text,label,split"
    held = read_csv(written(tmp_path / "x.csv", "\n".join([header, *lines])))
    assert sum(map(len, held.values())) == 12
    assert {t for s in held.values() for t in s.texts} == {t.replace('""', '"') for t in texts}


def test_headers_as_people_write_them(tmp_path):
    plain = read_csv(written(tmp_path / "x.csv", FEW))
    other = FEW.replace("text,label,split", " Text , LABEL,Split ") + ",,\n\n  \n"
    assert read_csv(written(tmp_path / "y.csv", other, "utf-8-sig")) == plain


def test_what_was_read_is_said(tmp_path):
    rows = [f"text {i},{'ab'[i % 2]},{'train' if i % 4 else 'test'}" for i in range(40)]
    text = "\n".join(["text,label,split", *rows, "one,,train", "two,A,train", "three,really,test"])
    (counted, once, case, never) = read_csv(written(tmp_path / "x.csv", text)).notes
    assert counted.endswith(
        "42 labelled rows (31 train, 0 valid, 11 test), 4 classes (A, a, b, really); 1 without a label left out"
    )
    assert once.endswith("seen in one row only: 'A' (line 43), 'really' (line 44)")
    assert case.endswith("classes that differ by case alone: a, A") and never.endswith("no row to train on: 'really'")


def test_a_column_that_is_none_of_classes(tmp_path):
    rows = [f"text {i},{i / 7},{'train' if i % 4 else 'test'}" for i in range(80)]
    notes = read_csv(written(tmp_path / "x.csv", "\n".join(["text,label,split", *rows]))).notes
    assert any("80 classes: is label a column of classes?" in n for n in notes)


def test_labels_may_be_numbers(tmp_path):
    rows = [f"text {i},{i % 3},{'train' if i % 4 else 'test'}" for i in range(24)]
    held = read_csv(written(tmp_path / "x.csv", "\n".join(["text,label,split", *rows])))
    assert held["train"].classes == ("0", "1", "2") and len(held.notes) == 1


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
    with pytest.raises(Bad, match="expected a file, found a folder"):
        read_csv(tmp_path)


def test_a_zipped_csv_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("minipeft.data.table.TABLE_BYTES", 1 << 16)
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * (1 << 18)))
    with pytest.raises(Bad, match="expected at most 65,536 bytes of CSV, it unpacks to more"):
        read_csv(path)
