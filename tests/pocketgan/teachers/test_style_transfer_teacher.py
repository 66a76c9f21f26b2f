import copy
import importlib.util
import json
import pickle
import subprocess
import sys

import pytest
import torch
from PIL import Image

from pocketgan.files import sha256_of
from pocketgan.teachers import StyleTransferTeacher
from pocketgan.teachers.style_transfer_teacher import STYLE_PROMPTS


@pytest.fixture
def photos():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def painting(tmp_path):
    path = tmp_path / "Red Fuji, 1831.png"
    Image.radial_gradient("L").convert("RGB").save(path)
    return path


def edit(teacher, photos, concept):
    return teacher.edit(photos, teacher.concepts[concept], [0] * len(photos))


def test_all_styles_are_offered_by_default():
    teacher = StyleTransferTeacher()
    assert list(teacher.concepts)[::25] == ["style_00", "style_25"]
    assert len(set(teacher.concepts.values())) == len(STYLE_PROMPTS) == 26


def test_edits_keep_shape_and_range_and_differ_by_style(photos):
    teacher = StyleTransferTeacher([19, 11], size=64)
    edits = [edit(teacher, photos, concept) for concept in ("style_19", "style_11")]
    for edited in edits:
        assert edited.shape == photos.shape
        assert edited.min() >= -1
        assert edited.max() <= 1
    assert (edits[0] - edits[1]).abs().mean() > 0.1
    assert (edits[0] - photos).abs().mean() > 0.1


def test_an_edit_depends_on_neither_batch_nor_threads_nor_seeds(photos):
    teacher = StyleTransferTeacher(19, size=64, threads=1)
    together = edit(teacher, photos, "style_19")
    alone = StyleTransferTeacher(19, size=64, threads=2).edit(photos[1:], STYLE_PROMPTS[19], [5])
    assert torch.equal(together[1:], alone)


def test_odd_and_narrow_photos_keep_their_size():
    teacher = StyleTransferTeacher(19, size=64)
    assert edit(teacher, torch.zeros(1, 3, 33, 101), "style_19").shape == (1, 3, 33, 101)


def test_a_painting_becomes_a_style(photos, painting):
    teacher = StyleTransferTeacher([painting, 3])
    name = "Red_Fuji_1831"
    assert teacher.concepts == {
        name: "a painting in the style of Red Fuji 1831",
        "style_03": STYLE_PROMPTS[3],
    }
    edited = edit(teacher, photos, name)
    assert edited.shape == photos.shape
    assert (edited - photos).abs().mean() > 0.1
    settings = teacher.settings["prompts"][teacher.concepts[name]]
    assert settings == {"painting": name, "painting_sha256": sha256_of(painting), "size": 384}
    assert str(painting.parent) not in json.dumps(teacher.settings)


def test_settings_of_the_teacher_do_not_depend_on_the_choice_of_styles():
    one, other = StyleTransferTeacher(1).settings, StyleTransferTeacher([1, 2]).settings
    assert one.pop("prompts") != other.pop("prompts")
    assert one == other


def test_a_teacher_can_be_copied_and_pickled_after_use(photos):
    teacher = StyleTransferTeacher(19, size=64)
    expected = edit(teacher, photos[:1], "style_19")
    for twin in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert torch.equal(edit(twin, photos[:1], "style_19"), expected)


def test_misfits_are_refused(tmp_path, painting):
    with pytest.raises(ValueError, match="style 26 does not exist; there are styles 0 to 25"):
        StyleTransferTeacher(26)
    with pytest.raises(ValueError, match="size 250 is not usable"):
        StyleTransferTeacher(0, size=250)
    with pytest.raises(ValueError, match="list of styles is empty"):
        StyleTransferTeacher([])
    with pytest.raises(ValueError, match="two styles come to the concept name 'style_03'"):
        StyleTransferTeacher([3, 3])
    with pytest.raises(FileNotFoundError, match=r"painting .*missing\.png does not exist"):
        StyleTransferTeacher(tmp_path / "missing.png")
    painting.write_text("no picture")
    with pytest.raises(ValueError, match="not an image"):
        StyleTransferTeacher(painting)
    with pytest.raises(ValueError, match="no style has the prompt 'blue'"):
        StyleTransferTeacher(0).edit(torch.zeros(1, 3, 64, 64), "blue", [0])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pocketgan\[demo\]'"):
        StyleTransferTeacher()


def test_importing_teachers_does_not_import_onnxruntime():
    code = "import sys, pocketgan.teachers; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
