"""Latents by hand, the cache, splits, resume's order, refusals."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tiny_dit import black, make_class_folders, make_pipeline

from datamodules import LabelledLatents
from datamodules import labelled_latents as module
from pocketgan.images import UnreadableImageError, to_tensor


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_class_folders(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


def opened(images, tmp_path, **options):
    data = LabelledLatents(images, **{"size": 32, "batch_size": 4, "cache": tmp_path / "cache", **options})
    data.setup("fit")
    return data


def test_latents_are_the_autoencoders(images, pipeline, tmp_path):
    data = opened(images, tmp_path, vae=str(pipeline))
    assert (data.classes, data.latent_shape) == (["china", "flower", "third"], (4, 4, 4))
    batch = next(iter(data.val_dataloader()))
    evaluated = data.on_after_batch_transfer(batch, 0)
    file = sorted(path for name in data.classes for path in (images / name).iterdir())[data.datasets["val"].places[0]]
    with Image.open(file) as photo:
        square = photo.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS, (2, 0, 38, 36))
    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae")
    with torch.no_grad():
        expected = vae.encode(to_tensor(square)[None]).latent_dist
        mirrored = vae.encode(to_tensor(square).flip(2)[None]).latent_dist
    torch.testing.assert_close(evaluated["latents"][:1], expected.mean * vae.config.scaling_factor)
    torch.testing.assert_close(batch["mean"][:1, 1], mirrored.mean * vae.config.scaling_factor)
    torch.testing.assert_close(batch["deviation"][:1, 0], expected.std * vae.config.scaling_factor)
    assert evaluated["label"][0] == data.classes.index(file.parent.name)


def test_pixels_as_they_are(images, tmp_path):
    data = opened(images, tmp_path, flip=False)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert data.latent_shape == (3, 32, 32)
    assert batch["latents"].shape[1:] == (3, 32, 32)
    assert -1 <= batch["latents"].min() < batch["latents"].max() <= 1


def test_each_class_is_split_and_no_image_is_on_two_sides(images, tmp_path):
    data = opened(images, tmp_path, split=(0.6, 0.2, 0.2))
    sides = {split: dataset.places for split, dataset in data.datasets.items()}
    assert sorted(place for places in sides.values() for place in places) == list(range(30))
    for split, expected in (("train", 6), ("val", 2), ("test", 2)):
        labels = data.datasets[split].tensors["label"][sides[split]]
        assert labels.bincount().tolist() == [expected] * 3


def test_encoded_once_and_again_when_something_changed(images, pipeline, tmp_path, monkeypatch):
    encoded = []
    whole = LabelledLatents._encode
    monkeypatch.setattr(LabelledLatents, "_encode", lambda self, *given: encoded.append(1) or whole(self, *given))
    first = opened(images, tmp_path, vae=str(pipeline)).datasets["train"].tensors
    second = opened(images, tmp_path, vae=str(pipeline)).datasets["train"].tensors
    assert len(encoded) == 1
    assert torch.equal(first["mean"], second["mean"])
    opened(images, tmp_path, vae=str(pipeline), flip=False)
    opened(images, tmp_path)
    assert len(encoded) == 3


class Clock:
    """A trainer's side of the datamodule."""

    training, global_rank, world_size = True, 0, 1

    def __init__(self, images_seen):
        self.lightning_module = type("Module", (), {"images_seen": images_seen})()


def batches(data, images_seen, count):
    data.trainer = Clock(images_seen)
    found = []
    for batch in data.train_dataloader():
        found.append(data.on_after_batch_transfer(batch, 0))
        data.trainer.lightning_module.images_seen += len(batch["label"])
        if len(found) == count:
            break
    return found


def test_training_draws_views_and_latents_by_the_clock(images, pipeline, tmp_path):
    data = opened(images, tmp_path, vae=str(pipeline))
    whole = batches(data, 0, 3)
    torch.rand(7)  # the run's own random numbers play no part
    for one, other in zip(whole[1:], batches(data, 4, 2), strict=True):
        assert torch.equal(one["latents"], other["latents"])
    means = data.datasets["train"].tensors["mean"].flatten(0, 1)
    nearest = torch.cdist(whole[0]["latents"].flatten(1), means.flatten(1)).min(1).values
    assert (nearest > 0).all()  # drawn, not the mean itself


def test_hidden_folders_are_no_classes(images, tmp_path):
    data = LabelledLatents(make_class_folders(tmp_path / "images", ("one", "two")), size=32)
    data.setup("fit")
    assert (tmp_path / "images" / ".cache").is_dir()
    again = LabelledLatents(tmp_path / "images", size=32)
    again.setup("fit")
    assert again.classes == ["one", "two"]


def test_refusals(images, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"split \(0.5, 0.1, 0.1\)"):
        LabelledLatents(images, split=(0.5, 0.1, 0.1))
    with pytest.raises(FileNotFoundError, match="is no folder; give one that holds a folder of images for each class"):
        opened(tmp_path / "nothing", tmp_path)
    (tmp_path / "flat").mkdir()
    black(64).save(tmp_path / "flat" / "a.png")
    with pytest.raises(FileNotFoundError, match="holds no folders; put each class's images"):
        opened(tmp_path / "flat", tmp_path)
    (tmp_path / "flat" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a class folder of .* holds no image"):
        opened(tmp_path / "flat", tmp_path)
    black(24).save(tmp_path / "flat" / "empty" / "small.png")
    with pytest.raises(UnreadableImageError, match=r"small\.png: 24x24 is below the 32 px asked for; set size to 24"):
        opened(tmp_path / "flat", tmp_path)
    with pytest.raises(ValueError, match="size 36 is not divisible by 8, the autoencoder's factor; use 32 or 40"):
        opened(images, tmp_path, size=36, vae=str(pipeline))
    with pytest.raises(ValueError, match="the training split has 24 images, batch_size is 64"):
        opened(images, tmp_path, batch_size=64).train_dataloader()
    with pytest.raises(ValueError, match="the test split has 0 images"):
        opened(images, tmp_path, split=(0.9, 0.1, 0.0)).test_dataloader()
    with pytest.raises(FileNotFoundError, match=r"no repo that can be reached; download the repo .* vae/config\.json"):
        opened(images, tmp_path, vae="facebook/DiT-XL-2-256")


def test_an_interrupted_encoding_leaves_nothing(images, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space")

    monkeypatch.setattr(module, "allocate", broken)
    with pytest.raises(OSError, match="no space"):
        opened(images, tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
    monkeypatch.undo()
    opened(images, tmp_path)


def test_arrays_are_mapped_and_not_read(images, pipeline, tmp_path):
    data = opened(images, tmp_path, vae=str(pipeline))
    (folder,) = (tmp_path / "cache").glob("latents-*")
    assert {file.name for file in folder.iterdir()} == {"mean.npy", "deviation.npy"}
    mean = np.load(folder / "mean.npy")
    stored = data.datasets["train"].tensors["mean"]
    assert torch.equal(stored, torch.from_numpy(mean))
    with (folder / "mean.npy").open("r+b") as file:  # what changes on disk shows
        file.seek(-mean.nbytes, 2)
        file.write(np.full(mean.shape, 3, np.float32).tobytes())
    assert (stored == 3).all()
