"""The quickstart: made small in the default suite, whole when marked slow."""

import json
from pathlib import Path

import pytest
from PIL import Image

from datamodules import PairedImages
from pocketgan import quickstart
from pocketgan.cli import main
from pocketgan.images import find_images
from pocketgan.report import comparison_sheet, write_report


def small_command(words):
    """The same commands with small budgets."""
    if words[0] == "predict":
        words = [*words, "--model.teacher.size=64", "--data.size=128"]
    if words[0] == "fit":
        words = [*words, "--budget.images=16", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
        words = [*words, "--trainer.enable_progress_bar=false"]
        if "--model.base" in str(words):
            words = [*words, "--early_stopping.window=3", "--early_stopping.every_n_batches=1"]
    main(words)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(quickstart, "CROPS", 24)


@pytest.mark.extended
@pytest.mark.usefixtures("small")
def test_all_stages_and_a_second_start(tmp_path, capsys):
    out = tmp_path / "out"
    seconds = quickstart.run_quickstart(small_command, None, out)
    assert list(seconds) == ["pairs", "base", "adaptation", "test", "export", "edit", "report"]
    printed = capsys.readouterr().out
    for path in (out / "report.html", out / "report.png", out / "edited", out / "export" / "style_04.onnx"):
        assert path.exists()
        assert str(path) in printed
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "kid_lite0" in page
    assert "http" not in page
    unseen, edited = ({file.name for file in find_images(out / name)} for name in ("unseen", "edited"))
    assert unseen == edited
    assert len(unseen) == 6  # 2 of 8 photos, 3 crops each
    assert (out / "adapted" / "adapter" / "adapter_model.safetensors").exists()
    data = PairedImages(out / "pairs", size=128, split=quickstart.BUNDLED_SPLIT)
    data.setup("fit")
    assert {pair.photo.name for pair in data.datasets["test"].pairs} == unseen
    sources = {side: {pair.group for pair in data.datasets[side].pairs} for side in ("train", "test")}
    assert (len(sources["train"]), len(sources["test"])) == (5, 2)
    assert not sources["train"] & sources["test"]
    # a second start finds pairs and runs done
    stamp = (out / "pairs" / "pairs.jsonl").stat().st_mtime_ns
    quickstart.run_quickstart(small_command, None, out)
    assert (out / "pairs" / "pairs.jsonl").stat().st_mtime_ns == stamp


def test_other_files_are_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds other files; choose a new or empty folder with --out"):
        main(["quickstart", f"--out={tmp_path}"])
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_mistyped_folder_claims_nothing(tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        main(["quickstart", f"--out={tmp_path / 'out'}", "--photos=nothing"])
    assert not (tmp_path / "out").exists()


def test_two_photos_are_too_few(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    with pytest.raises(SystemExit, match="holds 2 photos; give at least 3"):
        main(["quickstart", f"--out={tmp_path / 'out'}", f"--photos={tmp_path}"])


def test_other_photos_need_another_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in "abc":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    (out / "quickstart.json").write_text(json.dumps({"photos": None}))
    with pytest.raises(SystemExit, match="holds a quickstart on the bundled photos; choose another --out"):
        main(["quickstart", f"--out={out}", f"--photos={tmp_path}"])


def test_report_escapes_what_it_is_given(tmp_path):
    sheet = comparison_sheet({"photo": [Image.new("RGB", (8, 8), "red")], "edit": [Image.new("RGB", (8, 8))]}, side=16)
    assert sheet.size == (2 * 22 + 6, 26 + 22)
    assert sheet.getpixel((10, 35)) == (255, 0, 0)
    write_report(tmp_path / "r.html", sheet, "<b>", "a & b", {"t": {"x": "1 < 2"}})
    page = Path(tmp_path / "r.html").read_text()
    assert "&lt;b&gt;" in page
    assert "1 &lt; 2" in page


@pytest.mark.slow
def test_quickstart_as_a_user_runs_it(tmp_path):
    main(["quickstart", f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "report.html").exists()
