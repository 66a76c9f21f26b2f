"""What a synthesis would take, told without writing."""

import re

import pytest
from tiny import TINY_CONFIGS

from callbacks.pair_estimate import Sample, ToMake, estimate
from pocketgan.cli import main
from pocketgan.pair_set import read_pairs

CONFIG = TINY_CONFIGS / "synthesize" / "style_transfer.yaml"


def state(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def dry_run(root, capsys, *words):
    before = state(root.parent)
    capsys.readouterr()
    main(["predict", f"-c={CONFIG}", f"--trainer.default_root_dir={root}", "--dry-run", *words])
    assert state(root.parent) == before
    return capsys.readouterr().out


def test_worked_by_hand():
    to_make = ToMake(photos=1000, concepts=5, pairs=3600, new_photos=400)
    # 2 and 4 pairs a second; a third process had no photo to try
    samples = [Sample(8, 4.0, 800_000, 1_600_000), Sample(8, 2.0, 800_000, 1_600_000), Sample(0, 0.0, 0, 0)]
    assert estimate(to_make, samples) == [
        "photos         1000, 400 of them new to the set",
        "concepts       5",
        "pairs to make  3600 of 5000",
        "on disk        760.0 MB: 100.0 kB a photo, 200.0 kB an edit",
        "time           0.11 hours on 3 processes: 0.333 s a pair and process, timed on 16 pairs",
        "nothing was written",
    ]


def test_nothing_is_written_and_the_figures_are_the_runs(tmp_path, capsys):
    root = tmp_path / "p"
    shown = dry_run(root, capsys, "--data.crops_per_photo=3", "--data.limit=12", "--model.teacher.style=[19, 11]")
    assert not root.exists()
    assert "photos         12, 12 of them new to the set\nconcepts       2\npairs to make  24 of 24\n" in shown
    assert "on 1 process: " in shown
    assert "timed on 4 pairs\nnothing was written\n" in shown
    told = float(re.search(r"on disk        ([\d.]+) MB", shown)[1])
    words = [f"--trainer.default_root_dir={root}", "--data.crops_per_photo=3", "--data.limit=12"]
    main(["predict", f"-c={CONFIG}", *words, "--model.teacher.style=[19, 11]"])
    made = sum(file.stat().st_size for file in root.rglob("*.png")) / 1e6
    assert told == pytest.approx(made, rel=0.25)


def test_of_a_set_that_is_begun_the_rest_is_told(tmp_path, capsys):
    root = tmp_path / "p"
    main(["predict", f"-c={CONFIG}", f"--trainer.default_root_dir={root}", "--data.limit=4"])
    shown = dry_run(root, capsys, "--model.teacher.style=[19, 11]")
    assert "photos         6, 2 of them new to the set\nconcepts       2\npairs to make  8 of 12\n" in shown
    shown = dry_run(root, capsys, "--data.limit=4")
    assert "pairs to make  0 of 4\nthere is nothing to make\n" in shown
    assert len(read_pairs(root)) == 4
    with pytest.raises(ValueError, match=r"seed: the set has 0, this run 1"):
        dry_run(root, capsys, "--model.seed=1")


def test_other_commands_have_none(capsys):
    with pytest.raises(SystemExit):
        main(["validate", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", "--dry-run"])
    assert "dry-run" in capsys.readouterr().err
