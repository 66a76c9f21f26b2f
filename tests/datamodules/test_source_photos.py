import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.source_photos import SourcePhotos


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c d.jpg", "deep/a.png", "deep/er/é.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def batches(datamodule, rank=0, world_size=1):
    datamodule.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return [datamodule.on_before_batch_transfer(batch, 0) for batch in datamodule.predict_dataloader()]


def photos(datamodule, rank=0, world_size=1):
    return {
        name: photo
        for batch in batches(datamodule, rank, world_size)
        for name, photo in zip(batch["id"], batch["photo"], strict=True)
    }


def made(root, **changes):
    datamodule = SourcePhotos(root, **{"size": 32, "batch_size": 2, **changes})
    datamodule.setup("predict")
    return datamodule


def test_a_folder_gives_its_centred_squares(root):
    loaded = batches(made(root))
    assert [batch["photo"].shape for batch in loaded] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
    sources = [source for batch in loaded for source in batch["source"]]
    ids = [name for batch in loaded for name in batch["id"]]
    assert sorted(sources) == ["a.png", "b.png", "c d.jpg", "deep/a.png", "deep/er/é.png"]
    assert len(set(ids)) == 5
    assert {name.rsplit("-", 1)[0] for name in ids} == {"a", "b", "c_d", "_"}
    photo = Image.open(root / "a.png").resize((32, 32), Image.Resampling.LANCZOS, (10, 0, 90, 80))
    name = ids[sources.index("a.png")]
    assert torch.equal(photos(made(root))[name], torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 127.5 - 1)


def test_random_crops_are_deterministic_and_differ(root):
    first, again = photos(made(root, crops_per_photo=3)), photos(made(root, crops_per_photo=3, batch_size=4))
    assert len(first) == 15
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len({photo.numpy().tobytes() for photo in first.values()}) == 15
    more = photos(made(root, crops_per_photo=5))
    assert all(torch.equal(first[name], more[name]) for name in first)
    reseeded = photos(made(root, crops_per_photo=3, seed=1))
    assert not any(torch.equal(first[name], reseeded[name]) for name in first)


def test_settings_name_what_changes_a_pixel(root):
    assert made(root, limit=2).settings == made(root).settings == {"size": 32, "crop": "centred square"}
    assert made(root, crops_per_photo=2).settings == made(root, crops_per_photo=3).settings
    assert made(root, crops_per_photo=2, seed=1).settings != made(root, crops_per_photo=2).settings


def test_a_limit_picks_the_same_photos_and_grows(root):
    few, many = made(root, limit=2), made(root, limit=4)
    assert few.ids == many.ids[:2]
    assert len(many.ids) == 4
    assert made(root, limit=2, seed=3).ids != few.ids


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_the_photos_without_gaps_or_repeats(root, world_size):
    whole = photos(made(root))
    shares = [photos(made(root), rank, world_size) for rank in range(world_size)]
    assert sum(map(len, shares)) == len(whole)
    joined = {name: photo for share in shares for name, photo in share.items()}
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_excluded_photos_are_left_out(root):
    datamodule = made(root)
    first = datamodule.ids[0]
    datamodule.exclude({first})
    assert first not in datamodule.ids
    assert first not in photos(datamodule)
    assert len(photos(datamodule)) == 4


def test_bad_photos_are_skipped_and_odd_ones_converted_with_a_count(root):
    whole = (root / "a.png").read_bytes()
    (root / "truncated.jpg").write_bytes((root / "c d.jpg").read_bytes()[:2000])
    (root / "text.png").write_text("no photo")
    Image.new("RGB", (1, 1)).save(root / "pixel.png")
    Image.new("CMYK", (80, 80)).save(root / "cmyk.jpg")
    Image.fromarray(np.full((80, 80), 40000, dtype=np.uint16)).save(root / "grey16.png")
    Image.new("P", (80, 80)).save(root / "palette.png", transparency=0)
    datamodule = made(root, crops_per_photo=2, workers=1)
    loaded = batches(datamodule)
    assert sum(len(batch["id"]) for batch in loaded) == 2 * 8
    with pytest.warns(UserWarning, match="photos") as caught:
        datamodule.teardown("predict")
    skipped, converted = (str(warning.message) for warning in caught)
    assert "3 photos skipped" in skipped
    assert "pixel.png: 1×1 pixels" in skipped
    assert set(datamodule.skipped) == {"truncated.jpg", "text.png", "pixel.png"}
    assert "truncated" in datamodule.skipped["truncated.jpg"]
    assert "3 photos converted (1 16-bit grey, 1 CMYK, 1 palette, transparency)" in converted
    assert datamodule.converted["cmyk.jpg"] == "CMYK"
    assert (root / "a.png").read_bytes() == whole


def test_a_batch_without_a_readable_photo_is_empty(root):
    for number in range(5):
        (root / f"text{number}.png").write_text("no photo")
    loaded = batches(made(root, batch_size=1))
    assert len(loaded) == 10
    assert sum(len(batch["photo"]) for batch in loaded) == 5


def test_a_folder_with_nothing_to_use_is_refused(tmp_path):
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(
        ValueError, match=r"no images in .*phone .*; found and not read \(1\): .*a\.heic: is HEIC, which is"
    ):
        SourcePhotos(tmp_path / "phone").setup("predict")
    with pytest.raises(ValueError, match="no images in"):
        made(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        made(tmp_path / "missing")
    (tmp_path / "text.png").write_text("no photo")
    Image.new("RGB", (63, 80)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"none of the 2 images(?s:.*)63×80 pixels(?s:.*)minimum_side \(now 64\)"):
        made(tmp_path)


def test_bundled_photos_need_no_folder():
    datamodule = made(None, limit=22)
    assert len({crop.rsplit("-", 1)[0] for crop in made(None).ids}) == 8
    assert len(made(None).ids) == 8 * 24
    assert len(photos(datamodule)) == 22
    assert not datamodule.skipped


def test_bundled_photos_without_scikit_image_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="need skimage, which is not installed"):
        made(None)


@pytest.mark.parametrize("changes", [{"size": 16}, {"limit": 0}, {"batch_size": 0}, {"crops_per_photo": -1}])
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is .*; it must be at least"):
        SourcePhotos(**changes)
