"""RoAd."""

import peft


def cases(on):
    qv = ["q_proj", "v_proj"]
    return [
        on.llama("road", peft.RoadConfig, "left", group_size=4, target_modules=[*qv, "down_proj"]),
        on.llama("road-2", peft.RoadConfig, variant="road_2", group_size=6, target_modules=qv),
        on.llama("road-4", peft.RoadConfig, variant="road_4", group_size=4, target_modules=["k_proj", "up_proj"]),
        on.bert_cls("road", peft.RoadConfig, variant="road_2", group_size=4, target_modules=["query", "value"]),
        on.t5("road", peft.RoadConfig, group_size=2, target_modules=["q", "wi"]),
        on.vit_channels("road", peft.RoadConfig, variant="road_4", group_size=4, target_modules=["q_proj", "fc1"]),
        on.mistral("road", peft.RoadConfig, variant="road_2", group_size=4, target_modules=["o_proj"]),
    ]
