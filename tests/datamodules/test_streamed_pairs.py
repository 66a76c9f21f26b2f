"""Pairs in litdata chunks as batches: the same as PairedImages', from a folder and from what stands for a bucket."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY_CONFIGS
from two_ranks import fit_on_two_ranks

from datamodules import PairedImages, StreamedPairs
from lightning_modules import load_run
from pocketgan import pair_chunks
from pocketgan.cli import main
from pocketgan.pair_convert import export_pairs
from pocketgan.selection import write_selection

ARGUMENTS = {"size": 32, "batch_size": 4, "split": (0.5, 0.25, 0.25)}


@pytest.fixture
def chunks(pair_set, tmp_path, monkeypatch):
    """The pair set in four chunks."""
    write, of_a_quarter = pair_chunks.write_chunks, sum(file.stat().st_size for file in pair_set.rglob("*.png")) // 3
    monkeypatch.setattr("pocketgan.pair_convert.write_chunks", lambda items, folder: write(items, folder, of_a_quarter))
    export_pairs(pair_set, tmp_path / "chunks", "litdata")
    assert len(list((tmp_path / "chunks").glob("*.bin"))) > 2
    return tmp_path / "chunks"


def opened(cls, root, **arguments):
    data = cls(root, **ARGUMENTS | arguments)
    data.setup("fit")
    return data


def pretend_training(data, images_seen=0, rank=0, ranks=1):
    module = SimpleNamespace(images_seen=images_seen)
    data.trainer = SimpleNamespace(training=True, global_rank=rank, world_size=ranks, lightning_module=module)


def batches(data, images_seen=0, rank=0, ranks=1):
    pretend_training(data, images_seen, rank, ranks)
    found = []
    for batch in data.train_dataloader():
        found.append(data.on_after_batch_transfer(batch, 0))
        data.trainer.lightning_module.images_seen += data.batch_size
    return found


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert (one["concept"], one["prompt"]) == (other["concept"], other["prompt"])
        assert torch.equal(one["photo"], other["photo"])
        assert torch.equal(one["edit"], other["edit"])


@pytest.mark.parametrize("place", ["folder", "bucket"])
@pytest.mark.parametrize("changes", [{}, {"size": 24, "crop_from": 28, "seed": 3, "concepts": ["sepia"]}])
def test_batches_are_those_of_paired_images(pair_set, chunks, tmp_path, place, changes):
    root, cache = (str(chunks), None) if place == "folder" else (f"local:{chunks}", tmp_path / "cache")
    streamed, paired = opened(StreamedPairs, root, cache=cache, **changes), opened(PairedImages, pair_set, **changes)
    assert (streamed.prompts, streamed.set_hash) == (paired.prompts, paired.set_hash)
    for images_seen in (0, 4, 12):
        for rank in range(2):
            assert_same(batches(streamed, images_seen, rank, 2), batches(paired, images_seen, rank, 2))
    for split in ("val", "test"):
        ours, theirs = (list(data._evaluation_dataloader(split)) for data in (streamed, paired))
        assert_same(ours, theirs)
    names = [sorted(name for _, some in data.photos("train") for name in some) for data in (streamed, paired)]
    assert names[0] == names[1]


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_loader_processes_give_the_same(chunks, tmp_path, place, monkeypatch):
    # as fit finds it: the main process has read from the chunks before
    root, cache = (str(chunks), None) if place == "folder" else (f"local:{chunks}", tmp_path / "cache")
    data = opened(StreamedPairs, root, cache=cache)
    expected = batches(data)
    data.num_workers = 1
    assert_same(batches(data), expected)
    assert (data.train_dataloader().multiprocessing_context is None) == (place == "folder")


def test_only_the_chunks_that_are_wanted_are_fetched_and_once(chunks, tmp_path, monkeypatch):
    fetched = []
    download = pair_chunks._download

    def counting(root, name, file):
        fetched.append(name)
        download(root, name, file)

    monkeypatch.setattr(pair_chunks, "_download", counting)
    for _ in range(2):
        data = opened(StreamedPairs, f"local:{chunks}", cache=tmp_path / "cache", concepts=["inverted"])
        batches(data)
    small = ["conversion.json", "index.json"]
    files = [name for name in fetched if name not in small]
    assert fetched.count("index.json") == 2
    assert 0 < len(files) == len(set(files)) < len(list(chunks.glob("*.bin")))
    # a set that was converted anew has chunks of its own
    conversion = json.loads((chunks / "conversion.json").read_bytes())
    (chunks / "conversion.json").write_text(json.dumps(conversion | {"hash": "another"}))
    batches(opened(StreamedPairs, f"local:{chunks}", cache=tmp_path / "cache", concepts=["inverted"]))
    assert len(fetched) == 2 * len(files) + 6


def fit(root, run, *words, data="StreamedPairs"):
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}",
            f"--data={data}",
            f"--data.root={root}",
            f"--trainer.default_root_dir={run}",
            *words,
        ]
    )
    return load_run(run)


def test_a_fit_is_that_on_paired_images_and_resumes(pair_set, chunks, tmp_path):
    whole = fit(pair_set, tmp_path / "paired", data="PairedImages").state_dict()
    fit(chunks, tmp_path / "run", "--budget.images=12")
    resumed = fit(chunks, tmp_path / "run", "--budget.images=24", "--ckpt_path=last")
    assert resumed.images_seen == 24
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_on_two_ranks_no_pair_comes_twice_and_none_is_missing(chunks, tmp_path):
    words = ["fit", f"-c={TINY_CONFIGS / 'base_gan' / 'streamed.yaml'}", f"--data.root={chunks}"]
    words += [f"--trainer.default_root_dir={tmp_path / 'run'}", "--budget.images=32", "--data.split=[0.7, 0.15, 0.15]"]
    before = (
        "from datamodules import StreamedPairs\n"
        "seen, after = [], StreamedPairs.on_after_batch_transfer\n"
        "def recording(self, batch, index):\n"
        "    if self.trainer.training:\n"
        "        seen.append((batch['edit'].sum((1, 2, 3)) * 1000 + batch['photo'].sum((1, 2, 3)) % 1000).tolist())\n"
        "    return after(self, batch, index)\n"
        "StreamedPairs.on_after_batch_transfer = recording\n"
    )
    ranks = fit_on_two_ranks(tmp_path, words, kept="seen", before=before, strategy="ddp_find_unused_parameters_true")
    # 16 training pairs, 4 batches of 4 a pass
    data = opened(StreamedPairs, str(chunks), split=(0.7, 0.15, 0.15))
    expected = sorted(
        (item["edit"].sum() * 1000 + item["photo"].sum() % 1000).item() for item in data.datasets["train"]
    )
    assert len(expected) == 16
    for one_pass in (slice(0, 4), slice(4, 8)):
        assert sorted(value for rank in ranks for batch in rank[one_pass] for value in batch) == expected


def test_chosen_photos(pair_set, chunks, tmp_path):
    data = opened(PairedImages, pair_set)
    names = sorted({data.photo_name(pair) for pair in data.datasets["train"].pairs})[:3]
    write_selection(tmp_path / "photos.txt", names, "for a test")
    streamed = opened(StreamedPairs, str(chunks), training_photos=tmp_path / "photos.txt")
    assert sorted({streamed.photo_name(pair) for pair in streamed.datasets["train"].pairs}) == names


def test_refusals(pair_set, chunks, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"s3://bucket/set is in object storage; give --data\.cache a folder"):
        StreamedPairs("s3://bucket/set")
    with pytest.raises(FileNotFoundError, match=r"has no conversion\.json, so pocketgan did not write it"):
        opened(StreamedPairs, str(pair_set))
    with pytest.raises(FileNotFoundError, match=r"nowhere/conversion\.json"):
        opened(StreamedPairs, f"local:{tmp_path / 'nowhere'}", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="below the 64 px asked for; set size to 32 or less"):
        batches(opened(StreamedPairs, str(chunks), size=64))
    with pytest.raises(ValueError, match="unknown concept mosaic"):
        opened(StreamedPairs, str(chunks), concepts=["mosaic"])
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(ModuleNotFoundError, match=r"run: pip install 'pocketgan\[stream\]'"):
        opened(StreamedPairs, str(chunks))


def test_a_chunk_less(chunks, tmp_path):
    index = json.loads((chunks / "index.json").read_bytes())
    index["chunks"].pop()
    (chunks / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"pairs in its chunks and 24 in conversion\.json; convert the pair set anew"):
        opened(StreamedPairs, str(chunks))
