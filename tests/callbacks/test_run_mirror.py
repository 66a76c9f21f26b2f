"""Copies of a run at a URL: made, kept in step, gone back to, never in the way."""

import io
import json
import shutil

import fsspec
import pytest
import torch
from checkpoints import assert_same, state, weights
from signals import signal_in_step
from tiny import fit_base

ROOT = "/bucket/copies"


@pytest.fixture
def url():
    """A folder of a file system that is no disk."""
    files = fsspec.filesystem("memory")
    yield f"memory:/{ROOT}"
    files.rm("/bucket", recursive=True)


def mirrored(run="run"):
    files, root = fsspec.filesystem("memory"), f"{ROOT}/{run}/"
    return {file.removeprefix(root): files.cat_file(file) for file in files.find(root)}


def local(run):
    return {
        file.relative_to(run).as_posix(): file.read_bytes()
        for file in run.rglob("*")
        if file.is_file() and not file.name.startswith(".") and file.relative_to(run).parts[0] != "wandb"
    }


def images(run):
    return json.loads(mirrored(run)["mirror.json"])["images"]


def test_a_lost_folder_goes_on_from_its_copy(pair_set, tmp_path, url):
    words = (f"--mirror.url={url}", "--logging.wandb=offline")
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12", *words)
    copy = mirrored()
    assert json.loads(copy.pop("mirror.json")) == {"images": 12}
    assert {"config.yaml", "metrics.csv", "checkpoints/last.ckpt", "wandb.json", "ended.json"} <= copy.keys()
    assert copy == local(run)
    identity = json.loads((run / "wandb.json").read_text())["id"]
    shutil.rmtree(run)
    fit_base(pair_set, run, "--budget.images=24", *words, "--ckpt_path=last")
    assert json.loads((run / "wandb.json").read_text())["id"] == identity
    whole = fit_base(pair_set, tmp_path / "whole", "--budget.images=24")
    assert_same(state(run), state(whole))
    copy = mirrored()
    assert json.loads(copy.pop("mirror.json")) == {"images": 24}
    assert copy == local(run)


def test_the_newer_checkpoint_counts(pair_set, tmp_path, url):
    """A folder that another machine has left behind is fetched anew; one that is ahead of its copy is kept."""
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12", f"--mirror.url={url}")
    behind = shutil.copytree(run, tmp_path / "behind")
    fit_base(pair_set, run, "--budget.images=24", f"--mirror.url={url}", "--ckpt_path=last")
    newest = (run / "checkpoints" / "last.ckpt").read_bytes()
    shutil.rmtree(run)
    behind.rename(run)
    fit_base(pair_set, run, "--budget.images=24", f"--mirror.url={url}", "--ckpt_path=last")
    assert weights(run)["images_seen"] == 24
    assert torch.load(io.BytesIO(newest), weights_only=True)["images_seen"] == 24
    ahead = fit_base(pair_set, run, "--budget.images=36", "--ckpt_path=last")
    assert images("run") == 24
    fit_base(pair_set, ahead, "--budget.images=48", f"--mirror.url={url}", "--ckpt_path=last")
    assert images("run") == 48


def test_runs_do_not_meet_at_one_url(pair_set, tmp_path, url):
    fit_base(pair_set, tmp_path / "a", "--budget.images=12", f"--mirror.url={url}", "--ckpt_path=last")
    fit_base(pair_set, tmp_path / "b", "--budget.images=16", f"--mirror.url={url}", "--ckpt_path=last")
    assert (images("a"), images("b")) == (12, 16)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileExistsError, match=r"holds a run a already; go on with it by --ckpt_path last, or give"):
        fit_base(pair_set, tmp_path / "a", f"--mirror.url={url}")
    assert not (tmp_path / "a").exists()


def test_a_copy_that_fails_is_a_warning_and_comes_later(pair_set, tmp_path, url, monkeypatch):
    put, failed = type(fsspec.filesystem("memory")).put_file, []

    def once(self, local, remote, **options):
        if not failed:
            failed.append(remote)
            raise OSError("the service is away")
        put(self, local, remote, **options)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", once)
    with pytest.warns(UserWarning, match="checkpoint was not copied to .*, the training goes on: the service is away"):
        run = fit_base(pair_set, tmp_path / "run", f"--mirror.url={url}")
    assert mirrored()["checkpoints/last.ckpt"] == (run / "checkpoints" / "last.ckpt").read_bytes()


def test_a_job_is_queued_again_once_its_checkpoint_is_there(pair_set, tmp_path, url, monkeypatch):
    found = []
    monkeypatch.setattr("callbacks.requeue.requeue_job", lambda: found.append(images("run")) or "123")
    signal_in_step(monkeypatch, 16)
    with pytest.raises(SystemExit):
        fit_base(pair_set, tmp_path / "run", f"--mirror.url={url}")
    assert found == [20]


def test_what_is_gone_is_gone_there_too_also_after_a_restart(pair_set, tmp_path, url):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12", f"--mirror.url={url}")
    (run / "adapter").mkdir()
    (run / "adapter" / "old").write_text("old")
    fit_base(pair_set, run, "--budget.images=24", f"--mirror.url={url}", "--ckpt_path=last")
    assert "adapter/old" in mirrored()
    (run / "adapter" / "old").unlink()
    fit_base(pair_set, run, "--budget.images=36", f"--mirror.url={url}", "--ckpt_path=last")
    assert "adapter/old" not in mirrored()


def test_what_cannot_be_mirrored(pair_set, tmp_path):
    with pytest.raises(ValueError, match=r"--mirror.url nowhere://bucket: .*nowhere; give s3://, gs://"):
        fit_base(pair_set, tmp_path / "run", "--mirror.url=nowhere://bucket")
    with pytest.raises(ValueError, match=r"--mirror.url is s3:/bucket; a URL has two slashes"):
        fit_base(pair_set, tmp_path / "run", "--mirror.url=s3:/bucket")
    with pytest.raises(ImportError, match=r"--mirror.url gs://bucket: .*gcsfs.* \(`pip install s3fs`"):
        fit_base(pair_set, tmp_path / "run", "--mirror.url=gs://bucket")
    with pytest.raises(ValueError, match=r"checkpoint.dirpath is s3://bucket; .* --mirror.url keeps a copy"):
        fit_base(pair_set, tmp_path / "run", "--checkpoint.dirpath=s3://bucket")
    with pytest.raises(ValueError, match=r"--mirror.url copies .*run, and checkpoint.dirpath is .*elsewhere; leave it"):
        fit_base(
            pair_set, tmp_path / "run", f"--checkpoint.dirpath={tmp_path / 'elsewhere'}", "--mirror.url=memory://bucket"
        )
    assert not (tmp_path / "run").exists()
