"""Cases of adapters' files: one as PEFT writes it, and those that must be refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.conformance import places
from minipeft.conformance.cases import Case
from minipeft.conformance.own import config_of
from minipeft.conformance.places import PLACES, Arrays
from minipeft.conformance.record.one import OWN, agree, conditions, generator, single
from minipeft.errors import Bad
from minipeft.interop.peft import layer
from minipeft.interop.peft.spec import ROOT, Spec
from minipeft.method import Method


def files_of(spec: Spec, method: Method, inputs: Arrays, arrays: Arrays, about: Arrays) -> Iterator[Case]:
    """An adapter as PEFT writes it, for a model whose one linear is named `layer`; and files that must be refused."""
    from safetensors.numpy import save

    site = "layer.weight"
    trained = frozenset(f"{site}:{k}" for k in [k for k, r in about["roles"].items() if r == "array"])
    adapter = Adapter("case", method, {site: method}, {f"{site}:{k}": v for k, v in arrays.items()}, trained)
    config = layer.config_of(spec, method) | dict(inference_mode=True)
    spec = spec.of(config, places.ARCH)
    held = spec.plain(None, adapter)  # type: ignore[arg-type]
    written = {*spec.keys, *spec.root_keys, *(spec.packing.of if spec.packing else ())}
    arrays = {k: single(v) if k in written else v for k, v in held.grouped()[site].items()}
    tensors = {k: a.astype(np.float32) if a.dtype.kind == "f" else a for k, a in layer.tensors_of(spec, arrays).items()}
    if spec.packing:  # what the file tells of them
        parts = spec.packing.theirs(arrays, arrays)
        arrays |= spec.packing.ours(parts, {**arrays, **inputs})
    want = places.PLACES["linear"].call(held.method, inputs, arrays)
    roles = {k: r for k, r in about["roles"].items() if k in inputs}

    def case(variant: str, tensors: Arrays, config: Arrays = config, **more: Any) -> Case:
        files = {
            "adapter_model.safetensors": save(tensors, {"format": "pt"}),
            "adapter_config.json": files_json(config),
        }
        made = about | dict(variant=variant, roles=roles, inputs=inputs, files=files)
        return Case(**(dict(check="load", ask="load") | made | more))

    plain = case("plain", tensors, want={"y": want["y"]}, cond={})
    asked = dataclasses.replace(
        plain, ask="forward", inputs={**inputs, **adapter.grouped()[site]}, roles=about["roles"]
    )
    cond = conditions(asked)
    yield dataclasses.replace(
        plain, cond=cond, witnesses=("the outputs of the arrays that the files hold", "the keys that PEFT writes"),
    )  # fmt: skip
    written_out = {k: v for k, v in {**inputs, **arrays}.items() if k in (*held.grouped()[site], "W", "b")}
    own = {k: about["roles"][k] for k in written_out}
    told = about | dict(variant="usual", roles=own, config=config_of(held.method), inputs=written_out, since="0.2")
    yield saved(Case(check="save", ask="save", **told), tensors)
    if spec.combined:
        yield from whole(case, asked, tensors, config)
    first = next(k for k in sorted(tensors) if k.startswith(layer.MODULE) and tensors[k].dtype.kind == "f")
    told = dict(tolerance="REJECT", witnesses=("the rule that a file must fit", "the shapes of the method's table"))
    for variant, changed in spec.variants(config).items():
        done = dataclasses.replace(
            plain,
            cond=cond,
            witnesses=("the outputs of the arrays that the files hold", f"the case without {variant}s"),
        )
        yield dataclasses.replace(done, variant=variant, files=case(variant, tensors, config | changed).files)
    yield case("missing", {k: v for k, v in tensors.items() if k != first}, flags=("silent missing keys",), **told)
    yield case(
        "unexpected",
        tensors | {layer.MODULE + "lora_Q.weight": tensors[first]},
        flags=("unknown keys are dropped",),
        **told,
    )
    short = np.ascontiguousarray(tensors[first][:-1]) if tensors[first].shape[0] > 1 else tensors[first][:, :-1].copy()
    yield case("misshaped", tensors | {first: short}, flags=("shapes are not checked",), **told)
    other = {k.replace(".layer.", ".another."): v for k, v in tensors.items()}
    yield case("wrong_adapter", other, flags=("an adapter of another model loads silently",), **told)


def files_json(config: Arrays) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def saved(case: Case, tensors: Arrays) -> Case:
    """The tensors of a file, by PEFT's keys; in another case they are read."""
    want = {k: np.asarray(v) for k, v in OWN.save(case).items()}
    cond = conditions(case, OWN.save)
    done = dataclasses.replace(case, want=want, cond={k: cond.get(k, 0.0) for k in want})
    agree(done, tensors, "file that is read")
    if want.keys() != tensors.keys():
        raise Bad(f"{case.id}: {sorted(want.keys() ^ tensors.keys())[0]} is in one of two files alone")
    return dataclasses.replace(done, witnesses=("the keys that PEFT writes", "the file that `load` reads"))


def whole(case: Callable[..., Case], asked: Case, tensors: Arrays, config: Arrays) -> Iterator[Case]:
    """A module behind the linear, which was trained whole and is in the file; and one that the file lacks."""
    rng = generator(asked.method, "saved")
    base, trained = ({k: single(rng.standard_normal(PLACES["headed"].inputs[k])) for k in "Hc"} for _ in range(2))
    given = {k: v for k, v in asked.inputs.items() if asked.roles[k] in ("input", "base")}
    about: Arrays = dict(
        place="headed",
        inputs=given | base,
        roles={k: asked.roles[k] for k in given} | dict.fromkeys(base, "base"),
        since="0.2",
    )
    behind = dataclasses.replace(
        asked, place="headed", inputs={**asked.inputs, **trained}, roles={**asked.roles, **dict.fromkeys(base, "base")}
    )
    keys = {f"{ROOT}{layer.BEHIND}.weight": "H", f"{ROOT}{layer.BEHIND}.bias": "c"}
    held = {key: trained[name].astype(np.float32) for key, name in keys.items()}
    config = config | dict(modules_to_save=[layer.BEHIND])
    made = case("saved", tensors | held, config, want=OWN.forward(behind), cond=conditions(behind), **about)
    agree(made, dict(y=OWN.forward(asked)["y"] @ trained["H"].T + trained["c"]), "outputs through the head")
    yield dataclasses.replace(
        made, flags=("modules_to_save dropped",), witnesses=("the outputs of the arrays that the files hold", "those of `plain` through the head"),
    )  # fmt: skip
    told: Arrays = dict(
        tolerance="REJECT", witnesses=("the rule that a file must fit", "the modules that its configuration names")
    )
    yield case("saved_missing", tensors, config, flags=("modules_to_save dropped",), **about, **told)
