"""What a run folder says about the end of its training."""

import json
from datetime import UTC, datetime

import pytest
from signals import signal_in_step
from tiny import TINY_CONFIGS, fit_base
from two_ranks import fit_on_two_ranks

from lightning_modules import BaseGAN


def ended(run):
    return json.loads((run / "ended.json").read_text())


def told(run):
    found = ended(run)
    return found["by"], found["reason"], found["images"]


def tracking(**options):
    return f"--early_stopping={json.dumps({'class_path': 'LossTrackingEarlyStopping', 'init_args': options})}"


def breaking_at(monkeypatch, images, error):
    step = BaseGAN.training_step

    def broken(self, *args):
        if self.images_seen == images:
            raise error
        step(self, *args)

    monkeypatch.setattr(BaseGAN, "training_step", broken)


def test_the_budget(trained):
    assert told(trained["base"]) == ("ImageBudget", "the budget of 24 images is used up", 24)
    when = datetime.fromisoformat(ended(trained["base"])["time"])
    assert 0 <= (datetime.now(UTC) - when).total_seconds() < 24 * 3600


def test_the_clock(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--budget.hours=1e-9")
    assert told(run) == ("ImageBudget", "1e-09 hours are over: 4 of 24 images", 4)


def test_early_stopping_leaves_what_it_followed(pair_set, tmp_path):
    words = ("--budget.images=400", "--trainer.val_check_interval=4", tracking(window=4, threshold=0.1, images=3))
    run = fit_base(pair_set, tmp_path / "run", *words)
    by, reason, images = told(run)
    assert by == "LossTrackingEarlyStopping"
    assert reason.startswith("the variance of the last 4 values is 0.0")
    assert reason.endswith("of that of all, below 0.1")
    trace = json.loads((run / "loss_tracking.json").read_text())
    assert (trace["images_seen"], trace["batch_images"]) == (images, 4)
    first = ended(run)
    fit_base(pair_set, run, *words, "--ckpt_path=last")  # a stopped run stays stopped, and says so again
    assert {**ended(run), "time": ""} == {**first, "time": ""}


def test_lightnings_early_stopping(pair_set, tmp_path):
    stops = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/reconstruction", "stopping_threshold": 100.0},
    }
    run = fit_base(pair_set, tmp_path / "run", f"--early_stopping={json.dumps(stops)}")
    by, reason, images = told(run)
    assert (by, images) == ("EarlyStopping", 12)
    assert "Stopping threshold reached: val/reconstruction" in reason


def test_lightnings_own_limits(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--trainer.max_epochs=1", "--budget.images=400")
    assert told(run)[:2] == ("Trainer", "max_epochs, max_steps or max_time is reached")


def test_an_error_and_the_resume_after_it(pair_set, tmp_path, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        breaking_at(patch, 16, OSError("the disk is gone"))
        with pytest.raises(OSError, match="the disk is gone"):
            fit_base(pair_set, tmp_path / "run")
    run = tmp_path / "run"
    assert told(run) == ("OSError", "broken off: the disk is gone", 16)
    step = BaseGAN.training_step

    def looking(self, *args):
        seen.append((run / "ended.json").exists())
        step(self, *args)

    monkeypatch.setattr(BaseGAN, "training_step", looking)
    fit_base(pair_set, run, "--ckpt_path=last")
    assert seen == [False] * 3
    assert told(run) == ("ImageBudget", "the budget of 24 images is used up", 24)


def test_a_resume_that_is_refused_leaves_the_earlier_end(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run")
    before = ended(run)
    with pytest.raises(ValueError, match="the checkpoint is of another architecture"):
        fit_base(pair_set, run, "--ckpt_path=last", "--model.generator.init_args.width=16")
    assert ended(run) == before


def test_a_refused_start_leaves_no_folder(pair_set, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("not so")

    monkeypatch.setattr("callbacks.LossTrackingEarlyStopping.on_train_start", refuse)
    with pytest.raises(ValueError, match="not so"):
        fit_base(pair_set, tmp_path / "run", tracking(window=4, threshold=0.1))
    assert not (tmp_path / "run" / "ended.json").exists()


def test_an_alarm(pair_set, tmp_path, monkeypatch):
    step = BaseGAN.training_step

    def broken(self, *args):
        step(self, *args)
        self.generator_ema.head[-2].bias.data.fill_(float("nan"))

    monkeypatch.setattr(BaseGAN, "training_step", broken)
    with pytest.raises(RuntimeError, match="alarm at 12 images"):
        fit_base(pair_set, tmp_path / "run")
    by, reason, images = told(tmp_path / "run")
    assert (by, images) == ("RuntimeError", 12)
    assert reason.startswith("broken off: alarm at 12 images: generator")


def test_a_requeue(pair_set, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    signal_in_step(monkeypatch)
    with pytest.raises(SystemExit):
        fit_base(pair_set, tmp_path / "run")
    assert told(tmp_path / "run") == ("Requeue", "SIGUSR1; start it again with --ckpt_path last", 4)


def test_a_dry_run_leaves_none(pair_set, tmp_path):
    with pytest.raises(SystemExit):
        fit_base(pair_set, tmp_path / "run", "--dry-run")
    assert not (tmp_path / "run" / "ended.json").exists()


def test_a_full_disk_is_a_warning(pair_set, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("callbacks.run_end.write_into_run", full)
    with pytest.warns(UserWarning, match="the end of this run is not noted: no space left"):
        fit_base(pair_set, tmp_path / "run")


def test_rank_0_writes(pair_set, tmp_path):
    words = [
        "fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", f"--data.root={pair_set}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    note = (
        "import callbacks.run_end as end\n"
        "write = end.write_into_run\n"
        f"end.write_into_run = lambda *a: (open(r'{tmp_path}/written.txt', 'a').write('once '), write(*a))"
    )
    fit_on_two_ranks(tmp_path, words, kept="model.images_seen", before=note, strategy="ddp_find_unused_parameters_true")
    assert told(tmp_path / "run") == ("ImageBudget", "the budget of 24 images is used up", 24)
    assert (tmp_path / "written.txt").read_text() == "once "


def test_a_start_that_has_nothing_to_train_changes_nothing(pair_set, tmp_path, capsys):
    run = fit_base(pair_set, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "ended.json", "environment.json")}
    capsys.readouterr()
    fit_base(pair_set, run, "--ckpt_path=last", "--samples.pictures=3")
    assert "the budget of 24 images is used up: nothing is trained, and the config stays" in capsys.readouterr().out
    assert before == {name: (run / name).read_bytes() for name in before}
