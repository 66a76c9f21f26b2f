"""The trained editor, and from its edits to a GAN: diffusion teacher, pairs, base."""

import copy
import json
import shutil

import pytest
import torch
from tiny import TINY_CONFIGS, fit_base

from benchmarks.tiny_editor import HELD_OUT, RECIPE, build, open_teacher
from datamodules import SourcePhotos
from datamodules.source_photos import bundled_files
from lightning_modules import load_run
from pocketgan.cli import main

# two styles that are plain to see, from few crops: a quarter of a minute of one core
SMALL = copy.deepcopy(RECIPE)
SMALL["pairs"] = {"styles": [10, 19], "crops_per_photo": 8, "teacher_size": 128}
SMALL["autoencoder"].update(steps=150)
SMALL["unet"].update(channels=[24, 48], steps=100, batch=12)
SMALL["transformer"].update(steps=2, double=1, single=1)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def editor(worlds):
    return build(worlds, "unet", SMALL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The bundled photos: those that the editor saw, and those that it did not see."""
    folder = tmp_path_factory.mktemp("photos")
    for name, file in bundled_files().items():
        place = folder / ("unseen" if name in HELD_OUT else "seen") / name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, place)
    return folder


def test_it_edits_photos_that_it_never_saw_as_its_teacher_does(editor):
    figures = json.loads((editor / "figures.json").read_text())
    assert figures["photos"] >= 8
    for style in ("style_10", "style_19"):
        assert figures[style]["editor_to_teacher_l1"] < 0.7 * figures[style]["photo_to_teacher_l1"]
        assert figures[style]["editor_to_teacher_l1"] < 0.8 * figures[style]["editor_to_other_styles_l1"]


def test_it_is_made_once_and_whole(editor, worlds):
    stamp = (editor / "recipe.json").stat().st_mtime_ns
    assert build(worlds, "unet", SMALL) == editor
    assert (editor / "recipe.json").stat().st_mtime_ns == stamp
    assert {folder.name.rpartition("-")[0] for folder in worlds.iterdir()} >= {"pairs", "autoencoder", "editor_unet"}
    assert not list(worlds.glob("*.building"))


def test_kontext_kind_trains_and_opens(worlds, editor):
    folder = build(worlds, "transformer", SMALL)
    assert (folder / "grid.png").is_file()
    teacher = open_teacher(folder)
    photo = torch.zeros(1, 3, 32, 32)
    assert teacher.edit(photo, "a rust brown and black painting on rough paper", [0]).shape == photo.shape


@pytest.mark.extended
def test_from_a_diffusion_teacher_to_a_gan(editor, photos, tmp_path):
    pairs = tmp_path / "pairs"
    main(
        [
            "predict",
            f"-c={TINY_CONFIGS / 'synthesize' / 'diffusion_editor.yaml'}",
            f"--model.teacher.pipeline={editor / 'pipeline'}",
            f"--data.root={photos / 'seen'}",
            f"--trainer.default_root_dir={pairs}",
        ]
    )
    run = fit_base(
        pairs,
        tmp_path / "run",
        "--data.batch_size=8",
        "--budget.images=800",
        "--trainer.val_check_interval=100",
        "--model.learning_rate_decay=null",
        "--model.ema_halflife_images=100",
    )
    gan, teacher = load_run(run), open_teacher(editor)
    data = SourcePhotos(photos / "unseen", size=32, crops_per_photo=6, batch_size=12, minimum_side=32)
    data.setup("predict")
    unseen = next(iter(data.predict_dataloader()))["photo"]
    assert len(unseen) == 12
    with torch.no_grad():
        for concept, prompt in teacher.concepts.items():
            target = teacher.edit(unseen, prompt, list(range(12)))
            distance = (gan(unseen, [concept]) - target).abs().mean()
            assert distance < 0.7 * (unseen - target).abs().mean()
