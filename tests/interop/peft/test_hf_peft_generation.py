"""Generation with prompts, as PEFT has it: greedy, token by token with its cache, with and without padding on the left."""

from pathlib import Path

import numpy as np
import pytest
from test_hf_peft_live import hf, moved, read_by_peft  # noqa: F401

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import method_class
from minipeft.model.batch import batch
from minipeft.model.generate import generate

pytestmark = pytest.mark.hf
ROOT = Path(__file__).parents[2] / "data" / "peft"
SETTINGS = {
    "prompt_tuning": dict(p=3),
    "prefix_tuning": dict(p=3),
    "cartridge": dict(p=3, frozen=0),
    "mpt": dict(p=3, n_tasks=2),
    "cpt": dict(tokens=(5, 9, 3), types=(1, 2, 4)),
}
IDS = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 7]])


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("base", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_tokens(name, base, padding, hf, tmp_path):  # noqa: F811
    """Also where PEFT counts padding as positions, which its files are read with. T5's prompts of MPT are in the encoder alone:

    in both stacks PEFT leaves out the decoder's.
    """
    import torch

    if (name, base) == ("cpt", "t5"):
        pytest.skip("for decoders alone")
    model = load(ROOT / base / "base", np.float64)
    method = method_class(name)(**SETTINGS[name])
    targets = "encoder.embed.tokens.out" if (name, base) == ("mpt", "t5") else None
    save_peft(moved(attach(model, method, targets=targets)), tmp_path)
    mask = np.ones_like(IDS)
    mask[0, :padding] = 0
    given = dict(input_ids=IDS * mask, attention_mask=mask) | (dict(task_ids=np.array([1, 0])) if name == "mpt" else {})
    theirs, modules = read_by_peft(hf, base, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with hf.as_float64(*modules), torch.no_grad():
            inputs = {k: torch.tensor(v) for k, v in given.items()}
            want = theirs.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=True).numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    got = generate(load_peft(model, tmp_path), batch(**given), 6)
    assert got.tolist() == want[:, 1 if base == "t5" else IDS.shape[1] :].tolist()
