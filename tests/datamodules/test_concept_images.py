"""Photos, prompts, latents kept, augmentation with its mask."""

import pytest
import torch
from PIL import Image
from tiny_pipeline import make_photos

from datamodules import ConceptImages
from datamodules.concept_images import REPEATS

CPU = torch.device("cpu")


class Trainer:
    """What the datamodule asks of a trainer."""

    def __init__(self, training=True, rank=0, ranks=1):
        self.training, self.global_rank, self.world_size = training, rank, ranks
        self.lightning_module = type("Module", (), {"images_seen": 0})()


class Encoder:
    """Counts what it sees; the picture itself, at half size, is the mean."""

    def __init__(self):
        self.seen = 0

    def __call__(self, image):
        self.seen += len(image)
        mean = torch.nn.functional.avg_pool2d(image, 2)
        return torch.cat((mean, torch.full_like(mean, -30)), 1)


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def ready(photos, encoder=None, trainer=None, **options):
    data = ConceptImages(photos, "<ring>", **{"size": 32, **options})
    data.setup("fit")
    data.trainer = trainer or Trainer()
    data.provide_moments(encoder or Encoder(), "vae", CPU)
    return data


def batch_of(data, images_seen=0, count=2):
    data.trainer.lightning_module.images_seen = images_seen
    return data.on_after_batch_transfer(torch.arange(count), 0)


def test_the_vae_sees_each_picture_once_and_another_vae_anew(photos, tmp_path):
    encoder = Encoder()
    options = {"class_root": make_photos(tmp_path / "class", 3), "class_prompt": "a photo"}
    ready(photos, encoder, **options)
    assert encoder.seen == 4 + 4 + 3  # photos, mirrored, class
    again = Encoder()
    data = ready(photos, again, **options)
    assert again.seen == 0
    torch.testing.assert_close(data._moments["mirrored"][:, :3], data._moments["photo"][:, :3].flip(3))
    data._moments = {}
    data.provide_moments(again, "another vae", CPU)
    assert again.seen == 11
    (photos / "0.png").write_bytes((photos / "1.png").read_bytes())
    ready(photos, again, **options)
    assert again.seen == 22


def test_batches_depend_on_seed_and_images_seen_alone(photos):
    first, second = ready(photos), ready(photos)
    one, other = batch_of(first, 6), batch_of(second, 6)
    assert one["prompt"] == other["prompt"]
    assert torch.equal(one["moments"], other["moments"])
    later = [batch_of(first, seen) for seen in range(0, 40, 2)]
    assert len({prompt for batch in later for prompt in batch["prompt"]}) > 5
    mirrored = [torch.equal(batch["moments"][0], first._moments["mirrored"][0]) for batch in later]
    assert 3 < sum(mirrored) < 17
    assert not torch.equal(batch_of(ready(photos, seed=1), 6)["moments"], one["moments"]) or (
        batch_of(ready(photos, seed=1), 6)["prompt"] != one["prompt"]
    )


def test_ranks_share_a_batch(photos):
    whole = ready(photos)
    expected = whole.on_after_batch_transfer(torch.arange(4), 0)
    for rank in range(2):
        part = ready(photos, trainer=Trainer(rank=rank, ranks=2)).on_after_batch_transfer(torch.arange(4)[rank::2], 0)
        assert part["prompt"] == expected["prompt"][rank::2]
        assert torch.equal(part["moments"], expected["moments"][rank::2])


def test_nothing_is_drawn_for_validation(photos):
    data = ready(photos, trainer=Trainer(training=False), rescale=False)
    batch = data.on_after_batch_transfer(torch.arange(4), 0)
    assert batch["prompt"] == data.prompts[:4]
    assert torch.equal(batch["moments"], data._moments["photo"])
    scaled = ready(photos, trainer=Trainer(training=False), rescale=True)
    batch = scaled.on_after_batch_transfer(torch.arange(4), 0)
    assert batch.keys() == {"prompt", "image"}
    assert torch.equal(batch["image"], scaled.photos)


def test_an_epoch_shows_each_photo_equally_often(photos):
    data = ready(photos, batch_size=8)
    seen = torch.cat(list(data.train_dataloader()))
    assert seen.bincount().tolist() == [REPEATS] * 4
    assert torch.cat(list(data.val_dataloader())).tolist() == [0, 1, 2, 3]


def test_class_images_with_their_captions(photos, tmp_path):
    others = make_photos(tmp_path / "class", 3)
    (others / "1.txt").write_text("a silver ring\n")
    data = ready(photos, class_root=others, class_prompt="a photo of a ring")
    assert data.class_prompts == ["a photo of a ring", "a silver ring", "a photo of a ring"]
    for seen in range(0, 20, 2):
        batch = batch_of(data, seen)
        for moments, prompt in zip(batch["class_moments"], batch["class_prompt"], strict=True):
            number = next(place for place in range(3) if torch.equal(moments, data._moments["class"][place]))
            assert data.class_prompts[number] == prompt


def test_rescale_puts_the_photo_where_the_mask_says(photos):
    encoder = Encoder()
    data = ready(photos, encoder, rescale=True, flip=False, templates=["photo of a {}"])
    assert encoder.seen == 0  # pictures differ at each step
    data.photos = data.photos.clamp(-1, 1) * 0 + 0.5
    kinds = set()
    for seen in range(0, 200, 2):
        batch = batch_of(data, seen)
        for image, mask, prompt in zip(batch["image"], batch["mask"], batch["prompt"], strict=True):
            assert image.shape == (3, 32, 32)
            assert mask.shape == (1, 32, 32)
            torch.testing.assert_close(image, 0.5 * mask.expand(3, -1, -1))
            side = mask.sum().sqrt()
            assert side == side.round() >= 10
            word = prompt.removesuffix("photo of a <ring>")
            kinds.add(word)
            assert (word in {"a far away ", "very small "}) == (side < 0.6 * 32)
            assert word not in {"zoomed in ", "close up "} or mask.all()
    assert kinds == {"", "a far away ", "very small ", "zoomed in ", "close up "}


def test_prompts(photos):
    assert ConceptImages(photos, "sks cat").prompts[0] == "a photo of a sks cat"
    assert "in the style of sks" in ConceptImages(photos, "sks", templates="style").prompts[0]
    assert ConceptImages(photos, "x", templates=["one {}, {}"]).prompts == ["one x, x"]


def test_bad_input_is_refused(photos, tmp_path):
    with pytest.raises(ValueError, match=r"template 'a photo' has no \{\}"):
        ConceptImages(photos, "x", templates=["a photo"])
    with pytest.raises(
        FileNotFoundError, match=r"nothing is no folder; give one with pictures of the class as data\.class_root"
    ):
        ready(photos, class_root=photos / "nothing", class_prompt="a photo")
    with pytest.raises(ValueError, match="class_root is given without class_prompt"):
        ConceptImages(photos, "x", class_root=photos)
    with pytest.raises(ValueError, match="size is 0"):
        ConceptImages(photos, "x", size=0)
    with pytest.raises(ValueError, match=r"0\.png is 40x40, below the 64 px"):
        ready(photos, size=64)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ConceptImages(tmp_path / "nothing", "x").setup("fit")
    with pytest.raises(ValueError, match="batch_size 3 must be a multiple of 2 ranks"):
        ready(photos, batch_size=3, trainer=Trainer(ranks=2)).train_dataloader()


def test_photos_become_centred_squares(tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste("black", (32, 0, 64, 32))
    wide.save(folder / "a.png")
    assert ready(folder).photos.max() == -1
