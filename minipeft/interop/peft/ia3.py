"""(IA)³ in PEFT: one key for the scale of the outputs, a column, and that of the inputs of `feedforward_modules`, a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.interop.peft.fields import COMMON, CONV, EXCLUDED, NAMES, ONLY_STARTS, TARGETS, WHOLE, Config, plain, read
from minipeft.interop.peft.kernels import channels
from minipeft.interop.peft.names import HERE
from minipeft.interop.peft.spec import Key, Spec, Trial, column, row, transposed, vector
from minipeft.method import Site
from minipeft.patterns import matching

KNOWN = COMMON | TARGETS | EXCLUDED | WHOLE | CONV | {
    "feedforward_modules": read(NAMES),
    "init_ia3_weights": plain(ONLY_STARTS, True),
}  # fmt: skip


def _of_outputs(a: Any, site: Site) -> bool:
    """Whether it is a column; of one output it is one where it is no row of the inputs."""
    return len(a) != 1 or (site.shape[0] == 1 and a.size != site.shape[1])


def _feedforward(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    return dict(feedforward_modules=sorted(m for site, m in modules.items() if f"{site}:l_ff" in adapter.arrays))


def _absent(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """It scales the inputs of feedforward_modules and the outputs of the others; the file's shapes must say the same."""
    given = config.get("feedforward_modules")
    if given is None:
        return
    modules = {site: own[site].rpartition(".")[0] for site in found}
    named = matching(given, modules.values(), f"{HERE}: feedforward_modules:") if isinstance(given, str) else ()
    for site, arrays in found.items():
        module = modules[site]
        declared = module in named if isinstance(given, str) else any(module.endswith(n) for n in given)
        if declared != ("l_ff" in arrays):
            yield f"{module}.ia3_l as feedforward_modules declares it, a scale of its {'in' if declared else 'out'}puts"


SPEC = Spec(
    "IA3",
    KNOWN,
    keys={
        "l": Key("ia3_l", vector, column, holds=_of_outputs, size="(out, 1)"),
        "l_ff": Key("ia3_l", vector, row, holds=lambda a, site: not _of_outputs(a, site), size="(1, in) where the input is scaled"),
    },
    patches={
        "l": channels("ia3_l", lambda a, site: a.shape[1] == site.shape[0]),
        "l_ff": channels("ia3_l", lambda a, site: a.shape[1] != site.shape[0]),
    },
    writes=lambda m, arch: transposed(arch),
    at_site=lambda config, arrays: dict(inputs="*" if "l_ff" in arrays else "none"),
    of_adapter=_feedforward,
    absent=_absent,
    layer=dict(feedforward_modules=[]),
    trials=(
        Trial("llama"),
        Trial("gpt2", name="gpt2"),
        Trial("vit-channels", attached=dict(targets="projection k_proj fc2"), name="patches"),
        Trial("vit-channels", dict(inputs="embed.patch.weight"), dict(targets="projection k_proj"), name="channels"),
    ),
)  # fmt: skip
