"""Pair sets in other tools' layouts, and back."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import real_photos

from datamodules import PairedImages
from pocketgan import files
from pocketgan.cli import main
from pocketgan.images import to_image
from pocketgan.pair_chunks import PairChunks, read_conversion
from pocketgan.pair_convert import export_pairs, import_converted, kind_of
from pocketgan.pair_set import read_manifest, read_pairs, set_hash
from pocketgan.pair_set_writer import PairSetWriter

LAYOUTS = ("aligned", "imagefolder", "litdata")
SPLIT = (0.5, 0.25, 0.25)


def lines_of(root, **changes):
    return [json.loads(line) | changes for line in (root / "pairs.jsonl").read_text().splitlines()]


def write_lines(root, lines):
    (root / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("to", LAYOUTS)
def test_there_and_back_is_the_same_set(pair_set, tmp_path, to):
    lines = lines_of(pair_set)
    for line in lines:
        line |= {"source": f"{line['id'][:-1]}.jpg", "seed": 3}  # two photos, of 10 crops and of 2
    write_lines(pair_set, lines)
    assert export_pairs(pair_set, tmp_path / "out", to, split=(0.5, 0.5, 0)) == 24
    assert kind_of(tmp_path / "out") == to
    assert import_converted(tmp_path / "out", tmp_path / "back") == 24
    assert set_hash(tmp_path / "back") == set_hash(pair_set)
    for file in ("manifest.json", "pairs.jsonl"):
        assert (tmp_path / "back" / file).read_bytes() == (pair_set / file).read_bytes()
    assert import_converted(tmp_path / "out", tmp_path / "back") == 24


def test_aligned_is_pix2pix_and_split_as_ours(pair_set, tmp_path):
    assert export_pairs(pair_set, tmp_path / "sepia", "aligned", ["sepia"], SPLIT, seed=2) == 12
    ours, theirs = (PairedImages(root, ["sepia"], 32, split=SPLIT, seed=2) for root in (pair_set, tmp_path / "sepia"))
    for data in (ours, theirs):
        data.setup("fit")
    for split in ("train", "val", "test"):
        assert [pair.photo.name for pair in theirs.datasets[split].pairs] == [
            pair.photo.name for pair in ours.datasets[split].pairs
        ]
        assert (tmp_path / "sepia" / split).is_dir()
        for one, other in zip(ours.datasets[split], theirs.datasets[split], strict=True):
            assert all((one[side] == other[side]).all() for side in ("photo", "edit"))


def test_aligned_of_several_concepts_has_a_folder_for_each(pair_set, tmp_path):
    export_pairs(pair_set, tmp_path / "out", "aligned", split=SPLIT)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"inverted", "sepia", "conversion.json"}
    data = PairedImages(tmp_path / "out", size=32)
    data.setup("fit")
    assert data.prompts == {"inverted": "inverted", "sepia": "sepia"}
    sides = [{pair.photo.name for pair in dataset.pairs} for dataset in data.datasets.values()]
    assert [len(side) for side in sides] == [6, 3, 3]
    assert len(set.union(*sides)) == 12


def test_imagefolder_loads_with_hugging_face(pair_set, tmp_path):
    import datasets

    # datasets looks for a split's name in those of files and folders
    lines = lines_of(pair_set)
    lines[0]["concept"] = "style_test"
    lines[0] |= {"seed": 1, "dropped": None}
    (pair_set / "edits" / "style_test").mkdir()
    moved = f"edits/style_test/{lines[0]['id']}.png"
    (pair_set / lines[0]["edit_file_name"]).rename(pair_set / moved)
    lines[0]["edit_file_name"] = moved
    lines[1]["dropped"] = "blurred"
    write_lines(pair_set, lines)

    out = tmp_path / "out"
    assert export_pairs(pair_set, out, "imagefolder", split=SPLIT) == 23
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    rows = {(row["concept"], row["id"]): row for split in loaded.values() for row in split}
    assert sum(len(split) for split in loaded.values()) == len(rows) == 23
    for pair in read_pairs(pair_set):
        row = rows[pair.concept, pair.id]
        assert row["prompt"] == pair.prompt
        assert (np.asarray(row["photo"]) == pixels(pair_set / pair.photo_file_name)).all()
        assert (np.asarray(row["edit"]) == pixels(pair_set / pair.edit_file_name)).all()
    data = PairedImages(pair_set, size=32, split=SPLIT)
    data.setup("fit")
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert set(loaded[theirs]["id"]) == {pair.photo.stem for pair in data.datasets[ours].pairs}
    # linked, not copied
    assert any(file.stat().st_nlink == 2 for file in out.rglob("*.png"))


def test_the_set_itself_loads_with_hugging_face(pair_set, tmp_path):
    import datasets

    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(pair_set), metadata_filenames=["pairs.jsonl"], cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded["train"]) == 24
    assert {"photo", "edit", "concept", "prompt"} <= set(loaded["train"].column_names)


def test_files_are_copied_where_links_are_not_to_be_had(pair_set, tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export_pairs(pair_set, tmp_path / "out", "imagefolder")
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "out").rglob("*.png"))
    assert import_converted(tmp_path / "out", tmp_path / "back") == 24


@pytest.mark.parametrize("to", LAYOUTS)
def test_a_conversion_is_whole_or_not_there(pair_set, tmp_path, monkeypatch, to):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="the disk is full"):
            export_pairs(pair_set, tmp_path / "out", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs"]
    (tmp_path / ".out.incomplete").mkdir()  # of a killed one
    (tmp_path / ".out.incomplete" / "half.png").touch()
    export_pairs(pair_set, tmp_path / "out", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs"]


def test_a_full_disk_while_litdata_writes(pair_set, tmp_path, monkeypatch):
    from litdata.streaming import Cache

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Cache, "done", full)
    with pytest.raises(OSError, match="the disk is full"):
        export_pairs(pair_set, tmp_path / "out", "litdata")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs"]


def test_a_read_only_place(pair_set, tmp_path, monkeypatch):
    def read_only(self, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.Path, "mkdir", read_only)
    with pytest.raises(OSError, match="the file system is read-only; choose a folder that can be written"):
        export_pairs(pair_set, tmp_path / "out", "aligned")


def test_a_folder_that_holds_something_else(pair_set, tmp_path):
    out = tmp_path / "out"
    export_pairs(pair_set, out, "aligned")
    stamp = (out / "conversion.json").stat().st_mtime_ns
    assert export_pairs(pair_set, out, "aligned") == 24
    assert (out / "conversion.json").stat().st_mtime_ns == stamp
    for changes in ({"to": "litdata"}, {"seed": 1}, {"concepts": ["sepia"]}):
        with pytest.raises(FileExistsError, match="holds something else; choose a new or empty folder"):
            export_pairs(pair_set, out, **{"to": "aligned"} | changes)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    export_pairs(pair_set, thesis, "litdata")  # an empty one is as good as none
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    with pytest.raises(FileExistsError, match="holds something else"):
        export_pairs(pair_set, tmp_path / "other", "litdata")


def test_two_conversions_at_once(pair_set, tmp_path):
    refused = pytest.raises(BlockingIOError, match=r"being written by another process, which holds .*\.out\.lock")
    with files.whole_folder(tmp_path / "out"), refused:
        export_pairs(pair_set, tmp_path / "out", "aligned")
    assert export_pairs(pair_set, tmp_path / "out", "aligned") == 24


def test_sets_that_cannot_be_converted(pair_set, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"unknown concept mosaic; .* holds inverted, sepia"):
        export_pairs(pair_set, out, "aligned", ["mosaic"])
    whole = (pair_set / "pairs.jsonl").read_bytes()
    write_lines(pair_set, lines_of(pair_set, dropped="blurred"))
    with pytest.raises(ValueError, match=r"holds no pairs that can be used \(24 were dropped\)"):
        export_pairs(pair_set, out, "litdata")
    (pair_set / "pairs.jsonl").write_bytes(whole)
    (pair_set / "journal-1.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="is at work or was broken off; run the same `pocketgan predict` to its end"):
        export_pairs(pair_set, out, "imagefolder")
    (pair_set / "journal-1.jsonl").unlink()
    edit = pair_set / "edits" / "sepia" / "photo-003.png"
    edit.write_bytes(b"other")
    with pytest.raises(ValueError, match="is not the file that was written"):
        export_pairs(pair_set, out, "litdata")
    edit.unlink()
    with pytest.raises(FileNotFoundError, match=r"is missing, pairs\.jsonl names it"):
        export_pairs(pair_set, out, "aligned")
    assert not out.exists()


def test_an_address_to_write_to_is_refused(pair_set):
    with pytest.raises(SystemExit, match="is in object storage; convert to a local folder, then copy it there"):
        main(["pairs", "convert", str(pair_set), "--to=litdata", "--out=s3://bucket/set"])
    assert not Path("s3:").exists()


def test_an_empty_set(tmp_path, pair_set):
    settings = {key: value for key, value in read_manifest(pair_set).items() if key not in {"format", "hash"}}
    PairSetWriter(tmp_path / "empty", settings).close()
    with pytest.raises(ValueError, match=r"holds no pairs that can be used \(0 were dropped\)"):
        export_pairs(tmp_path / "empty", tmp_path / "out", "aligned")


def foreign_aligned(root, width=32):
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        for number, photo in enumerate(real_photos(2, 32)):
            both = Image.new("RGB", (2 * width, 32))
            both.paste(to_image(photo), (0, 0))
            both.paste(to_image(-photo), (width, 0))
            both.save(root / split / f"{number + 1}.png")
    return root


def test_a_foreign_aligned_folder(tmp_path):
    source = foreign_aligned(tmp_path / "facades")
    assert import_converted(source, tmp_path / "set", {"facades": "a facade"}) == 6
    pairs = read_pairs(tmp_path / "set")
    assert {(pair.concept, pair.prompt) for pair in pairs} == {("facades", "a facade")}
    assert sorted(pair.id for pair in pairs)[:2] == ["test_1", "test_2"]
    both = pixels(source / "test" / "1.png")
    first = next(pair for pair in pairs if pair.id == "test_1")
    assert (pixels(tmp_path / "set" / first.photo_file_name) == both[:, :32]).all()
    assert (pixels(tmp_path / "set" / first.edit_file_name) == both[:, 32:]).all()
    manifest = read_manifest(tmp_path / "set")
    assert (manifest["teacher"], manifest["size"]) == ({"name": "aligned"}, 32)
    assert import_converted(source, tmp_path / "small", size=16) == 6
    assert read_manifest(tmp_path / "small")["size"] == 16


def test_foreign_aligned_folders_that_cannot_be_read(tmp_path):
    source = foreign_aligned(tmp_path / "facades")
    with pytest.raises(ValueError, match="prompts name maps; the concepts are facades"):
        import_converted(source, tmp_path / "set", {"maps": "a map"})
    Image.new("RGB", (65, 32)).save(source / "train" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png is 65 px wide; photo and edit side by side need an even width"):
        import_converted(source, tmp_path / "set")
    Image.new("RGB", (96, 40)).save(source / "train" / "3.png")
    with pytest.raises(ValueError, match="photo train_3 is 48×40, another 32×32; give the side of the squares"):
        import_converted(source, tmp_path / "other")


def foreign_imagefolder(root, rows):
    (root / "pictures").mkdir(parents=True)
    for number, photo in enumerate(real_photos(2, 32)):
        to_image(photo).save(root / "pictures" / f"{number}.png")
        to_image(-photo).save(root / "pictures" / f"{number} inverted.png")
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def row_of(number, **columns):
    names = {"photo_file_name": f"pictures/{number}.png", "edit_file_name": f"pictures/{number} inverted.png"}
    return names | columns


def test_a_foreign_imagefolder(tmp_path):
    source = foreign_imagefolder(tmp_path / "mine", [row_of(0, prompt="invert it"), row_of(1, prompt="invert it")])
    assert kind_of(source) == "imagefolder"
    assert import_converted(source, tmp_path / "set") == 2
    pairs = read_pairs(tmp_path / "set")
    assert [(pair.id, pair.concept, pair.prompt) for pair in pairs] == [
        ("pictures_0", "mine", "invert it"),
        ("pictures_1", "mine", "invert it"),
    ]
    assert (pixels(tmp_path / "set" / pairs[1].edit_file_name) == pixels(source / "pictures" / "1 inverted.png")).all()


def test_foreign_imagefolders_that_cannot_be_read(tmp_path):
    several = foreign_imagefolder(tmp_path / "several", [row_of(0, prompt="a"), row_of(1, prompt="b")])
    with pytest.raises(ValueError, match="concept several has several prompts, such as 'a' and 'b'"):
        import_converted(several, tmp_path / "set")
    other = foreign_imagefolder(tmp_path / "other", [{"file_name": "pictures/0.png", "text": "a"}])
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1 names no pair .*photo_file_name and edit_file_name"):
        import_converted(other, tmp_path / "set")
    twice = foreign_imagefolder(tmp_path / "twice", [row_of(0), row_of(0)])
    with pytest.raises(ValueError, match="two pictures would both be called twice/pictures_0"):
        import_converted(twice, tmp_path / "set")
    (several / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no pairs: none of manifest\.json .* metadata\.jsonl"):
        kind_of(several)
    unequal = foreign_imagefolder(tmp_path / "unequal", [row_of(0)])
    Image.new("RGB", (40, 32)).save(unequal / "pictures" / "0 inverted.png")
    with pytest.raises(ValueError, match="edit unequal of pictures_0 is 40×32, its photo 32×32"):
        import_converted(unequal, tmp_path / "set")


def test_a_litdata_folder_of_something_else(pair_set, tmp_path):
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no conversion\.json, so pocketgan did not write it"):
        import_converted(tmp_path / "chunks", tmp_path / "set")
    out = tmp_path / "out"
    export_pairs(pair_set, out, "litdata")
    next(out.glob("*.bin")).unlink()
    with pytest.raises(FileNotFoundError, match=r"chunk-0-0\.bin is missing, index\.json names it"):
        PairChunks(str(out), tmp_path / "cache").read(0)
    whole = (out / "conversion.json").read_bytes()
    (out / "conversion.json").write_bytes(whole.replace(b"converted pairs 1", b"converted pairs 9"))
    with pytest.raises(ValueError, match="its format is 'pocketgan converted pairs 9', this version reads"):
        read_conversion(out)
    (out / "conversion.json").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"conversion\.json cannot be read"):
        read_conversion(out)
    export_pairs(pair_set, tmp_path / "aligned", "aligned")
    with pytest.raises(FileNotFoundError, match="holds no litdata chunks"):
        PairChunks(str(tmp_path / "aligned"), tmp_path / "cache")


def test_the_command(pair_set, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    main(["pairs", "convert", str(pair_set), "--to=litdata", f"--out={out}", "--concepts=[sepia]"])
    assert f"{out} holds 12 pairs of {pair_set} as litdata; train on it with --data" in capsys.readouterr().out
    main(["pairs", "convert", str(out), f"--out={back}"])
    assert f"{back} holds 12 pairs of {out} (litdata)" in capsys.readouterr().out
    assert {pair.concept for pair in read_pairs(back)} == {"sepia"}
    with pytest.raises(SystemExit, match="is a pair set; say what to make of it: --to imagefolder, aligned"):
        main(["pairs", "convert", str(pair_set), f"--out={back}"])
    with pytest.raises(SystemExit, match="is litdata; make it a pair set first"):
        main(["pairs", "convert", str(out), "--to=aligned", f"--out={tmp_path / 'aligned'}"])
    shutil.rmtree(out)
    with pytest.raises(SystemExit, match="holds no pairs: none of"):
        main(["pairs", "convert", str(out), f"--out={back}"])
