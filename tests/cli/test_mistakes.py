"""A user's mistake is one line, status 2, and nothing is written."""

from pathlib import Path

import pytest

PEFT_CASES = Path(__file__).parents[1] / "data" / "peft" / "llama"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "lroa"], "did you mean lora"),
        (["check", "lroa"], "did you mean lora"),
        (["check", "lora", "--family", "lama"], "did you mean llama"),
        (["check", "lora", "--dtype", "float16"], "expected one of float64, float32 (did you mean float"),
        (["compare", "--dtype", "bfloat"], "did you mean bfloat16"),
        (["compare", "lroa"], "did you mean lora"),
        (["compare", "--base", "/no/such"], "/no/such: no such folder"),
        (["compare", "--data", "/no/such.csv"], "/no/such.csv: no such file"),
        (["train", "lora", "out", "--set", "rr=3"], "lora has no setting 'rr' (did you mean r"),
        (
            ["train", "lora", "out", "--set", "r=many"],
            "expected an integer, at least 1, at most 65,536, as in 8, found str",
        ),
        (
            ["train", "lora", "out", "--set", "r=None"],
            "expected an integer, at least 1, at most 65,536, as in 8, found NoneType",
        ),
        (
            ["train", "lora", "out", "--set", "r=2.5"],
            "expected an integer, at least 1, at most 65,536, as in 8, found float",
        ),
        (
            ["train", "lora", "out", "--set", "r=True"],
            "expected an integer, at least 1, at most 65,536, as in 8, found bool",
        ),
        (
            ["train", "lora", "out", "--set", "r="],
            "expected an integer, at least 1, at most 65,536, as in 8, found str",
        ),
        (["train", "lora", "out", "--set", "r"], "expected KEY=VALUE"),
        (["train", "lora", "out", "--set", "=4"], "expected KEY=VALUE"),
        (["train", "lora", "out", "--set", "r=4", "--set", "r=8"], "r of lora is given twice"),
        (["train", "lora", "out", "--set", "dora.r=4"], "dora is none of the methods here"),
        (["train", "lora", "out", "--set", "targets='q_proj"], "a quote is not closed"),
        (["train", "lora", "out", "--set", "alpha=nan"], "expected a number, as in 8.0, found str"),
        (["train", "lora", "out", "--set", "alpha=1e999"], "expected a number, as in 8.0, found float"),
        (["train", "lora", "out", "--set", "rslora=yes"], "expected True or False, as in False, found str"),
        (
            ["train", "dora", "out", "--set", "grad=ful"],
            "grad must be 'detached' or 'full', found 'ful' (did you mean full",
        ),
        (["train", "lora", "out", "--set", "dropout=yes"], "expected a number, in [0, 1), as in 0.0, found str"),
        (["train", "lora", "out", "--set", "r=0"], "r must be at least 1, found 0"),
        (
            ["train", "lora", "out", "--targets", "q", "--set", "targets=v"],
            "--targets q: targets of lora is given twice",
        ),
        (["train", "lora", "out", "--targets", "q_porj", "--steps", "1"], "match nothing"),
        (["train", "trainable_tokens", "out", "--set", "tokens=1,two"], "tokens=1,two: expected integers"),
        (["train", "adapter_fusion", "out", "--set", "adapters=a"], "expected a tuple, one or more"),
        (["train", "lora", "out", "--optimiser", "adam"], "did you mean adamw"),
        (["train", "lora", "out", "--schedule", "cosin"], "did you mean cosine"),
        (["train", "lora", "out", "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "lora", "out", "--steps", "0"], "Invalid value for '--steps'"),
        (["train", "lora", "out", "--steps", "many"], "Invalid value for '--steps'"),
        (["train", "lora", "out", "--lr", "nan"], "--lr nan: expected a number"),
        (["train", "lora", "out", "--lr", "-0.1"], "--lr -0.1: expected a number"),
        (["train", "lora", "out", "--lr", "inf"], "--lr inf: expected a number"),
        (["train", "lora", "out", "--warmup", "-1"], "Invalid value for '--warmup'"),
        (["train", "lora"], "Missing argument 'out' (see minipeft train --help)"),
        (["train", "lora", "out", "--stpes", "3"], "No such option: --stpes"),
        (["comparee"], "Did you mean 'compare'"),
        (["compare", "lora", "--seed", "-1"], "Invalid value for '--seed'"),
        (["compare", "lora", "--lr", "nan"], "--lr nan"),
        (["compare", "lora", "--json", "-", "--html", "-"], "--html and --json -: expected two places, found one"),
        (["compare", "lora", "--json", "a", "--html", "./a"], "expected two places, found one"),
        (["compare", "lora", "--html", "."], "--html .: expected a file, found a folder"),
        (["list", "--json", "/dev/null/x"], "/dev/null is no folder"),
        (["list", "--json", "/dev/full"], "--json /dev/full: expected a file, found a device"),
        (["train", "lora", ""], "expected a word, found an empty one"),
        (["bench", "--threads", "9999"], "Invalid value for '--threads'"),
        (["check", "lora", "ia3", "--set", "rr=3"], "none of these methods has a setting 'rr' (did you mean r"),
        (["check", "lora", "ia3", "--set", "ia3.r=3"], "ia3 has no setting 'r'"),
        (["merge", "a", "b", "--base", "/no/such"], "/no/such: no such folder"),
        (["convert", "/no/such", "b"], "/no/such: no such folder"),
        (["replay", "--base", "/no/such", PEFT_CASES], "/no/such: no such folder"),
        (["bench", "--size", "XXL"], "expected one of S, M, L"),
        (["bench", "lroa"], "did you mean lora"),
        (["bench", "--against", "pft"], "did you mean peft"),
        (["bench", "--dtype", "bfloat"], "did you mean bfloat16"),
        (["verify", "lroa"], "did you mean lora"),
        (["verify", "--dtype", "float16"], "expected one of float64, float32"),
        (["verify", "--limit", "nan"], "--limit nan: expected a number above 0"),
        (["verify", "--limit", "0"], "--limit 0: expected a number above 0"),
        (["verify", "--python", "peft"], "expected a file, or NAME=PATH with NAME of minipeft"),
        (["verify", "--expect-update"], "expected --expect FILE"),
        (["verify", "diff", "minipeft", "minipeft", "--case", "lora.gard"], "did you mean lora.grad"),
        (["--backend", "numpi", "list"], "expected one of numpy, cupy"),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    line = mistake(*words)
    assert says in line
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
