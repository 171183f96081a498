import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import BASE
from minipeft.errors import Bad
from minipeft.text import ByteTokenizer, FileTokenizer, encode, load_tokenizer


def words(folder, **more):
    """A folder with a tokenizer of a few words, and an end it puts after every text."""
    about = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": None,
        "added_tokens": [dict(id=i, content=c, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for i, c in ((0, "<pad>"), (1, "</s>"))],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "</s>": 1, "?": 2, "red": 3, "blue": 4}, "unk_token": "?"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(about | more))
    return folder


@given(st.text())
def test_bytes_come_back(text):
    ids = ByteTokenizer().encode_one(text)
    assert bytes(ids) == text.encode() and ByteTokenizer().decode([257, *ids, 258, 256]) == text


def test_broken_characters_are_marked():
    assert ByteTokenizer().decode("ü".encode()[:1]) == "\ufffd"


def test_a_folder_without_a_tokenizer_has_bytes(tmp_path):
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    with pytest.raises(Bad, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
             "tokenizer_config.json", "special_tokens_map.json", "cl100k.tiktoken"],
)  # fmt: skip
def test_another_tokenizer_is_not_taken_for_none(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        Bad, match=rf"expected tokenizer.json, found {name}; transformers makes it: AutoTokenizer"
    ) as caught:
        load_tokenizer(tmp_path, 259)
    assert "\n" not in str(caught.value)
    words(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), FileTokenizer)


@pytest.mark.parametrize("vocab, fine", [(256, False), (258, False), (259, True), (384, True), (512, True), (1000, False), (32000, False)])  # fmt: skip
def test_bytes_are_for_a_vocabulary_of_bytes(tmp_path, vocab, fine):
    if fine:
        assert isinstance(load_tokenizer(tmp_path, vocab), ByteTokenizer)
        return
    with pytest.raises(Bad, match=r"expected tokenizer.json, found no tokenizer"):
        load_tokenizer(tmp_path, vocab)


@pytest.mark.parametrize("named", ["?", {"content": "?", "lstrip": False}])
def test_padding_that_the_configuration_names(tmp_path, named):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": named}))
    assert load_tokenizer(words(tmp_path)).pad_id == 2
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert load_tokenizer(tmp_path).pad_id == 0


def test_a_file_brings_its_special_tokens_and_not_its_padding(tmp_path):
    padding = dict(
        strategy={"Fixed": 9}, direction="Right", pad_to_multiple_of=None, pad_id=2, pad_type_id=0, pad_token="?"
    )
    truncation = dict(max_length=2, strategy="LongestFirst", stride=0, direction="Right")
    plain = load_tokenizer(words(tmp_path))
    assert (plain.encode_one("red green blue red"), plain.pad_id, plain.vocab) == ([3, 2, 4, 3, 1], 0, 5)
    assert plain.decode([3, 4, 1, 0]) == "red blue"
    padded = load_tokenizer(words(tmp_path, padding=padding, truncation=truncation))
    assert (padded.encode_one("red green blue red"), padded.pad_id) == ([3, 2, 4, 3, 1], 2)


def test_the_tokenizer_of_the_package_returns_its_texts():
    tokenizer = FileTokenizer(BASE / "tokenizer.json")
    assert tokenizer.vocab == json.loads((BASE / "config.json").read_text())["vocab_size"]
    text = "A film so good that one forgets the time."
    assert tokenizer.decode(tokenizer.encode_one(text)).strip() == text.lower()
    assert max(tokenizer.encode_one(text)) < tokenizer.vocab


@pytest.mark.parametrize("content", ["", "{}", "[]", "no json", '{"model": 3}'])
def test_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(Bad, match=r"tokenizer\.json: not a tokenizer\.json: ") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.text(max_size=12), min_size=1, max_size=4),
    st.integers(1, 10),
    st.sampled_from(["left", "right"]),
)
def test_rows_are_cut_and_padded(texts, longest, side):
    ids, mask = encode(ByteTokenizer(), texts, longest, side)
    assert ids.shape == mask.shape and ids.dtype == mask.dtype == np.int64 and ids.shape[1] <= longest
    for text, row, real in zip(texts, ids.tolist(), mask.tolist()):
        whole = list(text.encode()) or [256]
        kept = whole if len(whole) <= longest else [*whole[: longest - 1], whole[-1]]
        fill = ids.shape[1] - len(kept)
        assert row == (kept + fill * [256] if side == "right" else fill * [256] + kept)
        assert real == (len(kept) * [1] + fill * [0] if side == "right" else fill * [0] + len(kept) * [1])
    assert mask.sum(axis=1).max() == ids.shape[1]


def test_a_cut_text_keeps_its_end(tmp_path):
    ids, _ = encode(load_tokenizer(words(tmp_path)), ["red blue red blue"], 3)
    assert ids.tolist() == [[3, 4, 1]]


def test_refuses():
    with pytest.raises(Bad, match="expected at least one text, found none"):
        encode(ByteTokenizer(), [], 5)
    with pytest.raises(Bad, match="side must be left or right, found 'middle'"):
        encode(ByteTokenizer(), ["a"], 5, "middle")
    with pytest.raises(Bad, match="max_length must be at least 1, found 0"):
        encode(ByteTokenizer(), ["a"], 0)


@pytest.mark.hf
@given(st.text(max_size=30))
def test_transformers_gives_the_same_ids(text):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(BASE / "tokenizer.json"))
    assert FileTokenizer(BASE / "tokenizer.json").encode_one(text) == theirs(text)["input_ids"]


def test_a_tokenizer_that_breaks_the_library_is_one_line(tmp_path, monkeypatch):
    """What it raises where it panics is no Exception."""
    import tokenizers

    class PanicException(BaseException):
        pass

    def panics(*_):
        raise PanicException("index out of bounds:\nthe len is 3")

    found = load_tokenizer(words(tmp_path))
    for place in ("encode_one", "decode"):
        monkeypatch.setattr(found, "_inner", type("Broken", (), dict(encode=panics, decode=panics))())
        with pytest.raises(Bad, match=r"tokenizer.json: .* cannot be (en|de)coded: index out of bounds: the len is 3"):
            getattr(found, place)([1] if place == "decode" else "red")
    monkeypatch.setattr(tokenizers.Tokenizer, "from_str", panics, raising=False)
    with pytest.raises(Bad, match=r"not a tokenizer.json: index out of bounds: the len is 3"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**6, '{"model": null}', '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 4294967296}, "merges": []}}', "\x00"], ids=range(6))  # fmt: skip
def test_what_is_no_tokenizer_is_one_line(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(Bad, match=r"tokenizer.json: not a tokenizer.json") as told:
        load_tokenizer(tmp_path)
    assert "\n" not in str(told.value)
