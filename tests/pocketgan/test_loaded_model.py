"""The Python API: one way to edit by a run, an adapter and an exported file."""

import numpy as np
import pytest
from PIL import ExifTags, Image
from tiny import real_photos

import pocketgan
from pocketgan.cli import main
from pocketgan.images import to_image


@pytest.fixture(scope="module")
def photo():
    return to_image(real_photos(1, 64)[0])


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    main(["export", str(trained["adapter"]), f"--out={out}"])
    return {"run": trained["adapter"], "adapter": trained["adapter"] / "adapter", "file": out / "sepia.onnx"}


def values(picture):
    return np.asarray(picture).astype(int)


def test_a_run_its_adapter_and_its_file_edit_alike(models, photo):
    edits = {name: pocketgan.load(path).edit(photo) for name, path in models.items()}
    assert edits["run"].size == photo.size
    assert edits["run"].tobytes() == edits["adapter"].tobytes()
    assert np.abs(values(edits["run"]) - values(edits["file"])).max() <= 1
    assert edits["run"].tobytes() != photo.tobytes()


def test_strength_goes_from_the_photo_to_the_edit(models, photo):
    model = pocketgan.load(str(models["file"]))
    none, half, whole = (model.edit(photo, "sepia", strength) for strength in (0, 0.5, 1))
    assert none.tobytes() == photo.tobytes()
    assert whole.tobytes() == model.edit(photo).tobytes()
    assert np.abs(2 * values(half) - values(photo) - values(whole)).max() <= 2


def test_pictures_of_other_kinds(models, photo):
    model = pocketgan.load(models["file"])
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    assert model.edit(clear).getchannel("A").tobytes() == clear.getchannel("A").tobytes()
    deep = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    deep.info["transparency"] = 0
    assert model.edit(deep).mode == "RGB"
    turned = photo.crop((0, 0, 64, 40))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    assert model.edit(turned).size == (40, 64)
    assert model.edit(photo.convert("L")).mode == "RGB"


def test_a_base_knows_several_concepts(trained, photo):
    model = pocketgan.load(trained["base"])
    assert model.concepts == ["inverted"]
    assert model.editor("inverted") is model.editor()
    with pytest.raises(ValueError, match="does not know the concept sepia; choose one with --concept: inverted"):
        model.edit(photo, "sepia")


def test_what_is_refused(models, photo, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give a run folder or an exported file"):
        pocketgan.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        pocketgan.load(tmp_path)
    with pytest.raises(
        ValueError, match="is exported, and exported models run on the CPU; load its run for device cuda"
    ):
        pocketgan.load(models["file"], device="cuda")
    with pytest.raises(ValueError, match=r"strength is 1.5; give a share from 0, the photo, to 1"):
        pocketgan.load(models["file"]).edit(photo, strength=1.5)
    with pytest.raises(ValueError, match="both must be at least 32"):
        pocketgan.load(models["file"]).edit(photo.resize((10, 10)))
