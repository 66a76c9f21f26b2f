"""Pixels by hand, labels, the cache, splits, mirror images by the clock, refusals."""

import pytest
import torch
from PIL import Image
from tiny_gan import make_image_folder

from datamodules import UnpairedImages
from pocketgan.images import UnreadableImageError, to_tensor
from pocketgan.metrics import FrozenModule


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("data") / "images")


def opened(images, tmp_path, **options):
    data = UnpairedImages(images, **{"size": 32, "batch_size": 4, "cache": tmp_path / "cache", **options})
    data.setup("fit")
    return data


class Clock:
    """A trainer's side of the datamodule."""

    training, global_rank, world_size = True, 0, 1

    def __init__(self, images_seen, **module):
        self.lightning_module = type("Module", (), {"images_seen": images_seen, **module})()


def test_images_are_centred_squares(images, tmp_path):
    data = opened(images, tmp_path, labels=True)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    place = data.datasets["val"].places[0]
    file = sorted(path for name in data.classes for path in (images / name).iterdir())[place]
    with Image.open(file) as photo:
        square = photo.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS, (2, 0, 38, 36))
    assert torch.equal(batch["image"][0], to_tensor(square))
    assert batch["label"][0] == data.classes.index(file.parent.name)
    assert batch["place"].tolist() == list(range(len(batch["place"])))


def test_labels_only_on_request(images, tmp_path):
    plain, labelled = opened(images, tmp_path), opened(images, tmp_path, labels=True)
    assert (plain.classes, labelled.classes) == ([], ["china", "flower"])
    for data, expected in ((plain, {0}), (labelled, {0, 1})):
        batches = [batch["label"] for batch in data.train_dataloader()]
        assert set(torch.cat(batches).tolist()) == expected


def test_each_class_is_split_and_no_image_is_on_two_sides(images, tmp_path):
    data = opened(images, tmp_path, labels=True, split=(0.5, 0.25, 0.25))
    sides = {split: dataset.places.tolist() for split, dataset in data.datasets.items()}
    assert sorted(place for places in sides.values() for place in places) == list(range(24))
    for split, expected in (("train", 6), ("val", 3), ("test", 3)):
        assert data.datasets[split].labels[sides[split]].bincount().tolist() == [expected] * 2


def test_decoded_once_and_again_when_something_changed(images, tmp_path, monkeypatch):
    decoded = []
    whole = UnpairedImages._decode
    monkeypatch.setattr(UnpairedImages, "_decode", lambda self, *given: decoded.append(1) or whole(self, *given))
    first = opened(images, tmp_path)
    second = opened(images, tmp_path, labels=True, seed=3)  # neither is in the pixels
    assert len(decoded) == 1
    assert torch.equal(first.datasets["train"].images, second.datasets["train"].images)
    opened(images, tmp_path, size=16)
    own = make_image_folder(tmp_path / "own")
    opened(own, tmp_path)
    make_image_folder(own, ("third",), each=1)
    opened(own, tmp_path)
    assert len(decoded) == 4


def test_mirror_images_follow_the_clock(images, tmp_path):
    data, whole = opened(images, tmp_path), opened(images, tmp_path, flip=False)
    data.trainer = whole.trainer = Clock(8)
    batch = {"image": data.datasets["train"].images[:64], "label": torch.zeros(24), "place": torch.arange(24)}
    found, plain = (each.on_after_batch_transfer(dict(batch), 0)["image"] for each in (data, whole))
    torch.rand(7)  # the run's own random numbers play no part
    assert torch.equal(data.on_after_batch_transfer(dict(batch), 0)["image"], found)
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(found, plain, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(found, plain, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 5 < sum(mirrored) < 19
    data.trainer = Clock(12)
    assert not torch.equal(data.on_after_batch_transfer(dict(batch), 0)["image"], found)


def test_the_order_follows_the_images_that_the_data_gave(images, tmp_path):
    data = opened(images, tmp_path)
    data.trainer = Clock(0)
    order = [batch["place"].tolist() for batch in data.train_dataloader()]
    data.trainer = Clock(4)
    assert [batch["place"].tolist() for batch in data.train_dataloader()] == order[1:]
    data.trainer = Clock(4, data_images_seen=8)  # two steps of the discriminator in one of the generator
    assert [batch["place"].tolist() for batch in data.train_dataloader()] == order[2:]


class CountedFeatures(FrozenModule):
    frechet_name, kernel_name, feature_size = "fd_counted", "kid_counted", 3

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.mean((2, 3))


def test_reference_features_are_computed_once(images, tmp_path):
    data, extractor = opened(images, tmp_path), CountedFeatures()
    found = data.reference_features("train", extractor)
    dataset = data.datasets["train"]
    torch.testing.assert_close(found, dataset.images[dataset.places].float().mean((1, 2)) / 127.5 - 1)
    calls = extractor.calls
    assert torch.equal(opened(images, tmp_path).reference_features("train", extractor), found)
    assert extractor.calls == calls
    assert opened(images, tmp_path, seed=5).reference_features("train", extractor).shape == (19, 3)
    assert extractor.calls > calls


def test_refusals(images, tmp_path):
    with pytest.raises(ValueError, match=r"split \(0.5, 0.1, 0.1\)"):
        UnpairedImages(images, split=(0.5, 0.1, 0.1))
    with pytest.raises(ValueError, match="size is 0"):
        UnpairedImages(images, size=0)
    with pytest.raises(FileNotFoundError, match="does not exist; check the path"):
        opened(tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        opened(tmp_path / "empty", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no folders; put each class's images"):
        opened(images / "china", tmp_path, labels=True)
    with pytest.raises(UnreadableImageError, match="is below the 64 px asked for; set size to 36"):
        opened(images, tmp_path, size=64)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
    with pytest.raises(ValueError, match="the training split has 19 images, batch_size is 64"):
        opened(images, tmp_path, batch_size=64).train_dataloader()
    with pytest.raises(ValueError, match="the test split has 0 images"):
        opened(images, tmp_path, split=(0.9, 0.1, 0.0)).test_dataloader()
