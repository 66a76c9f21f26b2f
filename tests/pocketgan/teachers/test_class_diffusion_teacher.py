"""A diffusion model of our own as the teacher: from its training to pairs."""

import json
import shutil

import pytest
import torch
from tiny import CONFIGS, TINY_CONFIGS
from tiny_dit import make_class_folders
from tiny_pipeline import make_photos

from pocketgan.cli import main
from pocketgan.teachers import ClassDiffusionTeacher


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    images = make_class_folders(folder / "images")
    config = TINY_CONFIGS / "diffusion_training" / "patch_diffusion.yaml"
    main(["fit", f"-c={config}", f"--data.root={images}", f"--trainer.default_root_dir={folder / 'run'}"])
    return folder / "run"


def test_an_edit_depends_on_its_photo_class_and_seed_alone(run):
    teacher = ClassDiffusionTeacher(run / "pipeline", steps=5)
    assert list(teacher.concepts) == ["china", "flower", "third"]
    photos = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = teacher.edit(photos, "flower", [5, 6, 7])
    assert together.shape == photos.shape
    assert torch.equal(teacher.edit(photos[1:2], "flower", [6]), together[1:2])
    assert not torch.equal(teacher.edit(photos[1:2], "flower", [7]), together[1:2])
    assert not torch.equal(teacher.edit(photos[1:2], "third", [6]), together[1:2])
    assert teacher.edit(photos[:0], "flower", []).shape == (0, 3, 32, 32)


def test_concepts_can_be_file_names(run, tmp_path):
    shutil.copytree(run / "pipeline", tmp_path / "pipeline")
    index = tmp_path / "pipeline" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "classes": ["golden retriever", "b&w", "c"]}))
    teacher = ClassDiffusionTeacher(tmp_path / "pipeline", steps=2)
    assert teacher.concepts == {"golden_retriever": "golden retriever", "b_w": "b&w", "c": "c"}
    assert teacher.edit(torch.zeros(1, 3, 32, 32), "golden retriever", [0]).shape == (1, 3, 32, 32)


def test_a_model_without_classes_is_refused(run, tmp_path):
    shutil.copytree(run / "pipeline", tmp_path / "pipeline")
    config = tmp_path / "pipeline" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_class_embeds": None}))
    with pytest.raises(ValueError, match=r"trained without classes and would make the same edit for each"):
        ClassDiffusionTeacher(tmp_path / "pipeline")


def test_what_changes_a_pixel_is_in_its_settings(run):
    settings = ClassDiffusionTeacher(run / "pipeline", strength=0.5, steps=10).settings
    assert (settings["strength"], settings["steps"], settings["pipeline"]) == (0.5, 10, "ClassPipeline")
    teacher = ClassDiffusionTeacher(run / "pipeline")
    with torch.no_grad():
        next(teacher.networks.parameters()).add_(1)
    assert teacher.settings["weights_sha256"] != settings["weights_sha256"]


def test_pairs_by_the_shipped_yaml(run, tmp_path):
    pairs = tmp_path / "pairs"
    words = [
        "predict", f"-c={CONFIGS / 'synthesize' / 'class_diffusion_teacher.yaml'}",
        f"--model.teacher.pipeline={run / 'pipeline'}", "--model.teacher.steps=4",
        f"--data.root={make_photos(tmp_path / 'photos', 2, 80)}", "--data.size=32",
        f"--trainer.default_root_dir={pairs}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        f"--trainer.callbacks=[{{class_path: PairWriter, init_args: {{root: {pairs}}}}}]",
    ]  # fmt: skip
    main(words)
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    assert sorted(row["concept"] for row in rows) == ["china", "china", "flower", "flower", "third", "third"]


def test_bad_input_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"strength is 0\.1 of 5 steps"):
        ClassDiffusionTeacher(run / "pipeline", strength=0.1, steps=5)
    with pytest.raises(FileNotFoundError, match="give RUN/pipeline"):
        ClassDiffusionTeacher(tmp_path)
    teacher = ClassDiffusionTeacher(run / "pipeline")
    with pytest.raises(ValueError, match=r"photos are 16×48, the model edits 32×32; set data\.size to 32"):
        teacher.edit(torch.zeros(1, 3, 16, 48), "flower", [0])
    with pytest.raises(ValueError, match="knows no class 'rose'; its classes are china, flower, third"):
        teacher.edit(torch.zeros(1, 3, 32, 32), "rose", [0])
