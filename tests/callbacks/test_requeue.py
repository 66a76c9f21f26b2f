"""A run that a cluster takes from its node."""

import os
import signal
import stat

import pytest
import torch
from checkpoints import assert_same, state
from signals import signal_in_step
from tiny import fit_base

from callbacks import ImageBudget, Requeue
from callbacks.requeue import requeue_job
from lightning_modules import PairedGAN


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A SLURM that notes what it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked.txt"}\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "asked.txt"


@pytest.mark.parametrize("images", [4, 12, 20])
def test_a_signal_in_the_middle_of_a_step_resumes_bit_for_bit(
    pair_set, tmp_path, monkeypatch, scontrol, images, capsys
):
    """At the first batch, at one that is followed by a validation, and between two."""
    whole = fit_base(pair_set, tmp_path / "whole")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    with monkeypatch.context() as patch:
        signal_in_step(patch, images - 4)
        with pytest.raises(SystemExit) as left:
            fit_base(pair_set, tmp_path / "parts", "--ckpt_path=last")
    assert left.value.code == 0
    assert scontrol.read_text() == "requeue 123\n"
    assert "job 123 is back in the queue" in capsys.readouterr().out
    stored = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["images_seen"] == images
    fit_base(pair_set, tmp_path / "parts", "--ckpt_path=last")
    assert_same(state(tmp_path / "parts"), state(whole))
    # validations come at the same images
    sheets = [sorted(file.name for file in (run / "samples").iterdir()) for run in (whole, tmp_path / "parts")]
    assert sheets[0] == sheets[1]
    figures = [(run / "metrics.csv").read_text().splitlines()[-1] for run in (whole, tmp_path / "parts")]
    columns = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    quality = [place for place, name in enumerate(columns) if name.startswith("val/")]
    assert [figures[0].split(",")[place] for place in quality] == [figures[1].split(",")[place] for place in quality]


def test_without_slurm_the_exit_says_try_again(pair_set, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    signal_in_step(monkeypatch)
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as left:
        fit_base(pair_set, tmp_path / "run")
    assert left.value.code == 75
    assert "start it again with --ckpt_path last" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) is before


def test_early_stopping_counts_each_batch_once(pair_set, tmp_path, monkeypatch, scontrol):
    """What is saved between two batches holds nothing of the next."""
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    words = (
        "--early_stopping=LossTrackingEarlyStopping", "--early_stopping.window=2", "--early_stopping.threshold=1e-12",
        "--early_stopping.every_n_batches=1",
    )  # fmt: skip
    whole = fit_base(pair_set, tmp_path / "whole", *words)
    step = PairedGAN.train_discriminators

    def called(self, *args):
        if self.images_seen == 8:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PairedGAN, "train_discriminators", called)
        with pytest.raises(SystemExit):
            fit_base(pair_set, tmp_path / "parts", *words)
    fit_base(pair_set, tmp_path / "parts", *words, "--ckpt_path=last")
    found, expected = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["LossTrackingEarlyStopping"]
        for run in (tmp_path / "parts", whole)
    )
    clocks = [name for name in expected if "seconds" in name]
    for kept in (found, expected):
        for name in clocks:
            del kept[name]
    assert_same(found, expected)


def test_an_array_job_has_two_numbers(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue_job() == "7_3"
    assert scontrol.read_text() == "requeue 7_3\n"


def test_without_slurm_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue_job() is None


def test_a_slurm_that_refuses_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="`scontrol requeue 123` failed .*submit the job again"):
        assert requeue_job() is None


def test_hours_end_a_start_with_a_checkpoint(pair_set, tmp_path, capsys):
    run = fit_base(pair_set, tmp_path / "run", "--budget.hours=1e-9")
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["images_seen"] == 4
    assert "hours are over: 4 of 24 images; go on with --ckpt_path last" in capsys.readouterr().out
    fit_base(pair_set, run, "--ckpt_path=last")
    whole = fit_base(pair_set, tmp_path / "whole")
    assert_same(state(run), state(whole))


def test_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match="check_batches is 0"):
        Requeue(0)
    with pytest.raises(ValueError, match="budget of 0 hours"):
        ImageBudget(8, hours=0)
