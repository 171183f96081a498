"""Against length and rank: drawn, and kept when it is interrupted."""

import json

import pytest

from minipeft import bench as job
from minipeft.bench import turns
from minipeft.cli import main


def measured(task, method, size, threads, plan):
    """In place of a measurement, a process each, which other tests see."""
    return dict(task=task, method=method, size=size, against=plan.against, ours_ms=12.5, ours_peak=1e6, share=0.5)


@pytest.mark.wide
def test_sweep_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(turns, "_measure", measured)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--sweep", str(tmp_path), "--json", "-"])
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["size"] for r in rows][:2] == ["M,t=64,b=1", "M,t=128,b=1"] and rows[-1]["size"] == "M,r=64"
    assert len(rows) == len(job.LENGTHS) + len(job.RANKS) and json.loads((tmp_path / "speed.json").read_text()) == rows
    assert {p.name for p in tmp_path.iterdir()} == {"speed.json", "speed_length.png", "speed_rank.png"}


def test_what_was_measured_is_kept_when_it_is_interrupted(tmp_path, monkeypatch, capsys):
    """A line for each row as it is there; then the file and the plots of those."""

    def until_ctrl_c(task, method, size, threads, plan):
        if size == "M,t=512,b=1":
            said = capsys.readouterr()
            assert "10 measurements, 7 turns of ours each: roughly" in said.err
            assert [line.split()[1] for line in said.out.splitlines()] == [
                "size",
                *(f"M,t={t},b=1" for t in (64, 128, 256)),
            ]
            raise KeyboardInterrupt
        return measured(task, method, size, threads, plan)

    monkeypatch.setattr(turns, "_measure", until_ctrl_c)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--sweep", str(tmp_path), "--json", str(tmp_path / "all.json")])
    assert ended.value.code == 130 and job.TOLD in capsys.readouterr().out
    assert len(json.loads((tmp_path / "all.json").read_text())) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"all.json", "speed.json", "speed_length.png"}
