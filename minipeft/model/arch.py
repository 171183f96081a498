"""What a checkpoint is to us, as facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minipeft.shown import described


@dataclass(frozen=True)
class Arch:
    """The facts in which checkpoints differ. A field exists because some checkpoint family needs it."""

    family: str  # "gpt2", "llama", …: whose names and file layout
    d: int  # width of the residual stream
    layers: int
    heads: int
    ff: int  # width of the feed-forward
    vocab: int = 0
    types: int = 0  # token types
    kv_heads: int = 0  # grouped-query attention; 0: as many as heads
    head_dim: int = 0  # 0: d / heads
    norm: str = "layer"  # "layer" | "rms"
    eps: float = 1e-5
    pre_norm: bool = True  # normalise the input of a sub-layer, or (False) the sum after it
    causal: bool = True
    act: str = "gelu_tanh"  # a name of `minipeft.model.activations`
    gated: bool = False
    fused_qkv: bool = False
    biased: tuple[str, ...] = ()  # which linears have a bias, by the end of their name: "q", "up", "score", …
    scale: float | None = None  # of the attention scores; None: head_dim**-0.5
    window: int | None = None  # each query sees this many latest keys
    full_layers: tuple[int, ...] = ()  # the layers whose queries see all keys all the same
    positions: str = "learned"  # "learned" | "rope" | "relative" | "none"
    max_positions: int = 0  # rows of the learned table; 0: no limit
    first_position: int = 0  # RoBERTa counts from padding id + 1
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()  # items of the checkpoint's scaling entry
    buckets: int = 32  # of T5's relative positions
    max_distance: int = 128
    encoder_layers: int = 0  # > 0: an encoder-decoder; `layers` then counts the decoder's
    tied: bool = False  # the head is the token table
    head: str = "lm"  # "lm" | "mlm" | "classify" | "tokens" | "none"
    transform: str = ""  # BERT: the activation of a dense layer, with a norm behind it, in front of the head
    head_scale: float = 1.0  # T5 scales the hidden state before a tied head
    pool: str = "last"  # "last" | "first" | "mean": the token a classifier reads
    labels: int = 0  # of a classifier
    problem: str = ""  # a classifier's loss, as transformers names it; "": by the number and type of the labels
    patch: int = 0  # ViT: patch and image size in pixels
    image: int = 0
    channels: int = 3
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # each ends a text
    fill_id: int | None = None  # generation goes on with it in a row that has ended
    start_id: int | None = None  # first token of a decoder

    __repr__ = described

    @property
    def predicts_tokens(self) -> bool:
        """Whether the head has a row for every token of the vocabulary."""
        return self.head in ("lm", "mlm")

    @property
    def per_token(self) -> bool:
        """Whether there is a label for every token."""
        return self.predicts_tokens or self.head == "tokens"

    @property
    def shares_table(self) -> bool:
        """Whether the output matrix is the token table: tied, and there is a head that has one."""
        return self.tied and self.predicts_tokens

    def window_of(self, layer: int) -> int | None:
        """How many latest keys a query of this layer sees; None: all."""
        return None if layer in self.full_layers else self.window

    def problem_of(self, kind: str) -> str:
        """A classifier's loss for labels of this NumPy kind, by transformers' rule; "" without a classifier of rows."""
        if self.head != "classify":
            return ""
        several = "single_label_classification" if kind in "iu" else "multi_label_classification"
        return self.problem or ("regression" if self.labels == 1 else several)

    @property
    def kv(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def dh(self) -> int:
        """Width of one head."""
        return self.head_dim or self.d // self.heads

    @property
    def stacks(self) -> dict[str, int]:
        """Prefix of each stack of layers and how many layers it has."""
        return ({"encoder.": self.encoder_layers} if self.encoder_layers else {}) | {"": self.layers}
