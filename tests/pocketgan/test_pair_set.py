import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from pocketgan.files import TEMPORARY_SUFFIX, sha256_of
from pocketgan.pair_set import complete_pairs, is_unfinished, read_manifest, read_pairs, set_hash
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter, check_settings

IDS = ("b", "a", "c")


def settings(*concepts, **changes):
    return {
        "teacher": {"name": "test", "sizes": (1, 2)},
        "photos": {"size": 8},
        "size": 8,
        "image_format": "png",
        "seed": 0,
        "versions": {"torch": "1"},
        "concepts": {concept: {"prompt": f"make it {concept}"} for concept in concepts},
        **changes,
    }


def edited(photo_id, concept, **changes):
    photo = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(ord(photo_id))) * 2 - 1
    fields = {"photo": photo, "edit": -photo, "seed": 7, "source": f"{photo_id}.jpg", **changes}
    return EditedPhoto(id=photo_id, concept=concept, prompt=f"make it {concept}", **fields)


def make(root, concepts=("x", "y"), ids=IDS, rank=0, **changes):
    writer = PairSetWriter(root, settings(*concepts, **changes), rank)
    writer.write(edited(photo_id, concept) for photo_id in ids for concept in concepts)
    return writer


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_set_is_as_designed(tmp_path):
    make(tmp_path).close()
    pairs = read_pairs(tmp_path)
    assert [(pair.concept, pair.id) for pair in pairs] == [(concept, name) for concept in "xy" for name in "abc"]
    assert pairs[0].photo_file_name == "photos/a.png"
    assert pairs[0].edit_file_name == "edits/x/a.png"
    for pair in pairs:
        assert sha256_of(tmp_path / pair.photo_file_name) == pair.photo_sha256
        assert sha256_of(tmp_path / pair.edit_file_name) == pair.edit_sha256
        assert (pair.seed, pair.source, pair.prompt) == (7, f"{pair.id}.jpg", f"make it {pair.concept}")
    manifest = read_manifest(tmp_path)
    assert manifest["concepts"]["x"] == {"prompt": "make it x"}
    assert len(list((tmp_path / "photos").iterdir())) == 3
    assert not list(tmp_path.glob("journal-*"))
    line = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert "scores" not in line


def test_jpeg_is_written_without_chroma_subsampling(tmp_path):
    make(tmp_path, image_format="jpeg").close()
    pair = read_pairs(tmp_path)[0]
    assert pair.edit_file_name == "edits/x/a.jpg"
    with Image.open(tmp_path / pair.edit_file_name) as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_the_set_does_not_depend_on_interruptions_order_or_processes(tmp_path):
    make(tmp_path / "whole").close()

    make(tmp_path / "resumed", ids="b").close(merge=False)
    make(tmp_path / "resumed", ids="cb").close(merge=False)
    make(tmp_path / "resumed", ids="abc").close()

    first = make(tmp_path / "two", ids="c")
    second = make(tmp_path / "two", ids="ab", rank=1)
    assert (tmp_path / "two" / "journal-1.jsonl").exists()
    second.close()
    first.close()

    assert content(tmp_path / "whole") == content(tmp_path / "resumed") == content(tmp_path / "two")


def test_a_killed_synthesis_is_readable_and_resumed(tmp_path):
    make(tmp_path / "whole").close()
    root = tmp_path / "killed"
    # What a kill leaves: complete lines, a torn one, an edit without its line, a temporary file.
    make(root, ids="ab").close(merge=False)
    journal = root / "journal-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    (root / "photos" / f".c.png.1{TEMPORARY_SUFFIX}").write_bytes(b"half")
    assert len(read_pairs(root)) == 3

    writer = PairSetWriter(root, settings("x", "y"))
    assert writer.concepts_by_id() == {"a": {"x", "y"}, "b": {"x"}}
    writer.write(edited(photo_id, concept) for photo_id in IDS for concept in "xy")
    writer.close()
    assert content(root) == content(tmp_path / "whole")


def test_a_pair_whose_file_is_gone_is_made_again(tmp_path):
    make(tmp_path).close()
    before = content(tmp_path)
    (tmp_path / "edits" / "x" / "a.png").unlink()
    writer = PairSetWriter(tmp_path, settings("x", "y"))
    assert writer.concepts_by_id()["a"] == {"y"}
    writer.write([edited("a", "x")])
    writer.close()
    assert content(tmp_path) == before


def test_a_set_grows_and_changes_its_hash(tmp_path):
    make(tmp_path, concepts=("x",), ids="a").close()
    hashes = {set_hash(tmp_path)}
    make(tmp_path, concepts=("x",), ids="b").close()
    hashes.add(set_hash(tmp_path))
    make(tmp_path, concepts=("y",), ids="a").close()
    hashes.add(set_hash(tmp_path))
    assert len(hashes) == 3
    assert set(read_manifest(tmp_path)["concepts"]) == {"x", "y"}
    assert len(read_pairs(tmp_path)) == 3


def test_dropped_pairs_are_left_out_but_not_made_again(tmp_path):
    make(tmp_path).close()
    path = tmp_path / "pairs.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "dropped": "blurred"}), *rest]) + "\n")
    assert len(read_pairs(tmp_path)) == 5
    assert len(read_pairs(tmp_path, include_dropped=True)) == 6
    writer = PairSetWriter(tmp_path, settings("x", "y"))
    assert len(writer.pairs) == 6
    writer.close()


def test_other_settings_are_refused_by_name(tmp_path):
    make(tmp_path).close()
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"seed: the set has 0, this run 1\n  size: the set has 8, this run 16"):
        PairSetWriter(tmp_path, settings("x", seed=1, size=16))
    with pytest.raises(
        ValueError, match=r'settings:\n  concepts\.x\.prompt: the set has "make it x", this run "another"\nuse'
    ):
        PairSetWriter(tmp_path, settings(concepts={"x": {"prompt": "another"}}))
    teacher = {"name": "test", "sizes": (1, 2), "scheduler": {"steps": 4}, "lora": "x" * 100}
    with pytest.raises(ValueError, match="was made with other settings") as refusal:
        PairSetWriter(tmp_path, settings("x", teacher=teacher))
    assert str(refusal.value).splitlines()[1:-1] == [
        f'  teacher.lora: the set has none, this run "{"x" * 79}…',
        '  teacher.scheduler: the set has none, this run {"steps": 4}',
    ]
    with pytest.raises(ValueError, match=r"  teacher\.sizes: the set has \[1, 2\], this run \[1, 3\]\nuse"):
        PairSetWriter(tmp_path, settings("x", teacher={"name": "test", "sizes": (1, 3)}))
    with pytest.raises(ValueError, match="  and 9 more\nuse its settings"):
        PairSetWriter(tmp_path, settings("x", photos={f"setting {number}": 0 for number in range(20)}))
    assert content(tmp_path) == before
    make(tmp_path).close()


def test_a_set_without_pairs_holds_no_one_to_its_settings(tmp_path):
    """A run that was refused before its first pair leaves one."""
    make(tmp_path, ids=()).close()
    make(tmp_path, ("z",), seed=1).close()
    manifest = read_manifest(tmp_path)
    assert (manifest["seed"], list(manifest["concepts"])) == (1, ["z"])
    with pytest.raises(ValueError, match="seed: the set has 1, this run 0"):
        make(tmp_path, ("z",))


def test_other_versions_are_only_warned_of(tmp_path):
    make(tmp_path).close()
    before = content(tmp_path)
    with pytest.warns(UserWarning, match="begun with"):
        make(tmp_path, versions={"torch": "2"}).close()
    assert content(tmp_path) == before


def test_a_second_writer_is_refused(tmp_path):
    writer = make(tmp_path)
    with pytest.raises(RuntimeError, match=r"another process, which holds .*\.writer\.lock"):
        PairSetWriter(tmp_path, settings("x"))
    writer.close()
    make(tmp_path).close()


def test_a_file_system_without_locks_is_explained(tmp_path, monkeypatch):
    def no_locks(self, blocking):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("pocketgan.files.FileLock.acquire", no_locks)
    with pytest.raises(OSError, match=r"\.writer\.lock cannot be locked: the file system has no locks; mount it"):
        make(tmp_path)


def test_a_read_only_place_is_explained(tmp_path, monkeypatch):
    def read_only(self, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pocketgan.pair_set.Path.mkdir", read_only)
    with pytest.raises(OSError, match="the file system is read-only; choose a folder that can be written"):
        make(tmp_path / "set")


def test_settings_are_checked_without_writing(tmp_path):
    check_settings(tmp_path, settings("x"))
    assert not list(tmp_path.iterdir())
    make(tmp_path).close()
    before = content(tmp_path)
    check_settings(tmp_path, settings("x", "z"))
    with pytest.raises(ValueError, match="seed: the set has 0, this run 1"):
        check_settings(tmp_path, settings("x", seed=1))
    assert content(tmp_path) == before
    assert set(complete_pairs(tmp_path)) == {(concept, name) for concept in "xy" for name in IDS}


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the settings lack teacher"):
        PairSetWriter(tmp_path, {key: value for key, value in settings("x").items() if key != "teacher"})
    with pytest.raises(ValueError, match="'gif' is not one of png, jpeg"):
        PairSetWriter(tmp_path, settings("x", image_format="gif"))
    with pytest.raises(ValueError, match="concept 'van gogh' cannot name a file"):
        PairSetWriter(tmp_path, settings("van gogh"))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.doc").touch()
    for refuse in (PairSetWriter, check_settings):
        with pytest.raises(ValueError, match="choose a new or empty folder"):
            refuse(tmp_path, settings("x"))


def test_bad_pairs_are_refused(tmp_path):
    writer = make(tmp_path)
    with pytest.raises(ValueError, match=r"id '\.\./a' cannot name a file"):
        writer.write([edited("d", "x")._replace(id="../a")])
    with pytest.raises(ValueError, match="differ in shape"):
        writer.write([edited("d", "x", edit=torch.zeros(3, 4, 4))])
    with pytest.raises(ValueError, match="another photo under the id a"):
        writer.write([edited("a", "z", photo=torch.zeros(3, 8, 8))])
    writer.close()


def test_broken_sets_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a pair set"):
        read_pairs(tmp_path)
    make(tmp_path).close()
    path = tmp_path / "pairs.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "a"')
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 7 is not a pair"):
        read_pairs(tmp_path)
    path.write_bytes(whole.replace(b'"seed"', b'"sead"', 1))
    with pytest.raises(ValueError, match=r"line 1 is not a pair .*sead"):
        read_pairs(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "journal-0.jsonl").write_bytes(b"torn\n" + whole)
    with pytest.raises(ValueError, match=r"journal-0\.jsonl, line 1"):
        read_pairs(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="has format None"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_manifest(tmp_path)


def test_several_threads_write_one_set(tmp_path):
    make(tmp_path / "one").close()
    writer = PairSetWriter(tmp_path / "several", settings("x", "y"))
    with ThreadPoolExecutor(6) as pool:
        pairs = [[edited(photo_id, concept)] for photo_id in IDS for concept in "xy"]
        list(pool.map(writer.write, pairs))
    writer.close()
    assert content(tmp_path / "several") == content(tmp_path / "one")


def test_a_writer_whose_closing_failed_touches_the_set_no_more(tmp_path, monkeypatch):
    writer = make(tmp_path, "x", "a")
    with monkeypatch.context() as patch:
        patch.setattr("pocketgan.pair_set_writer.replace_pairs", _full)
        with pytest.raises(OSError, match="No space left"):
            writer.close()
    other = make(tmp_path, "xy", "a")
    writer.close()
    other.write([edited("b", "y")])
    other.close()
    assert [(pair.concept, pair.id) for pair in read_pairs(tmp_path)] == [("x", "a"), ("y", "a"), ("y", "b")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_journal_that_cannot_be_written_names_the_remedy_and_lets_go_of_the_set(tmp_path):
    def write():
        with PairSetWriter(tmp_path, settings("x")) as writer:
            (tmp_path / "journal-0.jsonl").symlink_to("/dev/full")
            writer.write([edited("a", "x")])

    with pytest.raises(OSError, match="the disk is full"):
        write()
    (tmp_path / "journal-0.jsonl").unlink()
    make(tmp_path, "x").close()
    assert len(read_pairs(tmp_path)) == 3


def test_a_set_is_unfinished_until_a_writer_closes_it_in_good_order(tmp_path):
    make(tmp_path, "x", "a").close(merge=False)
    assert is_unfinished(tmp_path)
    PairSetWriter(tmp_path, settings("x")).close(merge=False)  # merges when it opens
    assert is_unfinished(tmp_path)
    make(tmp_path, "x").close()
    assert not is_unfinished(tmp_path)


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_licence_that_was_not_known_is_noted_later(tmp_path):
    for licence, kept in (("unknown", "unknown"), ("mit", "mit"), ("unknown", "mit")):
        make(tmp_path, "x", "a", origin={"model": "m", "licence": licence}).close()
        assert read_manifest(tmp_path)["origin"] == {"model": "m", "licence": kept}


@pytest.mark.parametrize("files_before_full", range(7))
def test_a_disk_that_fills_up_leaves_whole_files_and_can_be_resumed(tmp_path, monkeypatch, files_before_full):
    make(tmp_path / "whole").close()
    writer = PairSetWriter(tmp_path / "full", settings("x", "y"))
    fsync, calls = os.fsync, []

    def fail_later(descriptor):
        calls.append(descriptor)
        if len(calls) > files_before_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_later)
        with pytest.raises(OSError, match="the disk is full"):
            writer.write(edited(photo_id, concept) for photo_id in IDS for concept in "xy")
    writer.close(merge=False)
    for pair in read_pairs(tmp_path / "full"):
        assert sha256_of(tmp_path / "full" / pair.edit_file_name) == pair.edit_sha256
    make(tmp_path / "full").close()
    assert content(tmp_path / "full") == content(tmp_path / "whole")
