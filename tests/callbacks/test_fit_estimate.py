"""What a training would take."""

import re

import pytest
from tiny import fit_adapter, fit_base
from tiny_gan import fit_unpaired, make_image_folder

from lightning_modules import load_run


def test_a_dry_run_tells_and_writes_nothing(pair_set, tmp_path, capsys, trained):
    with pytest.raises(SystemExit) as left:
        fit_base(pair_set, tmp_path / "run", "--dry-run", "--budget.images=4000")
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    generator = sum(weight.numel() for weight in load_run(trained["base"]).generator.parameters())
    assert f"generator: {generator:,} parameters, {generator:,} of them trained" in said
    assert re.search(r"generator: 0\.\d{3} GMACs an image at 32 px", said)
    assert "images: 4,000 in batches of 4 on 1 processes" in said
    seconds, speed = re.search(r"time: ([\d,]+) s .* steps, ([\d.]+) images a second over 8 batches", said).groups()
    assert float(seconds.replace(",", "")) == pytest.approx(4000 / float(speed), rel=0.05, abs=1)
    megabytes = float(re.search(r"([\d.]+) MiB each; nothing was written", said).group(1))
    assert megabytes == pytest.approx((trained["base"] / "checkpoints" / "last.ckpt").stat().st_size / 2**20, rel=0.1)


def test_other_recipes(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit_adapter(trained["pairs"], trained["base"], tmp_path / "a", "--data.concepts=[sepia]", "--dry-run")
    assert "nothing was written" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fit_unpaired(make_image_folder(tmp_path / "images"), tmp_path / "b", "--dry-run", "--budget.images=400")
    assert "GMACs an image at 32 px" in capsys.readouterr().out
