"""RoAd in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import COMMON, INIT, TARGETS, WHOLE, Kind, among, needed, read
from minipeft.interop.peft.spec import Key, Spec, Trial

EVEN = Kind("an even integer above 0", lambda v: type(v) is int and v > 0 and v % 2 == 0)

KNOWN = COMMON | TARGETS | WHOLE | INIT | {
    "variant": needed(among("road_1", "road_2", "road_4"), "road_1"),
    "group_size": read(EVEN, 64),
}  # fmt: skip

SPEC = Spec(
    "ROAD",
    KNOWN,
    keys={"theta": Key("road_theta", size="(n out/2)"), "alpha": Key("road_alpha", size="(n out/2)")},
    settings=dict(group="group_size"),
    reads=lambda config, arch: dict(variant=config["variant"].removeprefix("road_")),
    writes=lambda m, arch: dict(variant=f"road_{m.variant}"),
    trials=(
        Trial("llama", dict(group=4)),
        Trial("llama", dict(group=2, variant="2"), name="two"),
        Trial("llama", dict(group=4, variant="4"), name="four"),
    ),
)
