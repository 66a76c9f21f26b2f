"""CLIP-s: its rule, what it must not disturb, resume."""

import json

import pytest
import torch
from checkpoints import assert_same, state, weights
from tiny_pipeline import make_clip, make_photos, make_pipeline, personalize

from callbacks import ClipScoreEarlyStopping
from lightning_modules import Personalization
from pocketgan.personalization import ImageEmbedding


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return make_pipeline(folder / "pipeline"), make_photos(folder / "photos"), make_clip(folder / "clip")


def words(clip, **options):
    embedding = {"class_path": "CLIPImageEmbedding", "init_args": {"model": str(clip)}}
    settings = {"embedding": embedding, "every_n_batches": 2, "samples": 3, "steps": 2, "guidance": 2.0, **options}
    return f"--early_stopping={json.dumps({'class_path': 'ClipScoreEarlyStopping', 'init_args': settings})}"


class Flat(ImageEmbedding):
    score_name = "flat"

    def forward(self, images):
        return images.flatten(1)


class Scripted(ClipScoreEarlyStopping):
    """Given scores in turn."""

    def __init__(self, scores, **options):
        super().__init__(Flat(), every_n_batches=1, **options)
        self.scores = iter(scores)

    def _score(self, trainer, module):
        return next(self.scores)


def stop_of(scores, **options):
    callback = Scripted(scores, **options)
    trainer = type("Trainer", (), {"should_stop": False, "is_global_zero": True})()
    module = Personalization.__new__(Personalization)
    torch.nn.Module.__init__(module)
    module.images_seen, module.log = 0, lambda *_: None
    for batch in range(1, len(scores) + 1):
        callback.on_train_batch_end(trainer, module)
        if trainer.should_stop:
            return batch
    return None


def test_the_rule():
    # a rise of no more than the tolerance is none; the third failure in a row is more than a patience of 2
    assert stop_of([0.5, 0.51, 0.519, 0.52, 0.6], tolerance=0.02, patience=2) == 4
    assert stop_of([0.5, 0.51, 0.53, 0.54, 0.55, 0.55, 0.9], tolerance=0.02, patience=2) == 6
    assert stop_of([0.5, 0.6, 0.7, 0.8], tolerance=0.02, patience=0) is None
    assert stop_of([0.5, 0.4], tolerance=0.0, patience=0) == 2


def test_it_stops_a_run_and_leaves_the_training_alone(files, tmp_path, capsys):
    pipeline, photos, clip = files
    stopping = words(clip, tolerance=1.0, patience=1)  # a cosine never rises by 1
    run = personalize("textual_inversion", pipeline, photos, tmp_path / "run", stopping, "--budget.images=40")
    assert weights(run)["images_seen"] == 12  # scores after batches 2, 4 and 6; the last two fail
    assert "clip_image_score: stopped at batch 6 (12 images): 2 scores in a row" in capsys.readouterr().out
    assert "train/clip_image_score" in (run / "metrics.csv").read_text()
    short = personalize("textual_inversion", pipeline, photos, tmp_path / "short", "--budget.images=12")
    assert_same(state(run), state(short))
    personalize("textual_inversion", pipeline, photos, run, stopping, "--budget.images=40", "--ckpt_path=last")
    assert weights(run)["images_seen"] == 12
    assert "clip_image_score: did not stop" not in capsys.readouterr().out
    personalize("textual_inversion", pipeline, photos, tmp_path / "early", stopping, "--budget.images=2")
    assert "clip_image_score: did not stop in 1 batches; there was no score" in capsys.readouterr().out


def test_the_score_compares_samples_with_photos(files):
    callback = ClipScoreEarlyStopping(Flat(), samples=3)
    photos = torch.rand(2, 3, 4, 4)
    seen = {}

    class Module:
        device = torch.device("cpu")

        def sample(self, prompts, seeds, steps, guidance, size):
            seen.update(prompts=prompts, seeds=list(seeds), size=size)
            return photos[[0, 1, 0]] * torch.tensor([1.0, 1.0, -1.0])[:, None, None, None]

    data = type("Data", (), {"prompts": ["one", "two"], "size": 4, "photos": photos})()
    strategy = type("Strategy", (), {"broadcast": staticmethod(lambda score: score)})()
    plugin = type("Plugin", (), {"forward_context": staticmethod(torch.no_grad)})()
    trainer = type("Trainer", (), {"datamodule": data, "strategy": strategy, "precision_plugin": plugin})()
    callback._photos = Flat()(photos)[[0, 1, 0]]
    assert callback._score(trainer, Module()) == pytest.approx(1 / 3)  # 1, 1 and -1
    assert seen == {"prompts": ["one", "two", "one"], "seeds": [37, 38, 39], "size": 4}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="every_n_batches 0"):
        ClipScoreEarlyStopping(Flat(), every_n_batches=0)
    with pytest.raises(ValueError, match="patience -1"):
        ClipScoreEarlyStopping(Flat(), patience=-1)
    with pytest.raises(TypeError, match="this run trains a Linear"):
        ClipScoreEarlyStopping(Flat()).on_train_start(None, torch.nn.Linear(1, 1))
