"""The architecture, declared once."""

from __future__ import annotations

from minipeft.model.arch import Arch


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """What sort of parameter this is, by its name and shape."""
    if name.endswith(".bias"):
        return "bias"
    if ".norm." in f".{name}":
        return "norm"
    if name.startswith("embed.") and name != "embed.patch.weight":
        return "embedding" if len(shape) == 2 and name.endswith(".weight") else "table"
    return "table" if "relbias" in name else "linear"


def activation_sites(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Every activation site of this architecture and the width of what passes there (the last axis)."""
    sites: dict[str, tuple[int, ...]] = {}
    d, he, ge = arch.d, arch.heads * arch.dh, arch.kv * arch.dh
    for prefix, layers in arch.stacks.items():
        if not arch.patch:
            sites[f"{prefix}embed.tokens.out"] = (d,)
        sites[f"{prefix}embed.out"] = (d,)
        for n in range(layers):
            layer = f"{prefix}layers.{n}"
            sites[layer] = sites[f"{layer}.in"] = (d,)
            attends = ["attn", "cross"] if arch.encoder_layers and not prefix else ["attn"]
            for part in [*attends, "mlp"]:
                for end in ("in", "out", "res", "norm.out"):
                    sites[f"{layer}.{part}.{end}"] = (d,)
            for part in attends:
                fused = arch.fused_qkv and part == "attn"
                outs = {"qkv": he + 2 * ge, "o": d} if fused else {"q": he, "k": ge, "v": ge, "o": d}
                sites |= {f"{layer}.{part}.{m}.out": (width,) for m, width in outs.items()}
                sites[f"{layer}.{part}.kv"] = (arch.kv, arch.dh)
                sites[f"{layer}.{part}.heads"] = (he,)
            for m, width in {"up": arch.ff, "hidden": arch.ff, "down": d}.items():
                sites[f"{layer}.mlp.{m}" + (".out" if m != "hidden" else "")] = (width,)
            if arch.gated:
                sites[f"{layer}.mlp.gate.out"] = (arch.ff,)
            sites[f"{layer}.out"] = (d,)
        sites[f"{prefix}final.norm.out"] = sites[f"{prefix}final.out"] = (d,)
    if arch.head in ("lm", "mlm"):
        sites["head.in"], sites["head.out"] = (d,), (arch.vocab,)
    if arch.labels:
        sites["score.out"] = (arch.labels,)
    return sites


def shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by name, in the order of the forward pass."""
    d, ff, he, ge = arch.d, arch.ff, arch.heads * arch.dh, arch.kv * arch.dh
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, cols: int) -> None:
        out[f"{name}.weight"] = (rows, cols)
        if name in arch.biased or name.rpartition(".")[2] in arch.biased:
            out[f"{name}.bias"] = (rows,)

    def norm(name: str) -> None:
        out[f"{name}.weight"] = (d,)
        if arch.norm == "layer":
            out[f"{name}.bias"] = (d,)

    if arch.patch:
        linear("embed.patch", d, arch.channels * arch.patch**2)
        out["embed.cls"] = (1, 1, d)
        out["embed.positions.weight"] = (1 + (arch.image // arch.patch) ** 2, d)
    else:
        out["embed.tokens.weight"] = (arch.vocab, d)
        if arch.positions == "learned":
            out["embed.positions.weight"] = (arch.max_positions, d)
        if arch.types:
            out["embed.types.weight"] = (arch.types, d)
        if not arch.pre_norm:
            norm("embed.norm")
    for prefix, layers in arch.stacks.items():
        if arch.positions == "relative":
            out[f"{prefix}relbias.weight"] = (arch.buckets, arch.heads)
        for n in range(layers):
            layer = f"{prefix}layers.{n}"
            for part in ["attn", "cross"] if arch.encoder_layers and not prefix else ["attn"]:
                norm(f"{layer}.{part}.norm")
                rows = {"qkv": he + 2 * ge} if arch.fused_qkv else {"q": he, "k": ge, "v": ge}
                for m, width in rows.items():
                    linear(f"{layer}.{part}.{m}", width, d)
                linear(f"{layer}.{part}.o", d, he)
            norm(f"{layer}.mlp.norm")
            for m in ["gate", "up"] if arch.gated else ["up"]:
                linear(f"{layer}.mlp.{m}", ff, d)
            linear(f"{layer}.mlp.down", d, ff)
        if arch.pre_norm:
            norm(f"{prefix}final.norm")
    if arch.transform and arch.head in ("lm", "mlm"):
        out |= {"head.transform.weight": (d, d), "head.transform.bias": (d,)}
        norm("head.norm")
    if arch.head in ("lm", "mlm"):
        if not arch.tied:
            out["head.weight"] = (arch.vocab, d)
        if "head" in arch.biased:
            out["head.bias"] = (arch.vocab,)
    if arch.head == "classify":
        if arch.family == "bert":
            out |= {"pooler.weight": (d, d), "pooler.bias": (d,)}
        if arch.family == "roberta":
            out |= {"score.dense.weight": (d, d), "score.dense.bias": (d,)}
    if arch.head in ("classify", "tokens"):
        linear("score", arch.labels, d)
    return out
