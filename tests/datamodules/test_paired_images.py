"""Pair sets and aligned folders as batches: split, cache, augmentation, order, refusals."""

import errno
import functools
import json
import operator
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONCEPTS, make_pair_set, real_photos

from datamodules import PairedImages
from pocketgan.images import to_image, to_tensor
from pocketgan.selection import write_selection


def opened(root, **arguments):
    data = PairedImages(root, **{"size": 32, "batch_size": 4, "split": (0.5, 0.25, 0.25), **arguments})
    data.setup("fit")
    return data


def photos_of(data, split):
    return {pair.photo.name for pair in data.datasets[split].pairs}


def pretend_training(data, images_seen=0, rank=0, ranks=1):
    module = SimpleNamespace(images_seen=images_seen)
    data.trainer = SimpleNamespace(training=True, global_rank=rank, world_size=ranks, lightning_module=module)


def test_a_photo_stands_on_one_side_whatever_the_concepts(pair_set):
    data = opened(pair_set)
    sides = [photos_of(data, split) for split in ("train", "val", "test")]
    assert [len(side) for side in sides] == [6, 3, 3]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert len(data.datasets["train"]) == 12
    alone = opened(pair_set, concepts=["sepia"])
    assert photos_of(alone, "test") == sides[2]
    assert alone.prompts == {"sepia": "make it sepia"}
    assert photos_of(opened(pair_set, seed=1), "test") != sides[2]


def test_crops_of_one_photo_and_copies_stay_together(tmp_path):
    root = make_pair_set(tmp_path / "pairs", photos=8)
    lines = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    for line in lines:
        line["source"] = f"source-{int(line['id'][-3:]) // 2}"
    copied = dict(lines[0], id="copy", photo_file_name="photos/copy.png", source="elsewhere")
    (root / "photos" / "copy.png").write_bytes((root / lines[0]["photo_file_name"]).read_bytes())
    lines.append(copied)
    (root / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = opened(root, split=(0.5, 0.25, 0.25))
    side = {pair.photo.name: split for split in data.datasets for pair in data.datasets[split].pairs}
    assert all(side[f"photo-{index:03d}.png"] == side[f"photo-{index + 1:03d}.png"] for index in range(0, 8, 2))
    assert side["copy.png"] == side[lines[0]["photo_file_name"].removeprefix("photos/")]


def test_items_are_the_files_pixels(pair_set):
    data = opened(pair_set)
    item, pair = data.datasets["train"][0], data.datasets["train"].pairs[0]
    assert np.array_equal(item["photo"], np.asarray(Image.open(pair.photo)))
    assert np.array_equal(item["edit"], np.asarray(Image.open(pair.edit)))
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["photo"].shape == (4, 3, 32, 32)
    assert -1 <= batch["photo"].min() < batch["photo"].max() <= 1


def test_photo_and_edit_are_augmented_alike(tmp_path):
    root = make_pair_set(tmp_path / "pairs", photos=20, size=40, concepts=("inverted",))
    data = opened(root, crop_from=40, batch_size=8)
    changed = 0
    for number, batch in enumerate(data.train_dataloader()):
        pretend_training(data, number)
        before = data._to_float(batch["photo"])
        after = data.on_after_batch_transfer(batch, 0)
        torch.testing.assert_close(after["photo"], -after["edit"], atol=1.01 / 127.5, rtol=0)
        changed += int((before != after["photo"]).flatten(1).any(1).sum())
    assert changed


def test_augmentation_depends_on_images_seen_not_on_the_ranks(tmp_path):
    root = make_pair_set(tmp_path / "pairs", photos=16, concepts=("inverted",))
    whole = opened(root, batch_size=8)
    pretend_training(whole, images_seen=40)
    photos = torch.arange(8)[:, None, None, None] + torch.arange(32)[None, None, :, None].expand(8, 32, 32, 3)
    expected, _ = whole._augmented(photos, photos)
    assert not torch.equal(expected, photos)
    parts = []
    for rank in range(2):
        pretend_training(whole, 40, rank, 2)
        parts.append(whole._augmented(photos[rank::2], photos[rank::2])[0])
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), expected)
    pretend_training(whole, images_seen=48)
    assert not torch.equal(whole._augmented(photos, photos)[0], expected)


def test_every_rank_count_sees_the_same_batches(pair_set):
    def batches(ranks):
        shares = []
        for rank in range(ranks):
            data = opened(pair_set)
            pretend_training(data, 0, rank, ranks)
            shares.append([batch["photo"].sum((1, 2, 3)).tolist() for batch in data.train_dataloader()])
        return [sorted(functools.reduce(operator.iadd, parts, [])) for parts in zip(*shares, strict=True)]

    assert batches(1) == batches(2)


def test_evaluation_covers_each_pair_once_over_ranks(pair_set):
    seen = []
    for rank in range(4):
        data = opened(pair_set)
        pretend_training(data, 0, rank, 4)
        seen += [value for batch in data.test_dataloader() for value in batch["photo"].sum((1, 2, 3)).tolist()]
    assert len(seen) == len(opened(pair_set).datasets["test"])


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_starts_where_the_run_stood(pair_set, workers):
    def values(images_seen, passes):
        data = opened(pair_set, num_workers=workers)
        pretend_training(data, images_seen)
        loader, found = data.train_dataloader(), []
        for _ in range(passes):
            found += [batch["edit"].sum().item() for batch in loader]
            data.trainer.lightning_module.images_seen = (images_seen // 12 + 1) * 12
            images_seen = data.trainer.lightning_module.images_seen
        return found

    expected = values(0, 5)  # 12 pairs, 3 batches of 4 a pass
    assert len(expected) == 15
    assert expected[:3] != expected[3:6]
    for images_seen in (4, 8, 12, 16, 24):
        batches = images_seen // 4
        assert values(images_seen, 2) == expected[batches : batches + 6 - batches % 3]


def test_cache_is_built_once_and_again_when_stale(pair_set):
    opened(pair_set)
    caches = sorted((pair_set / ".cache").glob("*-32"))
    assert len(caches) == 1
    stamp = (caches[0] / "photos.npy").stat().st_mtime_ns
    data = opened(pair_set)
    assert (caches[0] / "photos.npy").stat().st_mtime_ns == stamp
    assert len(data.datasets["train"].photos) == 12  # photos of two concepts are stored once
    assert len(data.datasets["train"].edits) == 24
    lines = (pair_set / "pairs.jsonl").read_text().splitlines(keepends=True)
    (pair_set / "pairs.jsonl").write_text("".join(lines[1:]))
    assert len(opened(pair_set).datasets["train"].edits) == 23
    assert len(list((pair_set / ".cache").glob("*-32"))) == 2


def test_two_builders_at_once(pair_set):
    results = []
    threads = [threading.Thread(target=lambda: results.append(opened(pair_set))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(list((pair_set / ".cache").glob("*-32*"))) == 1


def test_a_killed_build_leaves_nothing_in_the_way(pair_set, monkeypatch):
    def killed(self, pairs, folder):
        (folder / "photos.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PairedImages, "_decode", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(pair_set)
    (pair_set / ".cache" / "left.building").mkdir()
    assert len(opened(pair_set).datasets["train"]) == 12


def test_a_broken_off_synthesis_is_said(pair_set):
    lines = (pair_set / "pairs.jsonl").read_text().splitlines(keepends=True)
    (pair_set / "pairs.jsonl").write_text("".join(lines[:-2]))
    (pair_set / "journal-0.jsonl").write_text("".join(lines[-2:]))
    with pytest.warns(UserWarning, match=r"was broken off; `pocketgan predict` again makes the rest"):
        assert len(opened(pair_set).datasets["train"].edits) == 24


def test_a_full_disk_ends_the_build_cleanly(pair_set, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("datamodules.array_files.os.posix_fallocate", full)
    with pytest.raises(OSError, match="the disk is full"):
        opened(pair_set)
    assert [file.name for file in (pair_set / ".cache").iterdir()] == ["lock"]


def aligned_folder(root, splits):
    for split, count in splits.items():
        (root / split).mkdir(parents=True)
        for index, photo in enumerate(real_photos(count, 32)):
            both = torch.cat((photo, CONCEPTS["inverted"](photo)), dim=2)
            to_image(both).save(root / split / f"{index}.png")
    return root


def test_aligned_folder_with_splits(tmp_path):
    data = opened(aligned_folder(tmp_path / "facades", {"train": 6, "val": 2, "test": 1}))
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [6, 2, 1]
    assert data.prompts == {"facades": "facades"}
    item = data.datasets["train"][0]
    assert (item["photo"].int() + item["edit"].int() - 255).abs().max() <= 1


def test_aligned_folder_of_train_alone_is_split(tmp_path):
    data = opened(aligned_folder(tmp_path / "maps", {"train": 8}))
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [4, 2, 2]


def test_aligned_folder_refusals(tmp_path):
    with pytest.raises(ValueError, match="no pictures under test"):
        opened(aligned_folder(tmp_path / "a", {"train": 4, "val": 2}))
    root = aligned_folder(tmp_path / "b", {"train": 8})
    Image.new("RGB", (65, 32)).save(root / "train" / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png is 65 px wide"):
        opened(root)


def test_reference_features_are_computed_once(pair_set):
    class Counting(torch.nn.Module):
        frechet_name, kernel_name, feature_size = "fd_count", "kid_count", 3
        calls = 0

        def forward(self, images):
            self.calls += 1
            return images.mean((2, 3))

    extractor, data = Counting(), opened(pair_set)
    first = data.reference_features("test", extractor)
    calls = extractor.calls
    assert set(first) == {"inverted", "sepia"}
    assert len(first["sepia"]) == 3
    again = opened(pair_set).reference_features("test", extractor)
    assert extractor.calls == calls
    assert all(torch.equal(first[name], again[name]) for name in first)
    data.reference_features("val", extractor)
    assert extractor.calls > calls


def names_of(data, split):
    return sorted({data.photo_name(pair) for pair in data.datasets[split].pairs})


def selection(folder, names):
    write_selection(folder / "selection.txt", names, "for a test")
    return folder / "selection.txt"


def test_concepts_from_a_file(pair_set, tmp_path):
    file = selection(tmp_path, ["sepia"])
    assert opened(pair_set, concepts=file).prompts == {"sepia": "make it sepia"}
    with pytest.raises(ValueError, match=r"unknown concept mosaic; .* holds inverted, sepia"):
        opened(pair_set, concepts=selection(tmp_path, ["sepia", "mosaic"]))
    with pytest.raises(FileNotFoundError, match=r"selection file .*nothing\.txt does not exist"):
        opened(pair_set, concepts=tmp_path / "nothing.txt")


def test_training_on_chosen_photos(pair_set, tmp_path):
    whole = opened(pair_set)
    names = names_of(whole, "train")[1:4]
    assert all((pair_set / name).is_file() for name in names)
    data = opened(pair_set, training_photos=selection(tmp_path, names))
    assert names_of(data, "train") == names
    assert len(data.datasets["train"]) == 6
    for split in ("val", "test"):
        assert data.datasets[split].pairs == whole.datasets[split].pairs
    # each pair keeps its own pixels
    pixels = {
        (pair.photo, pair.concept): item
        for pair, item in zip(whole.datasets["train"].pairs, whole.datasets["train"], strict=True)
    }
    for pair, item in zip(data.datasets["train"].pairs, data.datasets["train"], strict=True):
        for side in ("photo", "edit"):
            assert torch.equal(item[side], pixels[pair.photo, pair.concept][side])
    assert len(list((pair_set / ".cache").glob("*-32"))) == 1
    with pytest.raises(ValueError, match="the training split has 6 pairs, batch_size is 8"):
        opened(pair_set, training_photos=selection(tmp_path, names), batch_size=8).train_dataloader()


def test_chosen_photos_of_an_aligned_folder(tmp_path):
    root = aligned_folder(tmp_path / "facades", {"train": 6, "val": 2, "test": 1})
    data = opened(root, training_photos=selection(tmp_path, ["train/1.png", "train/4.png"]))
    assert names_of(data, "train") == ["train/1.png", "train/4.png"]
    with pytest.raises(ValueError, match=r"names val/0\.png \(val\), held out here"):
        opened(root, training_photos=selection(tmp_path, ["train/1.png", "val/0.png"]))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_chosen_photo_that_is_held_out(pair_set, tmp_path, split):
    data = opened(pair_set)
    leaking = names_of(data, split)[0]
    with pytest.raises(
        ValueError, match=rf"names {leaking} \({split}\), held out here: training on it would leak"
    ) as error:
        opened(pair_set, training_photos=selection(tmp_path, [*names_of(data, "train"), leaking]))
    assert "data.split and data.seed of this run, [0.5, 0.25, 0.25] and 0" in str(error.value)
    with pytest.raises(ValueError, match="held out here"):
        opened(pair_set, training_photos=selection(tmp_path, names_of(data, "train")), seed=1)


def test_a_chosen_photo_that_is_unknown(pair_set, tmp_path):
    unknown = [f"photos/other-{index}.png" for index in range(5)]
    with pytest.raises(
        ValueError, match=r"names photos/other-0\.png, .*other-2\.png and 2 more, which .* does not hold"
    ):
        opened(pair_set, training_photos=selection(tmp_path, unknown))


def test_photos_come_once_with_their_names(pair_set):
    data = opened(pair_set)
    batches = list(data.photos("train", batch_size=4))
    assert [len(names) for _, names in batches] == [4, 2]
    assert sorted(name for _, names in batches for name in names) == names_of(data, "train")
    for photos, names in batches:
        for photo, name in zip(photos, names, strict=True):
            torch.testing.assert_close(photo, to_tensor(Image.open(pair_set / name)), atol=1e-6, rtol=0)


def test_features_of_chosen_photos_are_kept_apart(pair_set, tmp_path):
    class Mean(torch.nn.Module):
        frechet_name, kernel_name, feature_size = "fd_mean", "kid_mean", 3

        def forward(self, images):
            return images.mean((2, 3))

    names = names_of(opened(pair_set), "train")
    rows = {}
    for count in (6, 3, 2):
        data = opened(pair_set, training_photos=selection(tmp_path, names[:count]))
        rows[count] = len(data.reference_features("train", Mean())["sepia"])
        data.reference_features("test", Mean())
    assert rows == {6: 6, 3: 3, 2: 2}
    assert len(opened(pair_set).reference_features("train", Mean())["sepia"]) == 6
    assert len(list((pair_set / ".cache").glob("*-test-*.safetensors"))) == 1  # held-out sides do not depend on it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"crop_from": 16}, "crop_from 16 is below size 32"),
        ({"concepts": ["mosaic"]}, "unknown concept mosaic; .* holds inverted, sepia"),
        ({"size": 64}, "32x32, below the 64 px asked for; set size to 32 or less"),
    ],
)
def test_bad_arguments(pair_set, arguments, message):
    with pytest.raises(ValueError, match=message):
        opened(pair_set, **arguments)
    assert not list((pair_set / ".cache").glob("*.building"))


def test_bad_batches(pair_set):
    with pytest.raises(ValueError, match="the training split has 12 pairs, batch_size is 16"):
        opened(pair_set, batch_size=16).train_dataloader()
    data = opened(pair_set)
    pretend_training(data, 0, 0, 3)
    with pytest.raises(ValueError, match="batch_size 4 does not divide over 3 ranks"):
        data.train_dataloader()
    pretend_training(data, 0, 0, 7)
    with pytest.raises(ValueError, match="the val split has 6 pairs for 7 ranks; each rank needs one"):
        data.val_dataloader()
    with pytest.raises(ValueError, match="the val split is empty"):
        opened(pair_set, split=(0.5, 0.0, 0.5)).val_dataloader()


def test_bad_sets(tmp_path, pair_set):
    with pytest.raises(FileNotFoundError, match=r"neither a pair set \(manifest.json\) nor an aligned folder"):
        opened(tmp_path / "nothing")
    (pair_set / "edits" / "sepia" / "photo-003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"photo-003\.png is missing"):
        opened(pair_set)
    other = make_pair_set(tmp_path / "other")
    Image.new("RGB", (32, 32)).save(other / "edits" / "sepia" / "photo-003.png")
    with pytest.raises(ValueError, match=r"photo-003\.png is not the file that was written"):
        opened(other)
    small = make_pair_set(tmp_path / "small", photos=2)
    with pytest.raises(ValueError, match="2 photos cannot be split"):
        opened(small)


def test_sides_of_different_size(tmp_path):
    root = make_pair_set(tmp_path / "pairs", size=64)
    lines = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    edit = root / lines[0]["edit_file_name"]
    Image.open(edit).resize((48, 48)).save(edit)
    del lines[0]["edit_sha256"]
    from pocketgan.files import sha256_of

    lines[0]["edit_sha256"] = sha256_of(edit)
    (root / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="is 48x48, its photo 64x64"):
        opened(root)
