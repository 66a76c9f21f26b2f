"""``pocketgan export``: bundles, the gate, int8, packs, refusals."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from tiny import fit_base, real_photos

import pocketgan
from pocketgan import device_export
from pocketgan.cli import main
from pocketgan.device_export import Limit
from pocketgan.images import to_image


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    """The adapter in three precisions."""
    out = tmp_path_factory.mktemp("bundle")
    for precision in ("fp32", "fp16"):
        main(["export", str(trained["adapter"]), f"--out={out}", f"--precision={precision}", "--photo_licence=CC0"])
    with pytest.warns(UserWarning, match="int8 is calibrated on 8 photos alone; with 20 or more"):
        main(["export", str(trained["adapter"]), f"--out={out}", "--precision=int8", "--photo_licence=CC0"])
    return out


def figures_of(bundle, name):
    return json.loads((bundle / f"{name}.json").read_text())


def test_a_bundle_holds_models_figures_card_and_digests(bundle):
    models = ["sepia.fp16.onnx", "sepia.int8.onnx", "sepia.onnx"]
    others = ["SHA256SUMS", "model_card.md", *(f"{name}.json" for name in models)]
    assert sorted(file.name for file in bundle.iterdir()) == sorted([*models, *others])
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True, check=True)
    assert checked.stdout.count(": OK") == 7
    card = (bundle / "model_card.md").read_text()
    for name in models:
        assert f"| {name} | onnx | " in card
        assert f"- {name}: `{figures_of(bundle, name)['sha256'][name]}`" in card
    assert "- sepia: make it sepia" in card
    assert "Licence of the photos: CC0" in card
    assert "Teacher: analytic (not recorded)" in card
    assert "torch 2." in card


def test_figures_are_of_the_file(bundle, trained):
    for name, smallest_psnr in (("sepia.onnx", 80), ("sepia.fp16.onnx", 45), ("sepia.int8.onnx", 28)):
        figures = figures_of(bundle, name)
        assert figures["bytes"] == (bundle / name).stat().st_size
        assert figures["psnr_db"] > smallest_psnr
        assert 0 < figures["median_ms"] <= figures["p95_ms"]
        assert figures["peak_memory_mib"] > 0
        assert figures["photos"] == 20
        assert figures["pairs"] == 2
        assert figures["l1_after"] == pytest.approx(figures["l1_before"], rel=0.02)
    assert figures_of(bundle, "sepia.onnx")["l1_before"] == pytest.approx(
        figures_of(bundle, "sepia.onnx")["l1_after"], abs=1e-5
    )
    assert figures_of(bundle, "sepia.int8.onnx")["bytes"] < 0.6 * figures_of(bundle, "sepia.onnx")["bytes"]
    assert len(figures_of(bundle, "sepia.int8.onnx")["sensitivity"]) == 22
    assert figures_of(bundle, "sepia.onnx")["lint"][-1]["operation"] == "GroupNormalization"


def test_a_damaged_file_is_named_by_its_digest(bundle, tmp_path):
    copied = shutil.copytree(bundle, tmp_path / "copy")
    content = bytearray((copied / "sepia.onnx").read_bytes())
    content[-100] ^= 1
    (copied / "sepia.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"sepia\.onnx is damaged: its sha256 is [0-9a-f]{64}, but [0-9a-f]{64} was"):
        pocketgan.load(copied / "sepia.onnx")
    pocketgan.load(copied / "sepia.int8.onnx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gate_keeps_nothing_that_differs(trained, tmp_path, monkeypatch, precision):
    monkeypatch.setitem(device_export.LIMITS, precision, Limit(0.0, 200))
    with pytest.raises(SystemExit, match=rf"differs from PyTorch by .* where {precision} may by .*; it was not kept"):
        main(["export", str(trained["adapter"]), f"--out={tmp_path / 'out'}", f"--precision={precision}"])
    assert list((tmp_path / "out").iterdir()) == []


def test_the_gate_looks_at_the_task(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(device_export, "l1_to_edits", iter([0.2, 0.21]).__next__.__call__ and (lambda *_: next(values)))
    values = iter([0.2, 0.21])
    with pytest.raises(
        SystemExit, match=r"5\.0% worse than PyTorch in its L1 .* \(0\.2000 to 0\.2100 on 2 unseen pairs\)"
    ):
        main(["export", str(trained["adapter"]), f"--out={tmp_path / 'out'}"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_whose_pairs_are_gone_is_exported_without_their_figures(trained, tmp_path):
    run = shutil.copytree(trained["base"], tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["root"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match="the L1 to the teacher's edits is not measured: .*gone"):
        main(["export", str(run), f"--out={tmp_path / 'out'}"])
    assert figures_of(tmp_path / "out", "inverted.onnx")["l1_before"] is None
    with (
        pytest.warns(UserWarning, match="not measured"),
        pytest.raises(SystemExit, match="the run's pair set is not at hand; give --calibration FOLDER"),
    ):
        main(["export", str(run), f"--out={tmp_path / 'out'}", "--precision=int8"])
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, photo in enumerate(real_photos(20, 64)):
        to_image(photo).save(photos / f"{index}.png")
    with pytest.warns(UserWarning, match="not measured"):
        main(["export", str(run), f"--out={tmp_path / 'out'}", "--precision=int8", f"--calibration={photos}"])
    assert figures_of(tmp_path / "out", "inverted.int8.onnx")["calibration_photos"] == 20


def test_8_bit_pictures_and_one_size(trained, tmp_path):
    main(["export", str(trained["adapter"]), f"--out={tmp_path}", "--pixels=uint8", "--fixed_size"])
    model = pocketgan.load(tmp_path / "sepia.onnx")
    picture = to_image(real_photos(1, 96)[0]).resize((100, 80))
    edit, wanted = (
        np.asarray(loaded.edit(picture)).astype(int) for loaded in (model, pocketgan.load(trained["adapter"]))
    )
    assert edit.shape == wanted.shape
    assert model.editor().fixed_size == 32


def test_a_pack_holds_a_base_and_its_adapters(trained, tmp_path, capsys):
    out = tmp_path / "pack"
    main(["export", str(trained["base"]), f"--adapters={trained['adapter']}", f"--out={out}", "--threads=1"])
    assert "sepia.safetensors" in capsys.readouterr().out
    model = pocketgan.load(out)
    assert model.concepts == ["inverted", "sepia"]
    picture = to_image(real_photos(1, 64)[0])
    for concept, run in (("inverted", "base"), ("sepia", "adapter")):
        edit, wanted = (
            np.asarray(loaded.edit(picture, concept)).astype(int) for loaded in (model, pocketgan.load(trained[run]))
        )
        assert np.abs(edit - wanted).max() <= 1
        figures = figures_of(out, f"{concept}.safetensors")
        assert figures["prompt"] == f"make it {concept}"
        assert figures["l1_after"] == pytest.approx(figures["l1_before"], rel=0.02)
    assert "| sepia.safetensors | onnx pack |" in (out / "model_card.md").read_text()
    (tmp_path / "photo.png").write_bytes(b"")
    picture.save(tmp_path / "photo.png")
    main(["edit", str(tmp_path / "photo.png"), f"--model={out}", "--concept=sepia", f"--out={tmp_path / 'edited'}"])
    assert (tmp_path / "edited" / "photo.png").is_file()


def test_refusals_come_before_anything_is_written(trained, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    run = str(trained["base"])
    with pytest.raises(SystemExit, match="a pack is for onnx or web in fp32, not for onnx in int8"):
        main(["export", run, f"--adapters={trained['adapter']}", "--precision=int8", out])
    with pytest.raises(SystemExit, match="give --concept or --adapters, not both"):
        main(["export", run, f"--adapters={trained['adapter']}", "--concept=sepia", out])
    with pytest.raises(SystemExit, match="size 100 is not divisible by 8; use 96 or 104"):
        main(["export", run, "--size=100", out])
    other = fit_base(trained["pairs"], tmp_path / "other", "--data.concepts=[inverted]", "--seed_everything=7")
    with pytest.raises(SystemExit, match=r"trained on another base \(weights [0-9a-f]{12}…, here [0-9a-f]{12}…\)"):
        main(["export", str(other), f"--adapters={trained['adapter']}", out])
    untrained = shutil.copytree(trained["base"], tmp_path / "untrained")
    shutil.rmtree(untrained / "checkpoints")
    with pytest.raises(SystemExit, match=r"has no checkpoint last\.ckpt .*; let its `fit` reach one"):
        main(["export", str(untrained), out])
    assert not (tmp_path / "out").exists()
