"""`--help` and completion: every command has examples that work, fits 80 columns, and completes what it takes."""

import glob
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.main import get_command

from minipeft import attach, load, save_adapter, save_peft
from minipeft.cli import OPTIONAL, app
from minipeft.conformance import author
from minipeft.data import BASE
from minipeft.methods.lowrank.lora import LoRA

ROOT = Path(__file__).parents[2]
PEFT_CASES = ROOT / "tests" / "data" / "peft" / "llama"


def commands(group=None, before=()):
    """{words: command} of the whole command line."""
    group = group or get_command(app)
    found = {}
    for name, command in group.commands.items():
        words = (*before, name)
        found[words] = command
        if hasattr(command, "commands"):
            found |= commands(command, words)
    return found


def examples():
    found = []
    for words, command in commands().items():
        text = command.callback.__doc__
        lines = re.findall(r"^\s+(minipeft .*)$", text.partition("Example")[2], re.MULTILINE)
        assert lines, words
        for line in lines:
            line = line.replace("METHOD", "lora").replace("OTHER", "dora")
            if " peft" in line:
                marks = [pytest.mark.hf]
            elif words in (("verify", "field"), ("site",)):  # environments made by pip; the extra [site]
                marks = [pytest.mark.slow]
            else:
                marks = [pytest.mark.wide] if len(found) % 4 or words in (("compare",), ("bench",)) else []
            found.append(pytest.param(line, marks=marks, id=line))
    return found


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The folders that examples speak of."""
    there = tmp_path_factory.mktemp("examples")
    shutil.copytree(BASE, there / "base")
    adapted = attach(load(BASE), LoRA(r=2), targets="q_proj")
    save_adapter(adapted, there / "adapter")
    save_peft(adapted, there / "peft_adapter")
    rows = [f"{'good' if i % 2 else 'bad'} text {i},{'yes' if i % 2 else 'no'}" for i in range(400)]
    (there / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    return there


@pytest.mark.parametrize("line", examples())
def test_its_examples_work(call, prepared, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    words = [w for word in shlex.split(line)[1:] for w in (sorted(glob.glob(word)) if "*/" in word else [word])]
    for there in prepared.iterdir():
        if there.name in words or f"{there.name}/" in words:
            (tmp_path / there.name).symlink_to(there)
    if words[0] == "replay":
        (tmp_path / "base").unlink()
        (tmp_path / "base").symlink_to(PEFT_CASES / "base")
        (tmp_path / "cases").mkdir()
        (tmp_path / "cases" / "one").symlink_to(PEFT_CASES / "lora")
        words = ["replay", "cases/one", *words[2:]]
    if words[0] == "train":
        (tmp_path / "adapter").unlink()
    if words[0] == "new":
        monkeypatch.setattr(author, "write_bytes", lambda path, data: None)  # into the package that is tested
    less = {
        "compare": ["--steps", "2", "--seeds", "1"],
        "train": ["--steps", "2", "--data", prepared / "reviews.csv"],
        "bench": ["--rounds", "1"],
    }
    status, _, err = call(*words, *less.get(words[0], []))
    assert status == 0, err


@pytest.mark.parametrize("words", [(), *commands()], ids=" ".join)
def test_help_fits_80_columns(call, monkeypatch, words):
    monkeypatch.delenv("COLUMNS", raising=False)
    status, out, err = call(*words, "--help")
    assert status == 0 and not err and "\x1b" not in out
    assert not [line for line in out.splitlines() if cell_len(line) > 80]
    for line in re.findall(r"^\s+(minipeft .*)$", (commands()[words].callback.__doc__ if words else ""), re.MULTILINE):
        assert line.strip() in out  # on a line of its own, whole


def test_an_option_means_the_same_in_every_command():
    """The same name is the same kind of value, wherever it stands, and the same words but for the choices it has."""
    seen = {}
    for words, command in commands().items():
        for p in command.params:
            if p.param_type_name == "option" and p.name not in ("help", "dtype", "case", "task"):
                about = (p.multiple, bool(getattr(p, "is_flag", False)), p.metavar, p.help)
                seen.setdefault(p.opts[0], {})[words] = about
    assert {"--json", "--strict", "--base", "--set", "--targets", "--seed", "--html"} <= set(seen)
    differing = {flag: where for flag, where in seen.items() if len(set(where.values())) > 1}
    assert not {f for f in differing if f not in ("--steps", "--python", "--against")}, differing


def test_version(call):
    from minipeft import __version__

    assert call("--version") == (0, f"minipeft {__version__}\n", "")


def test_no_words_are_answered_with_the_help(call):
    status, out, _ = call()
    assert status == 2 and "Usage: minipeft" in out


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("minipeft ver", {"verify"}),
        ("minipeft show do", {"dora"}),
        ("minipeft check do", {"dora"}),
        ("minipeft compare lora pi", {"pissa"}),
        ("minipeft train prompt", {"prompt_tuning"}),
        ("minipeft bench pre", {"prefix_tuning"}),
        ("minipeft verify loh", {"loha"}),
        ("minipeft verify di", {"diff"}),
        ("minipeft verify --case lora.forward.u", {"lora.forward.usual"}),
        ("minipeft verify -i lo", {"loralib"}),
        ("minipeft verify new r", {"rust"}),
        ("minipeft check --family b", {"bert"}),
        ("minipeft check --dtype ", {"float64", "float32"}),
        ("minipeft merge --dtype b", {"bfloat16"}),
        ("minipeft combine --kind dare_t", {"dare_ties", "dare_ties_svd"}),
        ("minipeft train lora out --sch", {"--schedule"}),
        ("minipeft train lora out --schedule c", {"constant", "cosine"}),
        ("minipeft bench --backend ", {"numpy", "cupy"}),
    ],
)
def test_completion(call, monkeypatch, line, holds):
    monkeypatch.setenv("_MINIPEFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - (not line.endswith(" "))))
    _, out, err = call()
    assert set(out.split()) == holds and not err


def test_completion_can_be_installed(started, tmp_path):
    process = started(
        "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert "minipeft" in written and "_MINIPEFT_COMPLETE" in written


# --- what to install --------------------------------------------------------------------------------------------------


def test_what_a_message_tells_to_install_exists():
    """Every package that a text of this project tells pip to install is one that pyproject.toml installs, by that name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for ds in project["optional-dependencies"].values() for d in ds)]
    known = {re.match(r"[\w-]+", d)[0] for d in wanted} - {"minipeft"}
    extras = set(project["optional-dependencies"])
    told = []
    texts = [*(ROOT / "minipeft").rglob("*.py"), *(ROOT / "minipeft").rglob("*.md"), *(ROOT / "docs").glob("*.md"),
             ROOT / "README.md", ROOT / ".ci" / "run"]  # fmt: skip
    for path in texts:
        for words in re.findall(
            r"pip install ((?:-{1,2}[\w]+ |['\"]?[\w.-]+(?:\[[\w,]+\])?['\"]?(?: (?!&)|))+)", path.read_text()
        ):
            for word in words.replace('"', " ").replace("'", " ").split():
                if word.startswith("-"):
                    continue
                told.append(word)
                if word.startswith("."):
                    assert set(re.findall(r"\w+", word)) <= extras, (path, word)
                elif "{" not in word:
                    assert word.partition("[")[0] in known, (path, word)
    assert {"tokenizers", "matplotlib", "typer", "rich", "cupy-cuda13x[ctk]", ".[test]"} <= set(told)
    assert set(OPTIONAL) <= known


@pytest.mark.parametrize("package", OPTIONAL)
def test_a_library_that_is_not_there_is_one_line(capsys, package):
    from minipeft.cli import main

    def run(*args, **more):
        raise ModuleNotFoundError(f"No module named '{package}.part'", name=f"{package}.part")

    with pytest.raises(SystemExit) as ended:
        main([], run=run)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"minipeft: this needs {package}: pip install {package}\n"
    assert os.environ.get("_MINIPEFT_COMPLETE") is None
