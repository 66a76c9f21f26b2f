"""A tiny Stable Diffusion pipeline as the teacher, plain and personalised."""

import json

import pytest
import torch
from tiny import CONFIGS
from tiny_dit import make_pipeline as make_dit_pipeline
from tiny_pipeline import make_photos, make_pipeline, open_pipeline, shaken

from pocketgan.cli import main
from pocketgan.personalization import CustomDiffusion, DreamBoothLoRA, TextualInversion
from pocketgan.teachers import DiffusersTeacher

PROMPTS = {"ring": "a photo of a <ring>"}
QUICK = {"strength": 0.5, "steps": 4, "guidance": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline")


@pytest.fixture(scope="module")
def personalization(folder, tmp_path_factory):
    return stored(folder, TextualInversion("<ring>", "a"), tmp_path_factory.mktemp("stored"))


def stored(folder, method, out):
    method.prepare(open_pipeline(folder))
    shaken(method.trainable_parameters())
    method.save(out)
    return out


@pytest.fixture
def photos():
    return torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_edit_depends_on_its_photo_and_seed_alone(folder, photos):
    teacher = DiffusersTeacher(str(folder), PROMPTS, **QUICK)
    together = teacher.edit(photos, PROMPTS["ring"], [5, 6, 7])
    assert together.shape == photos.shape
    assert together.abs().max() <= 1
    assert torch.equal(teacher.edit(photos[1:2], PROMPTS["ring"], [6]), together[1:2])
    assert not torch.equal(teacher.edit(photos[1:2], PROMPTS["ring"], [7]), together[1:2])
    assert teacher.edit(photos[:0], PROMPTS["ring"], []).shape == (0, 3, 32, 48)


def test_strength_says_how_much_of_the_photo_is_kept(folder):
    photo = torch.full((1, 3, 32, 32), 0.5)
    weak = DiffusersTeacher(str(folder), PROMPTS, strength=0.1, steps=10)
    strong = DiffusersTeacher(str(folder), PROMPTS, strength=1.0, steps=10)
    # of random weights the VAE keeps no picture: compare with what it makes of the photo alone
    pipeline = open_pipeline(folder)
    with torch.no_grad():
        kept = pipeline.vae.decode(pipeline.vae.encode(photo).latent_dist.mean).sample.clamp(-1, 1)
    distances = [(teacher.edit(photo, "a", [0]) - kept).abs().mean() for teacher in (weak, strong)]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    "method",
    [TextualInversion("<ring>", "a"), DreamBoothLoRA("<ring>", rank=2), CustomDiffusion("<ring>", "a")],
    ids=lambda method: type(method).__name__,
)
def test_a_personalization_changes_edits_and_the_sets_identity(folder, tmp_path, photos, method):
    plain = DiffusersTeacher(str(folder), PROMPTS, **QUICK)
    taught = DiffusersTeacher(str(folder), PROMPTS, stored(folder, method, tmp_path), **QUICK)
    edits = [teacher.edit(photos[:1], PROMPTS["ring"], [0]) for teacher in (plain, taught)]
    assert not torch.equal(*edits)
    settings = [teacher.settings for teacher in (plain, taught)]
    assert settings[0] != settings[1]
    assert {**settings[0], "weights_sha256": 0} == {**settings[1], "weights_sha256": 0}
    json.dumps(settings)
    assert str(tmp_path) not in str(settings)


def test_predict_writes_a_pair_set(folder, personalization, tmp_path):
    photos = make_photos(tmp_path / "photos", 3, 80)
    words = [
        "predict",
        f"-c={CONFIGS / 'synthesize' / 'personalised_teacher.yaml'}",
        f"--model.teacher.pipeline={folder}",
        f"--model.teacher.personalization={personalization}",
        "--model.teacher.prompts={ring: a photo of a <ring>}",
        "--model.teacher.steps=4",
        "--model.size=32",
        f"--data.root={photos}",
        "--data.size=64",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    for batch in (1, 2):
        pairs = tmp_path / str(batch)
        writer = f"--trainer.callbacks=[{{class_path: PairWriter, init_args: {{root: {pairs}}}}}]"
        main([*words, f"--data.batch_size={batch}", f"--trainer.default_root_dir={pairs}", writer])
    lines = [(tmp_path / name / "pairs.jsonl").read_text().splitlines() for name in ("1", "2")]
    assert len(lines[0]) == 3
    assert sorted(lines[0]) == sorted(lines[1])
    row = json.loads(lines[0][0])
    assert (row["concept"], row["prompt"]) == ("ring", "a photo of a <ring>")


def test_bad_input_is_refused(folder, personalization, tmp_path, photos, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when the package was imported
    with pytest.raises(ValueError, match="strength is 0"):
        DiffusersTeacher(str(folder), PROMPTS, strength=0)
    with pytest.raises(ValueError, match=r"strength is 0\.1 of 5 steps"):
        DiffusersTeacher(str(folder), PROMPTS, strength=0.1, steps=5)
    with pytest.raises(ValueError, match="prompts is empty"):
        DiffusersTeacher(str(folder), {})
    with pytest.raises(FileNotFoundError, match=r"is no local folder with a model_index\.json"):
        DiffusersTeacher("someone/something", PROMPTS)
    with pytest.raises(ValueError, match=r"holds a DiTPipeline, of which diffusers has no image-to-image form"):
        DiffusersTeacher(str(make_dit_pipeline(tmp_path / "dit")), PROMPTS)
    with pytest.raises(ValueError, match=r"taught the token <ring>, which none of the prompts holds \(a photo\)"):
        DiffusersTeacher(str(folder), {"ring": "a photo"}, personalization)
    with pytest.raises(FileNotFoundError, match="holds none of learned_embeds"):
        DiffusersTeacher(str(folder), PROMPTS, tmp_path)
    with pytest.raises(ValueError, match="photos are 30×48, the pipeline's step is 4"):
        DiffusersTeacher(str(folder), PROMPTS, **QUICK).edit(photos[:, :, :30], "a", [0, 1, 2])
