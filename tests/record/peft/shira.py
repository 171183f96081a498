"""SHiRA, beyond the cases on Llama. A mask of one's own is in no configuration; the file has its places."""

import peft
import torch


def largest(layer, r, **_):
    """The largest weights of a layer, as many as the random mask would take."""
    w = layer.weight.detach().abs()
    n = r * sum(w.shape)
    return torch.zeros(w.numel()).scatter_(0, w.flatten().topk(n).indices, 1.0).view(w.shape)


def masked(task_type, **options):
    config = peft.ShiraConfig(task_type=task_type, mask_type="largest", **options)
    config.mask_fn = largest
    return config


def cases(on):
    shira = peft.ShiraConfig
    return [
        on.llama("shira-masked", masked, "left", r=2, target_modules=["q_proj", "down_proj"]),
        on.bert_cls("shira", shira, r=2, random_seed=5, target_modules=["query", "output.dense"]),
        on.t5("shira", shira, r=1, target_modules=["q", "wo"]),
        on.vit("shira", shira, r=2, target_modules=["q_proj", "fc1"], init_weights=False),
    ]
