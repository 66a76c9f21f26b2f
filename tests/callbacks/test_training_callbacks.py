"""What watches a training: samples, quality, speed, alarms, the bar, and the folder's lock."""

import csv
import io
import json
from types import SimpleNamespace

import pytest
import torch
from checkpoints import assert_same, state, weights
from filelock import FileLock
from PIL import Image
from rich.console import Console
from tiny import TINY_CONFIGS, config_of, fit_adapter, fit_base
from tiny_gan import fit_unpaired, make_image_folder
from two_ranks import fit_on_two_ranks

from callbacks import ImageProgressBar, ImageQuality, SampleGrid, ThroughputMonitor, TrainingAlarm
from lightning_modules import BaseGAN, LoRAAdaptation, PairedGAN
from pocketgan.cli import main
from pocketgan.losses import HingeLoss, LeastSquaresLoss, NonSaturatingLoss

TRAINED = "--alarm.untrained_images=0"


def rows(run, column):
    with (run / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def sheets(run):
    return sorted(file.name for file in (run / "samples").glob("*.png"))


def test_quality_is_measured_by_images(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--image_quality.every_images=8", "--data.batch_size=2")
    with (run / "metrics.csv").open() as file:
        measured = [float(row["images"]) for row in csv.DictReader(file) if row["val/reconstruction"]]
    assert measured == [8, 16, 24]
    assert rows(run, "val/images_per_concept") == [2, 2, 2]
    assert rows(run, "val/measured_images") == [4, 4, 4]
    assert sheets(run) == [f"images_{images:08d}.png" for images in (8, 16, 24)]


def test_an_interval_is_whole_batches(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--image_quality.every_images=6")
    assert sheets(run) == [f"images_{images:08d}.png" for images in (8, 16, 24)]


def test_samples_are_always_of_the_same_photos_and_change_nothing(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--samples.pictures=2")
    none = fit_base(pair_set, tmp_path / "none", "--samples.pictures=0")
    assert_same(state(run), state(none))
    assert not (none / "samples").exists()
    found = []
    for name in sheets(run):
        with Image.open(run / "samples" / name) as sheet:
            found.append(sheet.convert("RGB"))
    first, last = found[0], found[-1]
    assert first.size == (3 * (32 + 6) + 6, 26 + 2 * (32 + 6))
    photos_and_teacher = (0, 0, 2 * (32 + 6) + 6, first.height)
    assert first.crop(photos_and_teacher).tobytes() == last.crop(photos_and_teacher).tobytes()
    assert first.tobytes() != last.tobytes()


def test_gans_without_photos_show_real_and_made(tmp_path):
    run = fit_unpaired(make_image_folder(tmp_path / "images"), tmp_path / "run", "--budget.images=12")
    with Image.open(run / "samples" / sheets(run)[-1]) as sheet:
        assert sheet.width == 2 * (32 + 6) + 6


def test_speed_is_logged_with_the_end_in_sight(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--trainer.log_every_n_steps=2")
    speed, waited, left = (
        rows(run, f"speed/{name}") for name in ("images_per_second", "data_wait_share", "hours_left")
    )
    assert len(speed) == 3
    assert min(speed) > 0
    assert 0 <= min(waited) <= max(waited) < 1
    # float32 in the log
    assert left == pytest.approx([(24 - seen) / one / 3600 for seen, one in zip((8, 16, 24), speed, strict=True)])


def test_validations_do_not_count_as_training_time(monkeypatch):
    clock = iter((0.0, 1.0, 3.0, 100.0, 101.0, 103.0))
    monkeypatch.setattr("callbacks.throughput_monitor.time.perf_counter", lambda: next(clock))
    logged = {}
    module = SimpleNamespace(images_seen=0, log_dict=logged.update)
    trainer = SimpleNamespace(
        log_every_n_steps=2, callbacks=[], strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    with pytest.MonkeyPatch.context():
        monitor = ThroughputMonitor.__new__(ThroughputMonitor)
        monitor._figures = {}
        monitor._restart(0)  # 0
        monitor.on_train_batch_start(trainer, module, None, 0)  # 1 second of waiting
        module.images_seen = 4
        monitor.on_train_batch_end(trainer, module, None, None, 1)  # 2 of work
        monitor.on_validation_end(trainer, module)  # 97 of validation
        monitor.on_train_batch_start(trainer, module, None, 1)  # 1 of waiting
        module.images_seen = 8
        clock_end = iter((103.0, 103.0))
        monkeypatch.setattr("callbacks.throughput_monitor.time.perf_counter", lambda: next(clock_end))
        monitor.on_train_batch_end(trainer, module, None, None, 1)  # 2 of work
    assert logged == {"speed/images_per_second": 8 / 6, "speed/data_wait_share": 2 / 6}


@pytest.fixture
def broken(monkeypatch):
    """Break the generator at the second batch after so many images, once."""

    def breaking(images, value):
        step, done = PairedGAN.training_step, []

        def broken_step(self, batch, index):
            step(self, batch, index)
            if self.images_seen == images and not done:
                done.append(True)
                with torch.no_grad():
                    for network in (self.generator, self.generator_ema):
                        network.head[-2].weight.fill_(0.0)
                        network.head[-2].bias.fill_(value)

        monkeypatch.setattr(BaseGAN, "training_step", broken_step)

    return breaking


def test_what_is_no_number_ends_the_run_and_leaves_the_last_good_checkpoint(pair_set, tmp_path, broken):
    broken(20, float("nan"))
    with pytest.raises(
        RuntimeError, match=r"alarm at 24 images: .* is not a number; it is kept as .*alarm.ckpt. Start"
    ):
        fit_base(pair_set, tmp_path / "run")
    run = tmp_path / "run"
    assert weights(run)["images_seen"] == 12
    assert all(value.isfinite().all() for value in weights(run)["state_dict"].values() if value.is_floating_point())
    kept = torch.load(run / "checkpoints" / "alarm.ckpt", weights_only=True)
    assert kept["images_seen"] == 24


@pytest.mark.filterwarnings("ignore:alarm at 24 images")
@pytest.mark.parametrize(("value", "told"), [(-30.0, "every picture is black"), (0.3, "pictures are of one colour")])
def test_collapse_is_told_and_goes_on(pair_set, tmp_path, broken, value, told):
    broken(12, value)
    with pytest.warns(UserWarning, match=f"alarm at 12 images: {told}.*the training goes on"):
        fit_base(pair_set, tmp_path / "run", "--model.generator_optimizer.lr=1e-9", TRAINED)
    assert weights(tmp_path / "run")["images_seen"] == 24


def test_rolling_back_takes_the_last_good_weights_with_lower_rates(pair_set, tmp_path, broken):
    broken(20, float("nan"))
    with pytest.warns(
        UserWarning, match=r"alarm at 24 images: .*; back to .*last.ckpt with 0.5 times the learning rates"
    ):
        fit_base(pair_set, tmp_path / "run", "--alarm.action=roll_back", "--budget.images=36")
    last = weights(tmp_path / "run")
    assert last["images_seen"] == 36
    assert all(value.isfinite().all() for value in last["state_dict"].values() if value.is_floating_point())
    sound = fit_base(pair_set, tmp_path / "sound", "--budget.images=36")
    rates, usual = (
        [group["lr"] for one in each["optimizer_states"] for group in one["param_groups"]]
        for each in (last, weights(sound))
    )
    assert rates == [rate / 2 for rate in usual]
    assert [alarm["images"] for alarm in last["callbacks"]["TrainingAlarm"]["alarms"]] == [24]


def test_ranks_roll_back_together(pair_set, tmp_path):
    """What one rank alone finds sends both back to the file of rank 0."""
    broken_on_one = (
        "import os\n"
        "from lightning_modules import BaseGAN\n"
        "step = BaseGAN.training_step\n"
        "def broken(self, batch, index):\n"
        "    step(self, batch, index)\n"
        "    if self.images_seen == 20 and self.global_rank == 1 and not hasattr(self, 'done'):\n"
        "        self.done = True\n"
        "        self.generator_ema.head[-2].bias.data.fill_(float('nan'))\n"
        "BaseGAN.training_step = broken\n"
    )
    words = [
        "fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", f"--data.root={pair_set}", "--budget.images=36",
        f"--trainer.default_root_dir={tmp_path / 'run'}", "--alarm.action=roll_back",
    ]  # fmt: skip
    kept = "(model.state_dict(), [group['lr'] for group in self.optimizers[0].param_groups])"
    (first, rates), (second, others) = fit_on_two_ranks(
        tmp_path, words, kept, broken_on_one, "ddp_find_unused_parameters_true"
    )
    assert_same(first, second)
    assert rates == others
    assert all(value.isfinite().all() for value in first.values() if value.is_floating_point())
    assert [alarm["images"] for alarm in weights(tmp_path / "run")["callbacks"]["TrainingAlarm"]["alarms"]] == [24]


def test_stop_ends_at_what_warn_only_tells(pair_set, tmp_path, broken):
    broken(12, -30.0)
    with pytest.raises(RuntimeError, match="alarm at 12 images: every picture is black"):
        fit_base(pair_set, tmp_path / "run", "--alarm.action=stop", "--model.generator_optimizer.lr=1e-9", TRAINED)


@pytest.mark.parametrize(
    ("loss", "stuck", "told"),
    [
        (LeastSquaresLoss(), 1e-4, "has told all apart for 100 images (its loss is 1.0e-04): it teaches nothing"),
        (LeastSquaresLoss(), 0.5, "has been fooled for 100 images"),  # one of every picture; a half would cost 0.25
        (HingeLoss(), 4.0, "has been fooled for 100 images"),
        (NonSaturatingLoss(), 2.5, "has been fooled for 100 images"),
    ],
)
def test_a_discriminator_that_teaches_nothing(loss, stuck, told):
    alarm = TrainingAlarm(discriminator_images=100, discriminator_floor=1e-3)
    module = SimpleNamespace(images_seen=0, adversarial_loss=loss)
    answer = torch.zeros(1)
    sound = 0.8 * float(loss.discriminator(answer + 0.5, answer + 0.5))
    found = []
    for images, value in ((0, sound), (50, stuck), (100, stuck), (149, stuck), (150, stuck), (200, stuck)):
        module.images_seen = images
        found.append(alarm._stuck_discriminator(value, module))
    assert [one is not None for one in found] == [False, False, False, False, True, True]
    assert told in found[4]


def test_an_older_runs_alarm_is_taken_up():
    alarm = TrainingAlarm()
    alarm.load_state_dict({"alarms": [{"images": 4, "reason": "old"}], "idle_since": 8})
    assert alarm.state_dict() == {"alarms": [{"images": 4, "reason": "old"}], "stuck": None}


def test_a_sound_run_has_no_alarm_and_the_same_weights(trained):
    """The fixture's runs have the alarm on, and warnings are errors."""
    assert weights(trained["base"])["callbacks"]["TrainingAlarm"] == {"alarms": [], "stuck": None}
    assert config_of(trained["base"])["alarm"]["action"] == "warn"


def test_the_bar_counts_images_up_to_the_budget(pair_set, tmp_path, monkeypatch):
    shown = []
    update = ImageProgressBar._update

    def noted(self, bar, current, *args, **kwargs):
        update(self, bar, current, *args, **kwargs)
        if bar == self.train_progress_bar_id:
            task = self.progress.tasks[bar]
            shown.append((task.completed, task.total, task.description))

    monkeypatch.setattr(ImageProgressBar, "_update", noted)
    monkeypatch.setattr("rich._console", Console(file=io.StringIO()))
    fit_base(
        pair_set, tmp_path / "run", "--trainer.enable_progress_bar=true",
        '--trainer.callbacks=[{"class_path": "ImageProgressBar"}]',
    )  # fmt: skip
    assert [completed for completed, *_ in shown] == [4, 8, 12, 16, 20, 24]
    assert {(total, description) for _, total, description in shown} == {(24, "Images")}


def test_two_processes_in_one_folder(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12")
    with (
        FileLock(run / ".lock"),
        pytest.raises(RuntimeError, match=r"another process trains in .*run; wait for it, stop"),
    ):
        fit_base(pair_set, run, "--ckpt_path=last")
    fit_base(pair_set, run, "--ckpt_path=last")
    assert weights(run)["images_seen"] == 24


def test_a_resumed_run_says_what_it_does_otherwise(pair_set, tmp_path, capsys):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12")
    capsys.readouterr()
    fit_base(pair_set, run, "--ckpt_path=last", "--model.reconstruction_weight=20")
    said = capsys.readouterr().out
    assert "resumed with other settings than" in said
    assert "model.init_args.reconstruction_weight: 30.0 -> 20.0" in said
    assert "budget.images: 12 -> 24" in said
    assert said.count(" -> ") == 2


def test_a_config_of_an_older_version_names_its_key(pair_set, tmp_path, capsys):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12")
    config = (run / "config.yaml").read_text().replace("pictures:", "photographs:")
    (run / "config.yaml").write_text(config)
    with pytest.raises(SystemExit):
        main(["fit", f"-c={run / 'config.yaml'}", "--ckpt_path=last"])
    assert "photographs" in capsys.readouterr().err


def test_ranks_with_other_pairs_are_refused(pair_set, tmp_path):
    differ = (
        "from lightning_modules import BaseGAN\n"
        "import os\n"
        "from callbacks import SaveRunConfig\n"
        "start = SaveRunConfig.on_fit_start\n"
        "def other(self, trainer, module):\n"
        "    trainer.datamodule.set_hash += str(trainer.global_rank)\n"
        "    try:\n"
        "        start(self, trainer, module)\n"
        "    except ValueError as error:\n"
        f"        open(r'{tmp_path}/said' + str(trainer.global_rank), 'w').write(str(error))\n"
        "SaveRunConfig.on_fit_start = other\n"
    )
    words = [
        "fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", f"--data.root={pair_set}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    fit_on_two_ranks(tmp_path, words, before=differ, strategy="ddp_find_unused_parameters_true")
    for rank in range(2):
        assert "ranks see different pair sets" in (tmp_path / f"said{rank}").read_text()


def test_an_adapter_is_watched_too(trained, tmp_path):
    run = fit_adapter(trained["pairs"], trained["base"], tmp_path / "run", "--data.concepts=[sepia]")
    assert sheets(run)
    assert rows(run, "speed/images_per_second")


@pytest.mark.parametrize("every", [1, 100])  # found before a batch, or before the checkpoint
def test_an_adapter_that_is_tracked_rolls_back_too(trained, tmp_path, monkeypatch, every):
    step, done = LoRAAdaptation.training_step, []

    def broken_step(self, batch, index):
        step(self, batch, index)
        if self.images_seen == 20 and not done:
            done.append(True)
            with torch.no_grad():
                for weight in self.parameters():
                    if weight.requires_grad:
                        weight.fill_(float("nan"))

    monkeypatch.setattr(LoRAAdaptation, "training_step", broken_step)
    with pytest.warns(UserWarning, match=r"is (nan|not finite) before batch 7; back to .*last.ckpt with 0.5 times"):
        fit_adapter(
            trained["pairs"], trained["base"], tmp_path / "run", "--data.concepts=[sepia]", "--alarm.action=roll_back",
            f"--early_stopping.every_n_batches={every}", "--early_stopping.window=2", "--early_stopping.threshold=0",
            "--budget.images=36",
        )  # fmt: skip
    last = weights(tmp_path / "run")
    assert last["images_seen"] == 36
    assert all(value.isfinite().all() for value in last["state_dict"].values() if value.is_floating_point())
    assert len(last["callbacks"]["TrainingAlarm"]["alarms"]) == 1
    tracked = json.loads((tmp_path / "run" / "loss_tracking.json").read_text())
    # what was seen of the weights between last.ckpt, at 3 batches, and the roll back is forgotten
    assert tracked["after_batches"] == ([0, 1, 2, 6, 7, 8] if every == 1 else [0])
    assert len(tracked["objective"]) == len(tracked["after_batches"])


def test_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match="samples of -1 pictures"):
        SampleGrid(-1)
    with pytest.raises(ValueError, match="every 0 images"):
        ImageQuality(0)
    with pytest.raises(ValueError, match="rate_factor is 0"):
        TrainingAlarm(rate_factor=0)
    with pytest.raises(ValueError, match="rollbacks is -1"):
        TrainingAlarm(rollbacks=-1)
