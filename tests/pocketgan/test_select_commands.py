"""``pocketgan select concepts`` and ``select photos``, and the training that takes their files."""

import json
import re

import pytest
import tiny
import torch
import yaml
from tiny import TINY_CONFIGS, config_of, fit_base, make_pair_set

from datamodules import PairedImages
from lightning_modules import load_run
from pocketgan.cli import main
from pocketgan.images import to_image
from pocketgan.metrics import EfficientNetLite0Features
from pocketgan.selection import read_selection

SPLIT = (0.7, 0.15, 0.15)
WORDS = [f"--split={list(SPLIT)}"]


def opened(root, **arguments):
    data = PairedImages(root, size=32, batch_size=4, split=SPLIT, **arguments)
    data.setup("fit")
    return data


def names_of(data, split):
    return {data.photo_name(pair) for pair in data.datasets[split].pairs}


def select(kind, root, out, *words):
    main(["select", kind, str(root), f"--out={out}", *WORDS, *words])
    return read_selection(out)


@pytest.fixture
def coloured(tmp_path, monkeypatch):
    """A pair set of 18 photos in three colours: photo i has colour i % 3."""

    def photos(count, size):
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(count, 3, size, size, generator=generator) * 0.1
        return [0.8 * torch.eye(3)[index % 3][:, None, None] + noise[index] for index in range(count)]

    monkeypatch.setattr(tiny, "real_photos", photos)
    return make_pair_set(tmp_path / "coloured", photos=18)


@pytest.fixture
def families(tmp_path, monkeypatch):
    """A pair set of five concepts in two families."""
    for name in ("inverted", "sepia"):
        edit = tiny.CONCEPTS[name]
        monkeypatch.setitem(tiny.CONCEPTS, f"{name}_pale", lambda photo, edit=edit: 0.97 * edit(photo))
    monkeypatch.setitem(tiny.CONCEPTS, "sepia_dark", lambda photo: 0.97 * tiny.CONCEPTS["sepia"](photo) - 0.02)
    names = ("inverted", "inverted_pale", "sepia", "sepia_pale", "sepia_dark")
    return make_pair_set(tmp_path / "families", concepts=names)


@pytest.fixture
def seen(monkeypatch):
    """The pictures that features were computed of."""
    pictures, forward = [], EfficientNetLite0Features.forward

    def recorded(self, images):
        pictures.extend(images)
        return forward(self, images)

    monkeypatch.setattr(EfficientNetLite0Features, "forward", recorded)
    return pictures


def test_photos_stand_for_the_planted_clusters(coloured, tmp_path, seen, capsys):
    picks = select("photos", coloured, tmp_path / "photos.txt", "--count=3")
    assert "3 of 12 photos written to" in capsys.readouterr().out
    assert sorted(int(name[-7:-4]) % 3 for name in picks) == [0, 1, 2]
    data = opened(coloured)
    assert set(picks) <= names_of(data, "train")
    # each training photo once, whatever its concepts, and no other
    wanted = torch.cat([batch for batch, _ in data.photos("train")])
    assert len(seen) == len(wanted) == 12
    assert torch.equal(torch.stack(seen), wanted)
    assert select("photos", coloured, tmp_path / "again.txt", "--count=3") == picks
    assert (tmp_path / "again.txt").read_bytes() == (tmp_path / "photos.txt").read_bytes()


@pytest.mark.parametrize("method", ["kmeans", "random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_photos_are_never_named(pair_set, tmp_path, method, seed):
    picks = select("photos", pair_set, tmp_path / "photos.txt", "--count=8", f"--method={method}", f"--seed={seed}")
    assert set(picks) == names_of(opened(pair_set, seed=seed), "train")


def test_random_photos_follow_their_seed(pair_set, tmp_path, seen):
    chosen = [
        select("photos", pair_set, tmp_path / "p.txt", "--count=4", "--method=random", f"--choice_seed={seed}")
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert not seen
    text = (tmp_path / "p.txt").read_text()
    for line in ("# method: random", "# features: none", "# choice_seed: 1", "# seed: 0", "# count: 4 of 8"):
        assert f"{line}\n" in text


def test_photos_of_an_aligned_folder(tmp_path):
    for split, count in {"train": 5, "val": 2, "test": 1}.items():
        (tmp_path / "maps" / split).mkdir(parents=True)
        for index, photo in enumerate(tiny.real_photos(count, 32)):
            to_image(torch.cat((photo, -photo), dim=2)).save(tmp_path / "maps" / split / f"{index}.png")
    picks = select("photos", tmp_path / "maps", tmp_path / "photos.txt", "--count=5", "--size=32")
    assert picks == [f"train/{index}.png" for index in range(5)]
    with pytest.raises(SystemExit, match=r"64x32, below the 256 px asked for|32x32, below the 256 px asked for"):
        select("photos", tmp_path / "maps", tmp_path / "photos.txt", "--count=5")


def test_concepts_stand_for_their_families(families, tmp_path, seen):
    picks = select("concepts", families, tmp_path / "concepts.txt", "--count=2")
    assert [name.split("_")[0] for name in picks] == ["inverted", "sepia"]
    data = opened(families)
    assert len(seen) == len(data.datasets["train"]) == 5 * 8  # no edit of a held-out photo
    assert torch.equal(torch.stack(seen), torch.cat([batch for batch, _ in data.edits("train")]))
    text = (tmp_path / "concepts.txt").read_text()
    assert f"# pair set: {data.set_hash}\n" in text
    assert "mean over 8 training photos\n" in text
    select("concepts", families, tmp_path / "again.txt", "--count=3")
    assert len(seen) == 40  # kept for the next choice


def test_concepts_of_candidates(families, tmp_path):
    words = ["--candidates=[inverted,sepia_dark]", "--count=2"]
    assert select("concepts", families, tmp_path / "concepts.txt", *words) == ["inverted", "sepia_dark"]
    words = [f"--candidates={tmp_path / 'concepts.txt'}", "--count=1", "--method=random"]
    assert select("concepts", families, tmp_path / "one.txt", *words)[0] in {"inverted", "sepia_dark"}


def keep_pairs(root, keep):
    lines = (root / "pairs.jsonl").read_text().splitlines(keepends=True)
    (root / "pairs.jsonl").write_text("".join(line for line in lines if keep(json.loads(line))))


def test_concepts_are_averaged_over_the_same_photos(pair_set, tmp_path, monkeypatch):
    train = sorted(names_of(opened(pair_set), "train"))
    keep_pairs(pair_set, lambda pair: pair["concept"] == "inverted" or pair["photo_file_name"] not in train[:3])
    given = []
    monkeypatch.setattr("pocketgan.selection.nearest_to_centres", lambda *arguments: given.append(arguments) or [0])
    select("concepts", pair_set, tmp_path / "concepts.txt", "--count=1")
    dataset, extractor = opened(pair_set).datasets["train"], EfficientNetLite0Features()
    for concept, row in zip(("inverted", "sepia"), given[0][0], strict=True):
        edits = [
            item["edit"]
            for item, pair in zip(dataset, dataset.pairs, strict=True)
            if pair.concept == concept and pair.photo.relative_to(pair_set).as_posix() in train[3:]
        ]
        assert len(edits) == 5
        pictures = torch.stack(edits).permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(row, extractor(pictures).mean(0), atol=1e-4, rtol=1e-4)


def test_concepts_without_a_common_photo_are_refused(pair_set, tmp_path, seen):
    train = sorted(names_of(opened(pair_set), "train"))
    keep_pairs(pair_set, lambda pair: (pair["photo_file_name"] in train[:3]) == (pair["concept"] == "inverted"))
    with pytest.raises(SystemExit, match=r"every candidate \(inverted has 3, sepia has 5\)"):
        select("concepts", pair_set, tmp_path / "concepts.txt", "--count=1")
    assert not seen
    assert not (tmp_path / "concepts.txt").exists()


def test_concepts_by_their_prompts(families, tmp_path, monkeypatch, seen):
    class Planted:
        def __init__(self, model):
            assert model == "openai/clip"

        def __call__(self, concepts, prompts):
            assert prompts == [f"make it {concept}" for concept in concepts]
            centres = torch.tensor([[[5.0, 0], [0, 0]] if "pale" in prompt else [[0, 5], [0, 0]] for prompt in prompts])
            return centres + torch.arange(len(prompts))[:, None, None] * 0.01

    monkeypatch.setattr("pocketgan.text.CLIPTextEncoder", Planted)
    picks = select("concepts", families, tmp_path / "concepts.txt", "--count=2", "--text_encoder=openai/clip")
    assert sorted("pale" in name for name in picks) == [False, True]
    assert not seen
    assert "# features: of the prompts by openai/clip" in (tmp_path / "concepts.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("photos", ["--count=9"], "count is 9, but there are 8 photos on the training side to choose from; .* 1 to 8"),
        ("photos", ["--count=0"], "count is 0, but there are 8 photos"),
        ("photos", ["--count=2", "--concepts=[mosaic]"], "unknown concept mosaic; .* holds inverted, sepia"),
        ("photos", ["--count=2", "--size=64"], "32x32, below the 64 px asked for; set size to 32"),
        ("concepts", ["--count=3"], "count is 3, but there are 2 candidates to choose from; give a count of 1 to 2"),
        ("concepts", ["--count=1", "--candidates=sepia"], "selection file sepia does not exist; .* in brackets"),
        ("concepts", ["--count=1", "--method=random", "--text_encoder=x"], "a random choice reads no prompts"),
        ("concepts", ["--count=1", "--text_encoder=./nothing"], "text encoder './nothing' could not be loaded"),
    ],
)
def test_refusals(pair_set, tmp_path, seen, kind, words, message):
    with pytest.raises(SystemExit, match=f"pocketgan select {kind}: .*{message}"):
        select(kind, pair_set, tmp_path / "picks.txt", *words)
    assert not (tmp_path / "picks.txt").exists()
    assert not seen


def test_a_command_of_two_words(capsys):
    for words in (["select"], ["select", "--help"]):
        main(words)
        shown = capsys.readouterr().out
        assert re.findall(r"\n  (\w+ \w+) ", shown) == ["select concepts", "select photos"]
        assert shown.startswith("usage: pocketgan select COMMAND ...")
    with pytest.raises(SystemExit, match=r"pocketgan: select paint is no command\n[^$]*\n  select photos "):
        main(["select", "paint"])
    with pytest.raises(SystemExit, match="pocketgan: sel is no command"):
        main(["sel", "photos"])
    with pytest.raises(SystemExit) as stop:
        main(["select", "photos", "--count=3"])
    assert stop.value.code == 2
    assert "usage: pocketgan select photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [("picks.txt", "picks.txt"), ("[inverted,sepia]", ["inverted", "sepia"]), ("null", None)],
)
def test_concepts_as_file_or_list(given, expected, capsys):
    with pytest.raises(SystemExit):
        main(["fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", "--data.concepts", given, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["concepts"] == expected


def test_a_training_takes_both_files(pair_set, tmp_path):
    select("concepts", pair_set, tmp_path / "concepts.txt", "--count=1")
    select("photos", pair_set, tmp_path / "photos.txt", "--count=4")
    files = {"concepts": str(tmp_path / "concepts.txt"), "training_photos": str(tmp_path / "photos.txt")}
    run = fit_base(pair_set, tmp_path / "run", *(f"--data.{name}={file}" for name, file in files.items()))
    assert load_run(run).concepts == read_selection(tmp_path / "concepts.txt")
    arguments = config_of(run)["data"]["init_args"]
    assert {name: arguments[name] for name in files} == files
    main(["test", f"-c={run / 'config.yaml'}"])
    fit_base(pair_set, run, *(f"--data.{name}={file}" for name, file in files.items()), "--ckpt_path=last")
    with pytest.raises(ValueError, match="held out here: training on it would leak"):
        fit_base(pair_set, tmp_path / "other", f"--data.training_photos={files['training_photos']}", "--data.seed=3")
