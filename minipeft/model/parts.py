"""The architecture, declared once: the parts of a model in the order of the forward pass.

What parameters there are and of which shapes, which activations methods may touch and how wide they are, and what is tied
follow from `parts`. The forward pass asks the same small functions which sub-layers and projections there are. The
name of a module says its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from minipeft.model.arch import Arch

Shape = tuple[int, ...]
HEAD, TABLE = "head.weight", "embed.tokens.weight"
PATCHES = "embed.patch.weight"  # a linear over patches, channel by channel; elsewhere a convolution
BEFORE_SCORE = {"bert": "pooler", "roberta": "score.dense"}  # a dense layer and tanh, in front of a classifier of rows


@dataclass(frozen=True)
class Part:
    """A module, or several that make one step: its parameters, and its activation sites with the shape of what passes."""

    params: Mapping[str, Shape] = field(default_factory=dict)
    sites: Mapping[str, Shape] = field(default_factory=dict)


def linear(arch: Arch, name: str, rows: int, cols: int, site: bool = True, bias: bool = False) -> Part:
    """x Wᵀ + b, with b where it is said here or by the architecture, for this name or its end."""
    biased = bias or name in arch.biased or name.rpartition(".")[2] in arch.biased
    params: dict[str, Shape] = {} if name == "head" and tied(arch) else {f"{name}.weight": (rows, cols)}
    return Part(params | ({f"{name}.bias": (rows,)} if biased else {}), {f"{name}.out": (rows,)} if site else {})


def norm(arch: Arch, name: str) -> Part:
    """A layer norm, or an RMS norm, which has no bias."""
    return Part({f"{name}.{end}": (arch.d,) for end in (("weight", "bias") if arch.norm == "layer" else ("weight",))})


def sites(name: str, *ends: str, shape: Shape) -> Part:
    """Activations of one shape."""
    return Part(sites={f"{name}{end}": shape for end in ends})


# --- what there is, for the table and for the forward pass ------------------------------------------------------------


def tied(arch: Arch) -> dict[str, str]:
    """The parameters that are another one: the head's matrix is the token table, if tied."""
    return {HEAD: TABLE} if arch.shares_table else {}


def attentions(arch: Arch, prefix: str) -> tuple[str, ...]:
    """The attentions of a layer; a decoder's goes over the encoder's output too."""
    return ("attn", "cross") if arch.encoder_layers and not prefix else ("attn",)


def projections(arch: Arch, attention: str) -> dict[str, int]:
    """What an attention makes of its inputs, and how wide."""
    q, kv = arch.heads * arch.dh, arch.kv * arch.dh
    fused = arch.fused_qkv and attention == "attn"
    return {"qkv": q + 2 * kv} if fused else {"q": q, "k": kv, "v": kv}


def relative_table(arch: Arch, prefix: str) -> str:
    """The module that holds a stack's biases of the attention scores, by distance; "" if there is none."""
    return f"{prefix}relbias" if arch.positions == "relative" else ""


# --- the table --------------------------------------------------------------------------------------------------------


def parts(arch: Arch) -> Iterator[Part]:
    """All parts of a model, in the order of the forward pass; sites of a layer stand before those of its linears."""
    yield from _inputs(arch)
    for prefix, layers in arch.stacks.items():
        if not arch.patch:
            yield sites(f"{prefix}embed.tokens", ".out", shape=(arch.d,))
        yield sites(f"{prefix}embed", ".out", shape=(arch.d,))
        if table := relative_table(arch, prefix):
            yield Part({f"{table}.weight": (arch.buckets, arch.heads)})
        for n in range(layers):
            yield from _layer(arch, f"{prefix}layers.{n}", attentions(arch, prefix))
        if arch.pre_norm:
            yield norm(arch, f"{prefix}final.norm")
        yield sites(f"{prefix}final", ".norm.out", ".out", shape=(arch.d,))
    yield from _outputs(arch)


def _inputs(arch: Arch) -> Iterator[Part]:
    d = arch.d
    if arch.patch:
        yield linear(arch, "embed.patch", d, arch.channels * arch.patch**2, site=False)
        yield Part({"embed.cls": (1, 1, d), "embed.positions.weight": (1 + (arch.image // arch.patch) ** 2, d)})
        return
    yield Part({TABLE: (arch.vocab, d)})
    if arch.positions == "learned":
        yield Part({"embed.positions.weight": (arch.max_positions, d)})
    if arch.types:
        yield Part({"embed.types.weight": (arch.types, d)})
    if not arch.pre_norm:
        yield norm(arch, "embed.norm")


def _layer(arch: Arch, layer: str, attends: tuple[str, ...]) -> Iterator[Part]:
    d, heads = arch.d, arch.heads * arch.dh
    yield sites(layer, "", ".in", shape=(d,))
    for sub in (*attends, "mlp"):
        yield sites(f"{layer}.{sub}", ".in", ".out", ".res", ".norm.out", shape=(d,))
    for sub in attends:
        name = f"{layer}.{sub}"
        yield norm(arch, f"{name}.norm")
        for projection, width in projections(arch, sub).items():
            yield linear(arch, f"{name}.{projection}", width, d)
        yield linear(arch, f"{name}.o", d, heads)
        yield Part(sites={f"{name}.kv": (arch.kv, arch.dh), f"{name}.heads": (heads,)})
    name = f"{layer}.mlp"
    yield norm(arch, f"{name}.norm")
    if arch.gated:
        yield linear(arch, f"{name}.gate", arch.ff, d, site=False)
    yield linear(arch, f"{name}.up", arch.ff, d)
    yield sites(name, ".hidden", shape=(arch.ff,))
    yield linear(arch, f"{name}.down", d, arch.ff)
    if arch.gated:  # behind the others: arrays are drawn in the order of sites
        yield sites(name, ".gate.out", shape=(arch.ff,))
    yield sites(layer, ".out", shape=(d,))


def _outputs(arch: Arch) -> Iterator[Part]:
    d = arch.d
    if arch.predicts_tokens:
        if arch.transform:
            yield linear(arch, "head.transform", d, d, site=False, bias=True)
            yield norm(arch, "head.norm")
        yield sites("head", ".in", shape=(d,))
        yield linear(arch, "head", arch.vocab, d)
    if arch.head == "classify" and (dense := BEFORE_SCORE.get(arch.family)):
        yield linear(arch, dense, d, d, site=False, bias=True)
    if arch.head in ("classify", "tokens"):
        yield linear(arch, "score", arch.labels, d)


# --- what follows -----------------------------------------------------------------------------------------------------


def shapes(arch: Arch) -> dict[str, Shape]:
    """The shape of every parameter of an architecture, by name, in the order of the forward pass."""
    return {name: shape for part in parts(arch) for name, shape in part.params.items()}


def pixels(arch: Arch, name: str) -> int:
    """How many inputs of a parameter are one channel's: those of a patch in the linear over patches, 1 in every other."""
    return arch.patch**2 if name == PATCHES else 1


def activation_sites(arch: Arch) -> dict[str, Shape]:
    """Every activation site of an architecture and the shape of what passes there (the last axes)."""
    return {name: shape for part in parts(arch) for name, shape in part.sites.items()}


def kind_of(name: str, shape: Shape) -> str:
    """What sort of parameter this is, by its name and shape."""
    if name.endswith(".bias"):
        return "bias"
    if ".norm." in f".{name}":
        return "norm"
    if name.startswith("embed.") and name != PATCHES:
        return "embedding" if len(shape) == 2 and name.endswith(".weight") else "table"
    return "table" if "relbias" in name else "linear"
