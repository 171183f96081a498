"""Text to token ids and back: a checkpoint's tokenizer.json through the tokenizers library, or plain bytes without any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minipeft.checkpoints.files import checkpoint, read_json, read_text
from minipeft.errors import Bad
from minipeft.limits import JSON_BYTES


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    pad_id: int
    vocab: int

    def encode_one(self, text: str) -> list[int]:
        """The ids of one text, special tokens included."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


class ByteTokenizer:
    """One token a byte of UTF-8; padding is 256, the beginning 257, the end 258."""

    pad_id, bos_id, eos_id, vocab = 256, 257, 258, 259

    def encode_one(self, text: str) -> list[int]:
        """The ids of one text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens vanish, broken characters are marked."""
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")


PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")  # tokens that checkpoints pad with
OTHERS = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tekken.json",
    "bpe.codes",
    "*.tiktoken",
)  # files of tokenizers that are not read here
BYTES = range(259, 513)  # vocabularies that may be bytes, with a few special tokens and rows to fill up


def _named_padding(folder: Path) -> list[str]:
    """The padding token that tokenizer_config.json names."""
    path = folder / "tokenizer_config.json"
    about = read_json(path) if path.exists() else None
    token = about.get("pad_token") if isinstance(about, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return [token] if isinstance(token, str) else []


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """The library raises bare Exceptions, and where it panics what is none."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as why:
        raise Bad(f"{what}: {' '.join(str(why).split())}") from None


class FileTokenizer:
    """A tokenizer.json, with its own special tokens and without its own padding and truncation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            import tokenizers
        except ImportError:
            raise Bad(f"{path}: reading it needs the tokenizers library: pip install tokenizers") from None
        text = read_text(path, JSON_BYTES)
        with _one_line(f"{path}: not a tokenizer.json"):
            self._inner: Any = tokenizers.Tokenizer.from_str(text)
        padding = self._inner.padding or {}
        self._inner.no_padding()
        self._inner.no_truncation()
        ids = [self._inner.token_to_id(t) for t in (*_named_padding(path.parent), *PADDING)]
        self.pad_id = next((i for i in [padding.get("pad_id"), *ids] if i is not None), 0)
        self.vocab = self._inner.get_vocab_size()

    def encode_one(self, text: str) -> list[int]:
        """The ids of one text, with the special tokens of its template."""
        with _one_line(f"{self._path}: this text cannot be encoded"):
            return self._inner.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        with _one_line(f"{self._path}: these tokens cannot be decoded"):
            return self._inner.decode([int(i) for i in ids])


def load_tokenizer(folder: str | Path, vocab: int | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint folder: its tokenizer.json, or bytes if it has no tokenizer at all.

    `vocab` is the size of the model's vocabulary. Raises `Bad` for a folder with another tokenizer's files, and without any
    for a vocabulary that cannot be one of bytes.
    """
    folder = checkpoint(folder)
    path = folder / "tokenizer.json"
    if path.exists():
        return FileTokenizer(path)
    others = sorted(p.name for pattern in OTHERS for p in folder.glob(pattern))
    if others:
        raise Bad(
            f"{folder}: expected tokenizer.json, found {', '.join(others)}; transformers makes it: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    if vocab is not None and vocab not in BYTES:
        raise Bad(
            f"{folder}: expected tokenizer.json, found no tokenizer; the model's {vocab:,} tokens are no bytes "
            f"({BYTES.start} … {BYTES.stop - 1})"
        )
    return ByteTokenizer()


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int, side: str = "right"
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (b, t), int64, padded on one side to the longest text, cut at `max_length`.

    A cut text keeps its last token, which may be special. Raises `Bad` for no text at all, or no room for it.
    """
    if not texts:
        raise Bad("encode: expected at least one text, found none")
    if side not in ("left", "right"):
        raise Bad(f"encode: side must be left or right, found {side!r}")
    if max_length < 1:
        raise Bad(f"encode: max_length must be at least 1, found {max_length}")
    return padded([cut(tokenizer.encode_one(t), max_length) for t in texts], tokenizer.pad_id, side)


def cut(ids: Sequence[int], max_length: int) -> list[int]:
    """The first ids, and the last in the last place, which may be special."""
    return list(ids) if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]


def padded(texts: Sequence[Sequence[int]], pad_id: int, side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (b, t), int64, padded on one side to the longest text; one of no token is a padding token that counts."""
    rows = [list(r) or [pad_id] for r in texts]
    t = max(map(len, rows))
    ids, mask = np.full((len(rows), t), pad_id, np.int64), np.zeros((len(rows), t), np.int64)
    for row, r in enumerate(rows):
        place = slice(0, len(r)) if side == "right" else slice(t - len(r), t)
        ids[row, place], mask[row, place] = r, 1
    return ids, mask
