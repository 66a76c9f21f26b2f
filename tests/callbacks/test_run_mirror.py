"""Copies of a run at a URL: made, kept in step, gone back to, never in the way."""

import shutil
from pathlib import Path

import fsspec
import pytest
from checkpoints import assert_same, state
from tiny import fit_base

from callbacks import RunMirror


@pytest.fixture
def url():
    """A folder of a file system that is no disk."""
    files = fsspec.filesystem("memory")
    yield "memory://bucket/runs/base"
    files.rm("/bucket", recursive=True)


def mirrored(url):
    files = fsspec.filesystem("memory")
    return {file.removeprefix("/bucket/runs/base/"): files.cat_file(file) for file in files.find("/bucket/runs/base")}


def test_a_lost_folder_goes_on_from_its_copy(pair_set, tmp_path, url):
    first = fit_base(pair_set, tmp_path / "first", "--budget.images=12", f"--mirror.url={url}")
    found = mirrored(url)
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints/last.ckpt"} <= found.keys()
    assert found == {
        file.relative_to(first).as_posix(): file.read_bytes()
        for file in first.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    shutil.rmtree(first)
    fit_base(pair_set, first, "--budget.images=24", f"--mirror.url={url}", "--ckpt_path=last")
    whole = fit_base(pair_set, tmp_path / "whole", "--budget.images=24")
    assert_same(state(first), state(whole))
    assert mirrored(url)["checkpoints/last.ckpt"] == (first / "checkpoints" / "last.ckpt").read_bytes()


def test_it_keeps_another_run_and_a_newer_folder(pair_set, tmp_path, url):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12", f"--mirror.url={url}")
    with pytest.raises(FileExistsError, match=r"memory://bucket/runs/base holds a run already; go on with it by --ck"):
        fit_base(pair_set, tmp_path / "other", f"--mirror.url={url}")
    assert not (tmp_path / "other").exists()
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    RunMirror(url).fetch(run, resumes=True)
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_copy_that_fails_is_a_warning_and_comes_later(pair_set, tmp_path, url, monkeypatch):
    put, failed = type(fsspec.filesystem("memory")).put_file, []

    def once(self, local, remote, **options):
        if not failed:
            failed.append(remote)
            raise OSError("the service is away")
        put(self, local, remote, **options)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", once)
    with pytest.warns(UserWarning, match="does not have the last checkpoint, the training goes on.*service is away"):
        run = fit_base(pair_set, tmp_path / "run", f"--mirror.url={url}")
    assert mirrored(url)["checkpoints/last.ckpt"] == (run / "checkpoints" / "last.ckpt").read_bytes()


def test_what_is_no_url(pair_set, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        fit_base(pair_set, tmp_path / "run", "--mirror.url=nowhere://bucket")
    with pytest.raises(ValueError, match=r"checkpoint.dirpath is s3://bucket; .* --mirror.url keeps a copy"):
        fit_base(pair_set, tmp_path / "run", "--checkpoint.dirpath=s3://bucket")
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_are_gone_are_gone_there_too(tmp_path):
    run, there = tmp_path / "run", tmp_path / "there"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("a.ckpt", "last.ckpt"):
        (run / "checkpoints" / name).write_text(name)
    mirror = RunMirror(str(there))
    mirror._copy_changed(run)
    assert sorted(file.name for file in there.rglob("*.ckpt")) == ["a.ckpt", "last.ckpt"]
    (run / "checkpoints" / "a.ckpt").unlink()
    mirror._copy_changed(run)
    assert [Path(file).name for file in there.rglob("*") if file.is_file()] == ["last.ckpt"]
