"""How Hugging Face PEFT writes every method: its `peft_type`, its configuration, and which of our arrays is which of its keys.

`SPECS` maps our method to a `Spec`; `minipeft.checkpoints.peft_io` reads and writes by them. What PEFT cannot hold, a network
that makes a prompt or factors that are subtracted from the base, `Spec.plain` turns into what it can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.checkpoints.peft_config import kind_of, start_of
from minipeft.checkpoints.peft_targets import by_pattern
from minipeft.engine.backend import to_host
from minipeft.errors import Bad, note
from minipeft.method import Method
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.model.arch import Arch, Model

Config = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """Where one of our arrays stands in their file: the end of its key, and how the layouts differ."""

    suffix: str
    ours: Callable[[Any, Arch], Any] = lambda a, arch: a  # their layout -> ours
    theirs: Callable[[Any, Arch], Any] = lambda a, arch: a  # ours -> theirs; linear, so it serves gradients too
    shape: tuple[int | None, ...] | None = None  # of theirs, where ours does not tell; None: any length

    def fits(self, a: Any) -> bool:
        """Whether an array of their file has this shape."""
        if self.shape is None:
            return True
        return a.ndim == len(self.shape) and all(n in (None, m) for n, m in zip(self.shape, a.shape, strict=True))


def _t(a: Any, arch: Arch) -> Any:
    return a.T


def _vector(a: Any, arch: Arch) -> Any:
    return a.reshape(-1)


def _column(a: Any, arch: Arch) -> Any:
    return a.reshape(-1, 1)


@dataclass(frozen=True)
class Spec:
    """How one method is written by PEFT."""

    peft_type: str
    keys: Mapping[str, Key]  # our array at a site -> its key
    fields: Callable[[Config, Arch], Config]  # their configuration -> our fields
    config: Callable[[Any, Arch], Config]  # our method -> their configuration
    embedding_keys: Mapping[str, Key] | None = None  # at a token table, if they differ
    at_site: Callable[[Config, str, Mapping[str, Any]], Config] = (
        lambda config, module, arrays: {}
    )  # fields that vary by site
    root_keys: Mapping[str, Key] = field(default_factory=dict)  # shared arrays, whose keys name no module
    on_blocks: bool = (
        False  # keys name attention blocks, not linears: our sites attn.heads, and attn.o.out without arrays
    )
    plain: Callable[[Model, Adapter], Adapter] = lambda model, adapter: adapter  # what PEFT can hold of an adapter
    settled: Callable[[Config, Arch], Config] = lambda config, arch: {}  # its fields that a configuration changes
    fixed: tuple[str, ...] = ()  # arrays that PEFT does not train
    sizes: tuple[str, ...] = ()  # our fields that are the length of an axis of its arrays

    def of(self, config: Config, arch: Arch) -> Spec:
        """The same as this configuration has it."""
        return dataclasses.replace(self, **self.settled(config, arch))

    @property
    def is_prompt(self) -> bool:
        """Whether the adapter is one tensor of virtual tokens."""
        return any(k.suffix == "prompt_embeddings" for k in self.root_keys.values())


# --- reading their configuration --------------------------------------------------------------------------------------


def _lora_site(config: Config, module: str, arrays: Mapping[str, Any]) -> Config:
    r = by_pattern(config, "rank_pattern", module, config["r"])
    return dict(r=r, alpha=float(by_pattern(config, "alpha_pattern", module, config["lora_alpha"])))


def _lora_fields(config: Config, arch: Arch) -> Config:
    out: Config = dict(dropout=float(config.get("lora_dropout") or 0), rslora=bool(config.get("use_rslora")))
    out |= dict(r=config["r"], alpha=float(config["lora_alpha"]))
    start = config.get("init_lora_weights", True)
    if factors := {"pissa": "svd", "olora": "qr"}.get(str(start).lower()):
        out |= {"start" if config.get("use_dora") else "factors": factors}
        _refuse_transposed_qr(factors, arch)
    return out | (dict(lora_bias=True) if config.get("lora_bias") else {})


def _refuse_transposed_qr(factors: str, arch: Arch) -> None:
    if factors == "qr" and arch.family == "gpt2":
        raise Bad(
            f"init_lora_weights='olora': PEFT decomposes the weights of {arch.family} transposed, so that the factors do not fit"
        )


START = {"zero": True, "svd": "pissa", "qr": "olora"}  # our factors -> init_lora_weights


def _lora_config(m: Any, arch: Arch) -> Config:
    _refuse_transposed_qr(getattr(m, "factors", getattr(m, "start", "")), arch)
    return dict(
        r=m.r, lora_alpha=m.alpha, lora_dropout=m.dropout, use_rslora=m.rslora, lora_bias=m.lora_bias,
        fan_in_fan_out=arch.family == "gpt2", init_lora_weights=True,
    )  # fmt: skip


_LORA = Spec(
    "LORA",
    keys={
        "A": Key("lora_A.weight"),
        "B": Key("lora_B.weight"),
        "c": Key("lora_B.bias"),
        "m": Key("lora_magnitude_vector"),
    },
    embedding_keys={
        "A": Key("lora_embedding_B", _t, _t),
        "B": Key("lora_embedding_A", _t, _t),
        "m_emb": Key("lora_magnitude_vector"),
    },
    fields=_lora_fields,
    config=_lora_config,
    at_site=_lora_site,
    settled=lambda config, arch: dict(fixed=("B",)) if config.get("init_lora_weights") == "mica" else {},
    sizes=("r",),
)


def _oft_site(config: Config, module: str, arrays: Mapping[str, Any]) -> Config:
    a = arrays.get("Q", arrays.get("Q_emb"))  # β(β − 1)/2 numbers a block
    if a is None:
        return {}
    fields: Config = dict(block=int((1 + math.isqrt(1 + 8 * a.shape[1])) // 2), r=0)
    if config.get("coft"):  # PEFT's radius eps/√K is a number of float32
        radius = np.float32(config.get("eps", 6e-5)) * np.float32(1 / np.sqrt(np.float32(len(a))))
        fields["eps"] = float(radius) * math.sqrt(len(a))
    return fields


def _adalora_config(m: Any, arch: Arch) -> Config:
    return dict(
        init_r=m.r, target_r=m.target_r, lora_alpha=m.alpha, lora_dropout=m.dropout, tinit=m.tinit, tfinal=m.tfinal,
        total_step=m.tinit + m.tfinal + 1, deltaT=m.deltaT, beta1=m.beta1, beta2=m.beta2, orth_reg_weight=m.gamma,
        fan_in_fan_out=arch.family == "gpt2",
    )  # fmt: skip


def _osf_site(config: Config, module: str, arrays: Mapping[str, Any]) -> Config:
    return dict(effective_rank=min(len(arrays["U"]), arrays["V"].shape[1]) - len(arrays["S"]))


def _adaption_config(m: Any, arch: Arch) -> Config:
    return dict(adapter_len=m.K, target_modules="attn" if arch.fused_qkv else "self_attn")


XLORA = {
    "layerwise": "layerwise_scalings", "depth": "xlora_depth", "hidden": "xlora_size", "dropout": "xlora_dropout_p",
    "softmax": "enable_softmax", "temperature": "softmax_temperature", "top_k": "top_k_lora",
    "top_k_softmax": "enable_softmax_topk", "pass_value": "scaling_pass_value", "gamma": "global_scaling_weight",
    "train_experts": "use_trainable_adapters",
}  # fmt: skip


def _xlora_fields(config: Config, arch: Arch) -> Config:
    if (width := config.get("hidden_size")) not in (None, arch.d):
        raise Bad(f"adapter_config.json: hidden_size: expected {arch.d}, as this base has, found {width}")
    return {ours: config[theirs] for ours, theirs in XLORA.items() if config.get(theirs) is not None}


def _xlora_config(m: Any, arch: Arch) -> Config:
    options = {theirs: getattr(m, ours) for ours, theirs in XLORA.items()}
    return options | dict(hidden_size=arch.d, top_k_lora=m.top_k or None)


def _classifier(m: Any) -> dict[str, Key]:
    """The keys of X-LoRA's classifier, a sequence of linears with ReLU and, if there is any, dropout between them."""
    stride = 3 if m.dropout else 2
    leaves = [(ours, theirs) for ours, theirs in (("V", "weight"), ("v", "bias"))]
    return {
        f"{ours}{i}": Key(f"base_model.internal_xlora_classifier.layers.{i * stride}.{theirs}")
        for i in range(m.depth)
        for ours, theirs in leaves
    }


# --- what PEFT can hold of an adapter ---------------------------------------------------------------------------------


def _with(adapter: Adapter, method: Method, at: Mapping[str, Method], arrays: Mapping[str, Any]) -> Adapter:
    """The adapter with another method, which trains these arrays."""
    rest = {
        k: v for k, v in adapter.arrays.items() if adapter.at.get(k.rpartition(":")[0], adapter.method).name == "full"
    }
    trained = frozenset(arrays) | (adapter.trained & rest.keys())
    return dataclasses.replace(
        adapter, method=method, at={**adapter.at, **at}, arrays={**arrays, **rest}, trained=trained
    )


def _doubled_rank(m: Any) -> Any:
    """LoRA of twice the rank and the same scale."""
    from minipeft.methods.lowrank.lora import LoRA

    return LoRA(r=2 * m.r, alpha=m.alpha * (2**0.5 if m.rslora else 2), dropout=m.dropout, rslora=m.rslora)


def _as_lora(model: Model, adapter: Adapter) -> Adapter:
    """Factors A0, B0 that are subtracted from the base, as further directions: B A − B0 A0 = [B, B0] [A; −A0]."""
    at = {site: _doubled_rank(m) for site, m in adapter.at.items() if m.name == adapter.method.name}
    arrays = {}
    for site, own in adapter.grouped().items():
        if site in at:
            own = {k: to_host(a) for k, a in own.items()}
            arrays[f"{site}:A"] = np.concatenate([own["A"], -own["A0"]])
            arrays[f"{site}:B"] = np.concatenate([own["B"], own["B0"]], axis=1)
    return _with(adapter, _doubled_rank(adapter.method), at, arrays)


def _scaled_values(model: Model, adapter: Adapter) -> Adapter:
    """SHiRA's scale, which PEFT does not save, within its values."""
    method: Any = adapter.method
    at = {site: dataclasses.replace(m, scale=1.0) for site, m in adapter.at.items() if m.name == method.name}  # type: ignore[call-arg]
    arrays = {k: to_host(a) * method.scale if k.endswith(":v") else a for k, a in adapter.arrays.items()}
    return dataclasses.replace(
        adapter, method=dataclasses.replace(method, scale=1.0), at={**adapter.at, **at}, arrays=arrays
    )


def _as_prompt(model: Model, adapter: Adapter) -> Adapter:
    """P-tuning's network, evaluated: the prompt alone."""
    from minipeft.methods.prompt.prompt_tuning import PromptTuning

    method: Any = adapter.method
    if model.arch.head == "classify" and model.arch.causal and method.pool != "last_position":
        raise Bad(
            f"{method.name}: pool={method.pool!r} is not what PEFT computes with a classifier on {model.arch.family}, which "
            "reads the last position, padding or not; expected 'last_position'"
        )
    if method.name == "prompt_tuning":
        return adapter
    plain = PromptTuning(targets=method.targets, p=method.p, pool=method.pool, ignores=method.ignores)
    at: dict[str, Method] = {site: plain for site, m in adapter.at.items() if m.name == method.name}
    own = adapter.grouped()
    arrays = {f"{site}:P": method.prompt(None, **own[site]) for site in at}
    return _with(adapter, plain, at, arrays)


def _prompt_fields(config: Config, arch: Arch) -> Config:
    typed = config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
    return dict(
        p=config["num_virtual_tokens"],
        pool="last_position" if arch.head == "classify" and arch.pool == "last" else "token",
        ignores="positions" if typed else "positions and types",
    )


def _stacks(config: Config, arch: Arch) -> int:
    """For how many stacks PEFT makes virtual tokens. Raises `Bad` for two where there is one."""
    stacks = config.get("num_transformer_submodules", 2 if arch.encoder_layers else 1)
    if stacks is None:
        stacks = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    if stacks == 2 and not arch.encoder_layers:
        raise Bad(
            f"adapter_config.json: num_transformer_submodules: expected 1, as {arch.family} has one stack, found 2"
        )
    return int(stacks)


def _prompted(arch: Arch) -> int:
    """For how many stacks PEFT has virtual tokens where it reads both: not without a head, where it uses all rows."""
    return 2 if arch.encoder_layers and arch.head == "lm" else 1


def _prompt_rows(config: Config, arch: Arch) -> Config:
    """With two stacks PEFT makes twice as many rows as it uses."""
    if _stacks({"num_transformer_submodules": _prompted(arch)} | config, arch) == 1:
        return {}
    p = config.get("num_virtual_tokens")

    def ours(a: Any, arch: Arch) -> Any:
        return a[: len(a) // 2] if p is None or len(a) == 2 * p else a

    def theirs(a: Any, arch: Arch) -> Any:
        return np.concatenate([a, np.zeros_like(a)])

    return dict(root_keys={"P": Key("prompt_embeddings", ours, theirs)})


def _prefix_fields(config: Config, arch: Arch) -> Config:
    """Raises `Bad` where the prefixes do not fit this base."""
    stacks = 2 if arch.encoder_layers else 1
    given = config | dict(num_transformer_submodules=_stacks(config, arch))
    expects = dict(num_attention_heads=arch.kv, token_dim=arch.kv * arch.dh, num_transformer_submodules=stacks)
    for name, expected in expects.items():
        if (found := given.get(name)) not in (None, expected):
            raise Bad(f"adapter_config.json: {name}: expected {expected}, as this base has, found {found}")
    blocks = config.get("num_layers") or arch.encoder_layers or arch.layers
    if blocks < arch.layers:
        raise Bad(
            f"adapter_config.json: num_layers: expected at least {arch.layers}, a prefix for every block, found {blocks}"
        )
    return dict(
        p=config["num_virtual_tokens"],
        window="past",
        layout="peft" if stacks == 2 else "ordered",
        blocks=0 if blocks == arch.layers else blocks,
    )


def _prefix_config(m: Any, arch: Arch) -> Config:
    blocks = 2 * arch.layers if arch.encoder_layers and m.layout == "ordered" else m.blocks or arch.layers
    return dict(
        num_virtual_tokens=m.p, token_dim=arch.kv * arch.dh, num_layers=blocks, num_attention_heads=arch.kv,
        num_transformer_submodules=2 if arch.encoder_layers else 1, prefix_projection=False, encoder_hidden_size=arch.d,
    )  # fmt: skip


def _adds(arch: Arch) -> str:
    """How PEFT adds the second attention of an adaption prompt."""
    return "bare" if arch.fused_qkv else "projected"


def _as_adaption(model: Model, adapter: Adapter) -> Adapter:
    """LLaMA-Adapter in PEFT's reading. Raises `Bad` where that computes something else."""
    method: Any = adapter.method
    wants = _adds(model.arch)
    blocks = [site for site in adapter.at if site.endswith("attn.heads")]
    if method.adds == "heads" and wants == "projected" and not any(f"{s[:-5]}o.bias" in model.params for s in blocks):
        method = dataclasses.replace(method, adds=wants)  # without a bias the two are the same
    if method.adds != wants:
        raise Bad(
            f"llama_adapter: adds={method.adds!r} is not what PEFT computes on {model.arch.family}; expected {wants!r}"
        )
    top = [f"layers.{n}.attn.heads" for n in range(model.arch.layers)][-len(blocks) :]
    if blocks != top:
        raise Bad(
            f"llama_adapter: PEFT adapts the topmost layers; expected {', '.join(top)}, found {', '.join(blocks)}"
        )
    at = {site: dataclasses.replace(m, adds=wants) for site, m in adapter.at.items() if m.name == method.name}  # type: ignore[call-arg]
    at |= {f"{s[:-5]}o.out": method for s in blocks}
    return dataclasses.replace(adapter, method=method, at={**adapter.at, **at})


def _as_prefixes(model: Model, adapter: Adapter) -> Adapter:
    """Prefix tuning's projection, folded in, in PEFT's layout. Raises `Bad` where PEFT computes something else."""
    method, arch = adapter.method, model.arch
    assert isinstance(method, PrefixTuning)
    own = [s for s, m in adapter.at.items() if m.name == method.name]
    if own != (expected := [f"layers.{n}.attn.kv" for n in range(arch.layers)]):
        raise Bad(f"prefix_tuning: PEFT has prefixes at {', '.join(expected)} alone, found {', '.join(own)}")
    if any(arch.window_of(n) for n in range(arch.layers)) and method.window == "all":
        raise Bad("prefix_tuning: window='all' is not what PEFT computes with a sliding window; expected 'past'")
    if method.positions == "zero" and arch.positions != "relative":
        raise Bad("prefix_tuning: positions='zero' is not what PEFT computes; expected 'after'")
    if method.layout == "peft" and not arch.encoder_layers:
        raise Bad("prefix_tuning: layout='peft' is not what PEFT computes without an encoder; expected 'ordered'")
    E = to_host(method.flat(**adapter.grouped()[""]))
    if arch.encoder_layers and method.layout == "ordered":  # there PEFT takes for layer l what stands at 2l
        blocks = E.reshape(len(E), -1, 2 * arch.kv * arch.dh)[:, : arch.layers]
        E = np.stack([blocks, np.zeros_like(blocks)], axis=2).reshape(len(E), -1)
    plain = dataclasses.replace(method, hidden=0, layout="peft" if arch.encoder_layers else "ordered",
                                blocks=E.shape[1] // (2 * arch.kv * arch.dh))  # fmt: skip
    return _with(adapter, plain, dict.fromkeys(own, plain), {":E": E})


PATTERNS = {  # peft_type -> their dictionaries of what differs by module, and our fields
    "LORA": {"rank_pattern": "r", "alpha_pattern": "alpha"},
    "LOHA": {"rank_pattern": "r", "alpha_pattern": "alpha"},
    "FOURIERFT": {"n_frequency_pattern": "n_frequency"},
    "OSF": {"rank_pattern": "effective_rank"},
}

SPECS: dict[str, Spec] = {
    "lora": _LORA,
    "dora": dataclasses.replace(
        _LORA, config=lambda m, arch: _lora_config(m, arch) | dict(use_dora=True, init_lora_weights=START[m.start])
    ),
    "pissa": dataclasses.replace(
        _LORA, config=lambda m, arch: _lora_config(m, arch) | dict(init_lora_weights=START[m.factors])
    ),
    "lora_ga": dataclasses.replace(_LORA, plain=_as_lora, config=lambda m, arch: _lora_config(_doubled_rank(m), arch)),
    "adalora": Spec(
        "ADALORA",
        keys={"P": Key("lora_B"), "Q": Key("lora_A"), "lam": Key("lora_E", _vector, _column, (None, 1))},
        fields=lambda c, arch: dict(
            r=c["init_r"], target_r=min(c["target_r"], c["init_r"]), alpha=float(c["lora_alpha"]), dropout=float(c.get("lora_dropout") or 0),
            tinit=c["tinit"], tfinal=c["tfinal"], deltaT=c["deltaT"], beta1=c["beta1"], beta2=c["beta2"],
            gamma=float(c["orth_reg_weight"]), sensitivity="after",
        ),
        config=_adalora_config,
        at_site=lambda c, module, arrays: dict(kept=len(arrays.get("lam", ()))),
    ),
    "osf": Spec(
        "OSF",
        keys={"U": Key("osf_svd_params.U_low"), "S": Key("osf_svd_params.S_low"), "V": Key("osf_svd_params.V_low")},
        fields=lambda c, arch: dict(effective_rank=c.get("effective_rank")),
        config=lambda m, arch: dict(effective_rank=m.effective_rank),
        at_site=lambda c, module, arrays: _osf_site(c, module, arrays) if len(arrays) == 3 else {},
    ),
    "vera": Spec(
        "VERA",
        sizes=("r",),
        keys={"lambda_d": Key("vera_lambda_d"), "lambda_b": Key("vera_lambda_b")},
        root_keys={"A": Key("base_model.vera_A"), "B": Key("base_model.vera_B")},
        fields=lambda c, arch: dict(
            r=c["r"], d_initial=c["d_initial"], seed=c["projection_prng_key"], dropout=float(c.get("vera_dropout") or 0)
        ),
        config=lambda m, arch: dict(
            r=m.r, d_initial=m.d_initial, projection_prng_key=m.seed, vera_dropout=m.dropout, save_projection=True,
            fan_in_fan_out=arch.family == "gpt2",
        ),
    ),
    "fourierft": Spec(
        "FOURIERFT",
        sizes=("n_frequency",),
        keys={"c": Key("fourierft_spectrum")},
        fields=lambda c, arch: dict(n_frequency=c["n_frequency"], scaling=float(c["scaling"]), seed=c["random_loc_seed"]),
        config=lambda m, arch: dict(
            n_frequency=m.n_frequency, scaling=m.scaling, random_loc_seed=m.seed, fan_in_fan_out=arch.family == "gpt2"
        ),
        at_site=lambda c, module, arrays: dict(n_frequency=by_pattern(c, "n_frequency_pattern", module, c["n_frequency"])),
    ),
    "oft": Spec(
        "OFT",
        keys={"Q": Key("oft_R.weight", shape=(None, None))},
        embedding_keys={"Q_emb": Key("oft_embedding_R.weight", shape=(None, None))},
        fields=lambda c, arch: dict(
            cayley="neumann" if c.get("use_cayley_neumann", True) else "exact",
            terms=c.get("num_cayley_neumann_terms", 5),
            block_share=c.get("block_share", False),
            coft=c.get("coft", False),
            eps=c.get("eps", 6e-5),
            block=c.get("oft_block_size", 0),
            r=0 if c.get("oft_block_size") else c.get("r", 0),
        ),
        config=lambda m, arch: dict(
            use_cayley_neumann=m.cayley == "neumann", num_cayley_neumann_terms=m.terms, block_share=m.block_share,
            coft=m.coft, eps=m.eps, oft_block_size=m.block, r=m.r, fan_in_fan_out=arch.family == "gpt2",
        ),
        at_site=_oft_site,
    ),
    "loha": Spec(
        "LOHA",
        sizes=("r",),
        keys={"X1": Key("hada_w1_a"), "Y1": Key("hada_w1_b"), "X2": Key("hada_w2_a"), "Y2": Key("hada_w2_b")},
        fields=lambda c, arch: dict(
            r=c["r"], alpha=float(c["alpha"]), rank_dropout=float(c.get("rank_dropout") or 0),
            module_dropout=float(c.get("module_dropout") or 0),
        ),
        config=lambda m, arch: dict(r=m.r, alpha=m.alpha, rank_dropout=m.rank_dropout, module_dropout=m.module_dropout),
        at_site=lambda c, module, arrays: dict(
            r=by_pattern(c, "rank_pattern", module, c["r"]), alpha=float(by_pattern(c, "alpha_pattern", module, c["alpha"]))
        ),
    ),
    "ia3": Spec(
        "IA3",
        keys={"l": Key("ia3_l", _vector, _column),
              "l_ff": Key("ia3_l", _vector, lambda a, arch: a.reshape(1, -1))},
        fields=lambda c, arch: {},
        config=lambda m, arch: dict(fan_in_fan_out=arch.family == "gpt2"),
        at_site=lambda c, module, arrays: dict(inputs="*" if "l_ff" in arrays else "none"),
    ),
    "shira": Spec(
        "SHIRA",
        sizes=("r",),
        keys={"v": Key("shira_weight"),
              "rows": Key("shira_indices", lambda a, arch: a[0], shape=(2, None)),
              "cols": Key("shira_indices", lambda a, arch: a[1], shape=(2, None))},
        fields=lambda c, arch: dict(r=c["r"], seed=c.get("random_seed")),
        config=lambda m, arch: dict(r=m.r, random_seed=m.seed, mask_type="random"),
        plain=_scaled_values,
    ),
    "trainable_tokens": Spec(
        "TRAINABLE_TOKENS",
        keys={"T": Key("trainable_tokens_delta")},
        fields=lambda c, arch: dict(tokens=tuple(c["token_indices"]), head_bias="drop"),
        config=lambda m, arch: dict(token_indices=list(m.tokens)),
    ),
    "prompt_tuning": Spec(
        "PROMPT_TUNING",
        sizes=("p",),
        keys={},
        root_keys={"P": Key("prompt_embeddings")},
        settled=_prompt_rows,
        fields=_prompt_fields,
        config=lambda m, arch: dict(
            num_virtual_tokens=m.p, token_dim=arch.d, num_layers=arch.layers, num_attention_heads=arch.heads,
            num_transformer_submodules=_prompted(arch), prompt_tuning_init="RANDOM",
        ),
        plain=_as_prompt,
    ),
    "p_tuning": Spec(  # their file holds the evaluated prompt, which is read as prompt tuning
        "P_TUNING",
        keys={},
        root_keys={"P": Key("prompt_embeddings")},
        settled=_prompt_rows,
        fields=lambda c, arch: {},
        config=lambda m, arch: dict(
            num_virtual_tokens=m.p, token_dim=arch.d, num_layers=arch.layers, num_attention_heads=arch.heads,
            num_transformer_submodules=_prompted(arch), encoder_reparameterization_type=m.encoder.upper(),
            encoder_hidden_size=m.hidden or arch.d, encoder_num_layers=m.layers, encoder_dropout=m.dropout,
        ),
        plain=_as_prompt,
    ),
    "prefix_tuning": Spec(
        "PREFIX_TUNING",
        sizes=("p", "blocks"),
        keys={},
        root_keys={"E": Key("prompt_embeddings")},
        fields=_prefix_fields,
        config=_prefix_config,
        plain=_as_prefixes,
    ),
    "llama_adapter": Spec(
        "ADAPTION_PROMPT",
        sizes=("K",),
        keys={"A": Key("adaption_prompt", lambda a, arch: a[0], lambda a, arch: a[None], (1, None, None)), "g": Key("adaption_gate")},
        fields=lambda c, arch: dict(K=c["adapter_len"], adds=_adds(arch)),
        config=_adaption_config,
        on_blocks=True,
        plain=_as_adaption,
    ),
    "x_lora": Spec(
        "XLORA",
        keys={},
        fields=_xlora_fields,
        config=_xlora_config,
    ),
    "poly": Spec(
        "POLY",
        sizes=("r", "n_tasks", "n_skills", "n_splits"),
        keys={"A": Key("poly_lora_A"), "B": Key("poly_lora_B"), "Z": Key("poly_router.module_logits")},
        fields=lambda c, arch: dict(r=c["r"], n_tasks=c["n_tasks"], n_skills=c["n_skills"], n_splits=c["n_splits"]),
        config=lambda m, arch: dict(r=m.r, n_tasks=m.n_tasks, n_skills=m.n_skills, n_splits=m.n_splits, poly_type="poly"),
    ),
}  # fmt: skip


def spec_of(method: Method) -> Spec:
    """How this method is written by PEFT. Raises `Bad` for one PEFT has not."""
    for cls in type(method).__mro__:
        if (name := cls.__dict__.get("name")) in SPECS:
            spec = SPECS[name]
            return dataclasses.replace(spec, root_keys=_classifier(method)) if name == "x_lora" else spec
    raise Bad(f"{method.name} cannot be written for PEFT: it has no such method; PEFT has {', '.join(sorted(SPECS))}")


BASE_CHANGED = {  # starts that leave another base behind, which a file of the trained factors does not tell
    "pissa_niter_": "from a decomposition that begins at random",
    "corda": "from a decomposition that needs the data",
    "loftq": "by quantising it",
}


def method_name(config: Config) -> str:
    """Our method for their configuration. Raises `Bad`, with near misses, for what we do not compute."""
    kind = kind_of(config)
    if kind == "LORA":
        start = config.get("init_lora_weights", True)
        began = start_of(start) if isinstance(start, str) else None
        if began in BASE_CHANGED:
            raise Bad(
                f"adapter_config.json: init_lora_weights={start!r} changed the base, {BASE_CHANGED[began]}: it cannot be made "
                "again from this file; save the adapter with path_initial_model_for_weight_conversion, which makes it plain LoRA"
            )
        if began == "lora_ga":
            note(
                "adapter_config.json: init_lora_weights='lora_ga': PEFT loads this on the base as it is, and so do we; it was "
                "trained on a base without its first factors, unless it was saved with path_initial_model_for_weight_conversion"
            )
        return "dora" if config.get("use_dora") else "pissa" if began in ("pissa", "olora") else "lora"
    if kind == "P_TUNING":
        return "prompt_tuning"
    return next(n for n, s in SPECS.items() if s.peft_type == kind)
