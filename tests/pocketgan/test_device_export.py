"""``pocketgan export``: bundles, the gate, int8, packs, refusals."""

import errno
import json
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from tiny import fit_base, real_photos
from web_runtime import runtime_at_hand

import pocketgan
from pocketgan import device_export, device_gate
from pocketgan.cli import main
from pocketgan.device_gate import Limit
from pocketgan.exporters import EXPORTERS
from pocketgan.images import to_image

pytestmark = pytest.mark.extended

FEW_PHOTOS = r"int8 is calibrated on 8 photos alone; with 20 or more"


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    """The adapter in three precisions."""
    out = tmp_path_factory.mktemp("bundle")
    for precision in ("fp32", "fp16"):
        main(["export", str(trained["adapter"]), f"--out={out}", f"--precision={precision}", "--photo_licence=CC0"])
    with pytest.warns(UserWarning, match=FEW_PHOTOS):
        main(["export", str(trained["adapter"]), f"--out={out}", "--precision=int8", "--photo_licence=CC0"])
    return out


def figures_of(bundle, name):
    return json.loads((bundle / f"{name}.json").read_text())


def photo_folder(folder, count, size=64):
    folder.mkdir()
    for index, photo in enumerate(real_photos(count, size)):
        to_image(photo).save(folder / f"{index}.png")
    return folder


@pytest.fixture(params=[target for target in EXPORTERS if target != "onnx"])
def target(request):
    if request.param == "web" and runtime_at_hand() is None:
        pytest.skip("no onnxruntime-web on this machine")
    return request.param


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.filterwarnings(f"ignore:{FEW_PHOTOS}")
def test_every_target_passes_its_gate_or_is_converted(trained, tmp_path, capsys, target, precision):
    main(["export", str(trained["adapter"]), f"--out={tmp_path}", f"--target={target}", f"--precision={precision}"])
    said, exporter = capsys.readouterr().out, EXPORTERS[target]()
    (model,) = (path for path in tmp_path.iterdir() if path.suffix == exporter.suffix)
    assert model.name.startswith("sepia")
    figures = figures_of(tmp_path, model.name)
    assert figures["target"] == target
    assert figures["precision"] == precision
    assert figures["bytes"] > 10_000
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=False).returncode == 0
    if not exporter.runs_here():
        assert f"converted, but not run: {target} does not run on this system" in said
        assert figures["max_difference"] is None
        return
    assert figures["photos"] == 20
    assert figures["psnr_db"] > {"fp32": 45, "int8": 28}[precision]
    assert figures["l1_after"] <= 1.02 * figures["l1_before"]
    assert 0 < figures["median_ms"] <= figures["p95_ms"]
    assert 0 < figures["peak_memory_mib"] < 150
    picture = to_image(real_photos(1, 96)[0]).resize((100, 80))
    edit, wanted = (
        np.asarray(loaded.edit(picture)).astype(int)
        for loaded in (pocketgan.load(model), pocketgan.load(trained["adapter"]))
    )
    if pocketgan.load(model).editor().fixed_size is None:
        assert np.abs(edit - wanted).mean() < {"fp32": 0.5, "int8": 6}[precision]
    assert edit.shape == wanted.shape


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
    assert "sepia.fp16.onnx, sepia.int8.onnx, sepia.onnx:" in card
    assert "Licence of the photos: CC0" in card
    assert "Teacher: analytic (not recorded)" in card
    assert "- torch: 2." in card
    assert "- onnxruntime: 1." in card


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


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp32"), ("onnx", "int8"), ("litert", "fp16")])
@pytest.mark.filterwarnings(f"ignore:{FEW_PHOTOS}")
def test_the_gate_keeps_nothing_that_differs(trained, tmp_path, monkeypatch, target, precision):
    monkeypatch.setitem(device_gate.LIMITS, precision, Limit(0.0, 200))
    words = [f"--target={target}", f"--precision={precision}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match=rf"differs from PyTorch by .* where {precision} may by .*; it was not kept"):
        main(["export", str(trained["adapter"]), *words])
    assert list(tmp_path.iterdir()) == []


def test_the_gate_looks_at_the_task(trained, tmp_path, monkeypatch):
    values = iter([0.2, 0.21])
    monkeypatch.setattr(device_gate, "l1_to_edits", lambda *_: next(values))
    with pytest.raises(
        SystemExit, match=r"5\.0% worse than PyTorch in its L1 .* \(0\.2000 to 0\.2100 on 2 unseen pairs\)"
    ) as refusal:
        main(["export", str(trained["adapter"]), f"--out={tmp_path / 'out'}"])
    assert "fine_tune" not in str(refusal.value), "fp32 is not fine-tuned"
    assert list(tmp_path.iterdir()) == []


def test_int8_is_fine_tuned_and_kept_where_that_helps(trained, tmp_path):
    words = ["--precision=int8", "--fine_tune_images=4", f"--out={tmp_path}"]
    with pytest.warns(UserWarning, match=FEW_PHOTOS):
        main(["export", str(trained["adapter"]), *words])
    tuned = figures_of(tmp_path, "sepia.int8.onnx")["fine_tuned"]
    assert tuned["images"] == 4
    assert tuned["int8_l1_before"] > 0
    assert tuned["kept"] == (tuned["int8_l1_after"] < tuned["int8_l1_before"])
    assert "fine-tuned on 4 images" in (tmp_path / "model_card.md").read_text()


def test_core_ml_rounds_weights_alone(trained, tmp_path):
    run = shutil.copytree(trained["adapter"], tmp_path / "run")
    main(["export", str(run), f"--out={tmp_path / 'out'}", "--target=coreml", "--precision=int8"])
    assert figures_of(tmp_path / "out", "sepia.int8.mlpackage")["calibration_photos"] == 0
    assert "- sepia.int8.mlpackage: weights alone; not rounded are" in (tmp_path / "out" / "model_card.md").read_text()


def test_what_is_damaged_or_leads_elsewhere_is_not_touched(bundle, trained, tmp_path):
    copied = shutil.copytree(bundle, tmp_path / "copy")
    (copied / "sepia.fp16.onnx.json").write_text('{"concept"')
    with pytest.warns(UserWarning, match=r"model_card\.md lacks sepia\.fp16\.onnx: .* is damaged"):
        main(["export", str(trained["adapter"]), f"--out={copied}", "--opset=20"])
    assert "| sepia.int8.onnx |" in (copied / "model_card.md").read_text()
    main(["export", str(trained["base"]), "--adapters=", f"--out={tmp_path / 'pack'}"])
    listing = tmp_path / "pack" / "pack.json"
    (tmp_path / "mine.txt").write_text("not to be removed")
    pack = json.loads(listing.read_text())
    listing.write_text(json.dumps({**pack, "sha256": {**pack["sha256"], "../mine.txt": "0" * 64}}))
    with pytest.raises(SystemExit, match=r"pack\.json is damaged"):
        main(["export", str(trained["base"]), "--adapters=", f"--out={tmp_path / 'pack'}"])
    assert (tmp_path / "mine.txt").is_file()


def test_models_of_other_origins_keep_their_licences(trained, tmp_path):
    main(["export", str(trained["adapter"]), f"--out={tmp_path}", "--photo_licence=CC-BY-NC"])
    main(["export", str(trained["base"]), f"--out={tmp_path}", "--photo_licence=CC0"])
    card = (tmp_path / "model_card.md").read_text()
    assert card.index("\ninverted.onnx:\n") < card.index("Licence of the photos: CC0") < card.index("\nsepia.onnx:\n")
    assert card.index("\nsepia.onnx:\n") < card.index("Licence of the photos: CC-BY-NC")


def test_kinds_of_one_concept_lie_side_by_side(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("no model")
    for words in ([], ["--pixels=uint8"], ["--opset=20"]):
        main(["export", str(trained["adapter"]), f"--out={tmp_path}", *words])
    models = ["sepia.onnx", "sepia.uint8.onnx"]
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == models
    import onnx

    assert onnx.load(tmp_path / "sepia.onnx").opset_import[0].version == 20
    for name in models:
        pocketgan.load(tmp_path / name)
    listed = (tmp_path / "SHA256SUMS").read_text()
    assert "mine.txt" not in listed, "only what the command wrote"
    assert listed.count(".onnx\n") == 2


def test_a_full_disk_in_the_middle_leaves_the_bundle_as_it_was(bundle, trained, tmp_path, monkeypatch):
    copied = shutil.copytree(bundle, tmp_path / "copy")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(device_export, "write_figures", fail)
    with pytest.raises((OSError, SystemExit), match="disk is full"):
        main(["export", str(trained["adapter"]), f"--out={copied}", "--opset=20"])
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }
    assert list(tmp_path.iterdir()) == [copied]


def test_few_photos_to_check_on_are_warned_of(trained, tmp_path):
    photos = photo_folder(tmp_path / "photos", 3)
    with pytest.warns(UserWarning, match="checked on 3 photos alone; give --photos a folder with 20"):
        main(["export", str(trained["adapter"]), f"--out={tmp_path / 'out'}", f"--photos={photos}"])
    assert figures_of(tmp_path / "out", "sepia.onnx")["photos"] == 3


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
    photos = photo_folder(tmp_path / "photos", 20)
    with pytest.warns(UserWarning, match="not measured"):
        main(["export", str(run), f"--out={tmp_path / 'out'}", "--precision=int8", f"--calibration={photos}"])
    assert figures_of(tmp_path / "out", "inverted.int8.onnx")["calibration_photos"] == 20


def test_8_bit_pictures_and_one_size(trained, tmp_path):
    main(["export", str(trained["adapter"]), f"--out={tmp_path}", "--pixels=uint8", "--fixed_size"])
    model = pocketgan.load(tmp_path / "sepia.uint8.onnx")
    assert model.editor().fixed_size == 32
    picture = to_image(real_photos(1, 32)[0])
    edit, wanted = (
        np.asarray(loaded.edit(picture)).astype(int) for loaded in (model, pocketgan.load(trained["adapter"]))
    )
    assert np.abs(edit - wanted).max() <= 1
    assert model.edit(picture.resize((100, 80))).size == (100, 80)


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
    picture.save(tmp_path / "photo.png")
    main(["edit", str(tmp_path / "photo.png"), f"--model={out}", "--concept=sepia", f"--out={tmp_path / 'edited'}"])
    assert (tmp_path / "edited" / "photo.png").is_file()
    # a smaller pack in its place leaves nothing of the adapter
    main(["export", str(trained["base"]), "--adapters=", f"--out={out}"])
    assert pocketgan.load(out).concepts == ["inverted"]
    assert not list(out.glob("sepia*"))
    assert "sepia" not in (out / "model_card.md").read_text() + (out / "SHA256SUMS").read_text()


def test_refusals_come_before_anything_is_written(trained, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    run, empty = str(trained["base"]), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit, match="a pack is for onnx or web in fp32, not for onnx in int8"):
        main(["export", run, f"--adapters={trained['adapter']}", "--precision=int8", out])
    with pytest.raises(SystemExit, match="a pack is between 8-bit pictures; leave --pixels out"):
        main(["export", run, f"--adapters={trained['adapter']}", "--pixels=float32", out])
    for words, message in (
        (["--opset=11"], "opset is 11, but PyTorch exports 18 to 25"),
        (["--opset=26"], "opset is 26, but PyTorch exports 18 to 25"),
        (["--opset=23", "--target=web"], "opset is 23, but the page's WebGPU has operators up to 22"),
        (["--opset=20", "--target=litert"], "opset is for onnx and web, not for litert"),
        (["--fine_tune_images=40"], "fine_tune_images are for int8, not for fp32"),
        (["--fine_tune_images=-1", "--precision=int8"], "fine_tune_images is -1"),
        (["--calibration=photos", "--precision=fp16"], "calibration are for int8, not for fp16"),
        (["--threads=0"], "threads 0; give 0 or more, and 1 or more"),
        (["--largest_l1_increase=-0.1"], r"largest_l1_increase is -0\.1 and size None; give a share of 0 or more"),
        (["--size=0"], "size 0; give a share of 0 or more, and pixels"),
        (["--target=coreml", "--precision=int8", "--fine_tune_images=4"], "coreml rounds weights alone"),
        (["--precision=int8", f"--calibration={empty}"], r"no images in .*empty or the folders below it"),
        ([f"--out={__file__}"], "is a file; give a folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["export", run, out, *words])
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
