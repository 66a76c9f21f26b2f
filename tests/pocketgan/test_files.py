import errno
import hashlib
import os

import pytest

from pocketgan.files import TEMPORARY_SUFFIX, remove_temporaries, sha256_of, whole_files, write_whole


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")],
)
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, number, remedy):
    def fail(_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=remedy) as caught:
        write_whole(path, b"new")
    assert caught.value.errno == number
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_removes_the_temporary_file(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_temporaries_of_killed_processes_are_removed(tmp_path):
    left = tmp_path / "folder" / f".file.1{TEMPORARY_SUFFIX}"
    left.parent.mkdir()
    left.touch()
    kept = tmp_path / "folder" / "file"
    kept.touch()
    remove_temporaries(tmp_path)
    assert kept.exists()
    assert not left.exists()


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert sha256_of(path) == hashlib.sha256(b"content").hexdigest()


def test_files_of_a_library_come_whole_and_others_stay(tmp_path):
    target = tmp_path / "run" / "result"
    for content in ("first", "second"):
        with whole_files(target) as folder:
            (folder / "part").mkdir()
            (folder / "part" / "weights").write_text(content)
        assert (target / "part" / "weights").read_text() == content
        (target / "notes").write_text("the user's own")
    assert (target / "notes").read_text() == "the user's own"
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_files_that_a_library_did_not_finish_are_dropped(tmp_path):
    target = tmp_path / "result"
    with whole_files(target) as folder:
        (folder / "weights").write_text("old")

    def breaks_off():
        with whole_files(target) as folder:
            (folder / "weights").write_text("new")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        breaks_off()
    assert (target / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_of_killed_processes_are_removed(tmp_path):
    left = tmp_path / f".result.abc{TEMPORARY_SUFFIX}"
    (left / "part").mkdir(parents=True)
    (left / "part" / "weights").write_text("half")
    remove_temporaries(tmp_path)
    assert not list(tmp_path.iterdir())
