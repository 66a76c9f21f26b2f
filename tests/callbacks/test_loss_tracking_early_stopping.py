"""DVAR's rule, what it must not disturb, resume, ranks."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from checkpoints import assert_same, state, weights
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import CONFIGS, TINY_CONFIGS, fit_base, make_pair_set
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import LossTrackingEarlyStopping
from callbacks.loss_tracking_early_stopping import PRESETS, _part
from pocketgan.cli import main
from pocketgan.loss_tracking import values_until_stop, variance_ratio


def tracking(**options):
    """A word of the command line that adds the callback."""
    return f"--early_stopping={json.dumps({'class_path': 'LossTrackingEarlyStopping', 'init_args': options})}"


def curve_of(run):
    return json.loads((run / "loss_tracking.json").read_text())


def test_ratio_by_hand():
    # population variances: of (2, 4) it is 1, of (0, 2, 4) 8/3
    assert variance_ratio(np.array([0.0, 2.0, 4.0]), 2) == pytest.approx(3 / 8)


def test_a_window_that_is_the_whole_history_never_stops():
    history = np.array([5.0, 1.0, 1.0, 1.0])
    assert [variance_ratio(history[:t], 4) for t in range(1, 5)] == [1.0] * 4
    assert variance_ratio(np.append(history, 1.0), 4) == 0.0


def test_a_constant_history_never_stops():
    assert variance_ratio(np.ones(9), 3) == 1.0


def test_a_decay_stops_and_noise_does_not():
    draw, steps = np.random.default_rng(0), np.arange(2000)
    decay = np.exp(-steps / 100) + 0.01 * draw.standard_normal(2000)
    assert 310 < values_until_stop(decay, *PRESETS["textual_inversion"][:2]) < 800
    assert values_until_stop(draw.standard_normal(2000), *PRESETS["textual_inversion"][:2]) is None


class Regression(LightningModule):
    """A line through noisy points, with noise of its own and a norm in each step."""

    def __init__(self, learning_rate=0.05, explode_at=None):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Dropout(0.1))
        self.aside = nn.Parameter(torch.zeros(1))  # in no objective, like a discriminator
        self.learning_rate, self.explode_at = learning_rate, explode_at
        self.frozen_calls = 0

    def loss(self, inputs, targets, noise):
        return ((self.layer(inputs) + noise - targets) ** 2).mean()

    def training_step(self, batch, batch_idx):
        if self.global_step == self.explode_at:
            with torch.no_grad():
                self.layer[0].weight.fill_(torch.inf)
        inputs, targets = batch
        return self.loss(inputs, targets, torch.randn_like(targets))

    def frozen(self, batch):
        self.frozen_calls += 1
        return [*batch, torch.randn_like(batch[1])]

    def deterministic_objective(self, batch):
        return self.loss(*batch)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class Untracked(Regression):
    deterministic_objective = None


def points(count=32):
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def train(folder, callbacks, model=None, data=None, steps=60, **options):
    torch.manual_seed(0)
    model = model or Regression()
    loader = DataLoader(points() if data is None else data, batch_size=4, shuffle=True)
    if options.pop("enable_last", False):
        callbacks = [*callbacks, ModelCheckpoint(folder, save_last=True)]
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit(model, loader, DataLoader(points(4)))
    return model, trainer


def test_the_training_is_the_same_to_the_bit(tmp_path):
    plain, _ = train(tmp_path / "plain", [])
    tracker = LossTrackingEarlyStopping(window=10, threshold=0)
    tracked, _ = train(tmp_path / "tracked", [tracker])
    assert_same(tracked.state_dict(), plain.state_dict())
    assert len(tracker.history) == 60
    assert tracked.frozen_calls == 1


def test_the_run_ends_where_the_rule_says_with_the_weights_of_that_step(tmp_path, capsys):
    full = LossTrackingEarlyStopping(window=10, threshold=0)
    train(tmp_path / "full", [full])
    expected = values_until_stop(np.array(full.history), 10, 0.05)
    assert 10 < expected < 60
    tracker = LossTrackingEarlyStopping(window=10, threshold=0.05)
    stopped, trainer = train(tmp_path / "stopped", [tracker])
    assert trainer.global_step == expected
    assert_same(stopped.state_dict(), train(tmp_path / "short", [], steps=expected)[0].state_dict())
    curve = curve_of(tmp_path / "stopped")
    assert curve["objective"] == list(full.history[:expected])
    assert curve["stopped"]
    assert curve["batches"] == expected
    assert 0 < curve["tracking_seconds"] < curve["seconds"]
    printed = capsys.readouterr().out
    assert f"loss tracking: stopped at batch {expected}: the variance of the last 10 values is" in printed
    assert "did not stop at batch 60" in printed


def test_first_value_is_that_of_the_untrained_weights(tmp_path):
    tracker = LossTrackingEarlyStopping(window=2, threshold=0, images=32)
    torch.manual_seed(0)
    model = Regression().eval()
    inputs, targets = points().tensors
    torch.manual_seed(0)
    expected = model.loss(inputs, targets, torch.randn_like(targets)).item()
    train(tmp_path, [tracker], model)
    assert tracker.history[0] == pytest.approx(expected, rel=1e-6)


def test_every_n_batches_and_few_data(tmp_path):
    tracker = LossTrackingEarlyStopping(window=2, threshold=0, images=9, every_n_batches=7)
    train(tmp_path, [tracker], data=points(4))
    assert len(tracker.history) == 9  # of 60 batches: 0, 7, …, 56
    assert len(tracker._batch[0]) == 9


def test_resume_goes_on_with_the_history(tmp_path):
    whole = LossTrackingEarlyStopping(window=10, threshold=0)
    train(tmp_path / "whole", [whole])
    first = LossTrackingEarlyStopping(window=10, threshold=0)
    _, trainer = train(tmp_path / "first", [first], steps=30)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    stored = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]
    again = LossTrackingEarlyStopping(window=10, threshold=0)
    again.load_state_dict(stored["LossTrackingEarlyStopping"])
    assert list(again.history) == list(whole.history[:30])
    assert again.batches == 30
    with pytest.raises(ValueError, match="tracked with images 8 and would go on with 4"):
        LossTrackingEarlyStopping(window=10, threshold=0, images=4).load_state_dict(stored["LossTrackingEarlyStopping"])


@pytest.mark.extended
def test_gan_is_stopped_resumed_and_left_undisturbed(pair_set, tmp_path):
    """Through the command line: the run with the callback is the run without it, up to its stop."""
    tracked = ("--budget.images=400", "--trainer.val_check_interval=4", tracking(window=4, threshold=0.1, images=3))
    run = fit_base(pair_set, tmp_path / "run", *tracked)
    curve, images = curve_of(run), weights(run)["images_seen"]
    assert curve["stopped"]
    assert 4 * 4 < images < 400
    short = fit_base(pair_set, tmp_path / "short", f"--budget.images={images}", tracked[1])
    assert_same(state(run), state(short))

    broken = fit_base(pair_set, tmp_path / "broken", "--budget.images=24", *tracked[1:])
    fit_base(pair_set, broken, *tracked, "--ckpt_path=last")
    assert curve_of(broken)["objective"] == curve["objective"]
    assert_same(state(broken), state(run))

    fit_base(pair_set, run, *tracked, "--ckpt_path=last")  # a stopped run stays stopped
    assert weights(run)["images_seen"] == images


@pytest.mark.extended
def test_two_processes_stop_at_one_step(tmp_path):
    pairs = make_pair_set(tmp_path / "pairs")
    sgd = '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001}}'
    arguments = (
        "--budget.images=200", "--trainer.val_check_interval=50", "--data.concepts=[sepia]", "--data.batch_size=2",
        f"--model.generator_optimizer={sgd}", f"--model.discriminator_optimizer={sgd}",
        tracking(window=4, threshold=0.5, images=3),
    )  # fmt: skip
    one = fit_base(pairs, tmp_path / "one", *arguments)
    two = tmp_path / "two"
    words = [
        "fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", f"--data.root={pairs}",
        f"--trainer.default_root_dir={two}", *arguments,
        "--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true",
    ]  # fmt: skip
    # as users start it: Lightning starts the second process
    subprocess.run([sys.executable, "-m", "pocketgan", *words], check=True, timeout=300)
    single, double = curve_of(one), curve_of(two)
    assert single["stopped"]
    assert double["batches"] == single["batches"]
    # two halves of a batch add up in another order, which a GAN amplifies
    assert double["objective"] == pytest.approx(single["objective"], rel=0.02)


def test_a_run_that_explodes_stops_and_keeps_finite_weights(tmp_path):
    tracker = LossTrackingEarlyStopping(window=10, threshold=0)
    with pytest.raises(ValueError, match=r"the tracked objective is (nan|inf) before batch 19;"):
        train(tmp_path, [tracker], Regression(explode_at=17), val_check_interval=4, max_epochs=-1)
    [file] = tmp_path.rglob("*.ckpt")
    stored = torch.load(file, weights_only=True)
    assert stored["global_step"] == 16
    assert all(torch.isfinite(value).all() for value in stored["state_dict"].values())


def test_weights_that_exploded_just_before_a_validation_are_not_stored(tmp_path):
    tracker = LossTrackingEarlyStopping(window=10, threshold=0, every_n_batches=1000)
    with pytest.raises(ValueError, match=r"layer\.0\.weight is not finite before batch 21;"):
        train(tmp_path, [tracker], Regression(explode_at=19), val_check_interval=4, max_epochs=-1)
    [file] = tmp_path.rglob("*.ckpt")
    assert torch.load(file, weights_only=True)["global_step"] == 16


def test_other_weights_that_exploded_are_not_stored_either(tmp_path):
    class Aside(Regression):
        def training_step(self, batch, batch_idx):
            if self.global_step == 9:
                with torch.no_grad():
                    self.aside.fill_(torch.nan)
            return super().training_step(batch, batch_idx)

    tracker = LossTrackingEarlyStopping(window=10, threshold=0)
    with pytest.raises(ValueError, match=r"aside is not finite before batch 13; .* holds the weights of the last val"):
        train(tmp_path, [tracker], Aside(), val_check_interval=4, max_epochs=-1, enable_last=True)
    [file] = tmp_path.rglob("last.ckpt")
    assert torch.load(file, weights_only=True)["global_step"] == 8


def test_a_run_that_explodes_before_its_first_checkpoint_says_so(tmp_path):
    tracker = LossTrackingEarlyStopping(window=10, threshold=0)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        train(tmp_path, [tracker], Regression(explode_at=2))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_are_tracked(tmp_path, precision):
    tracker = LossTrackingEarlyStopping(window=10, threshold=0)
    train(tmp_path, [tracker], steps=5, precision=precision)
    assert len(tracker.history) == 5


def test_ranks_share_what_is_drawn_for_all():
    batch = {"latents": torch.arange(5.0), "prompt": list("abcde"), "pair": [torch.arange(5), "vwxyz"], "scale": 2.0}
    assert _part(batch, range(5)[1::2]) == {
        "latents": pytest.approx(torch.tensor([1.0, 3.0])),
        "prompt": ["b", "d"],
        "pair": [pytest.approx(torch.tensor([1, 3])), "vwxyz"],
        "scale": 2.0,
    }


def test_no_data_is_refused(tmp_path):
    empty = DataLoader(TensorDataset(torch.zeros(0, 2), torch.zeros(0, 1)), batch_size=4)
    trainer = Trainer(
        accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, callbacks=[LossTrackingEarlyStopping("adapter")],
    )  # fmt: skip
    with (
        pytest.warns(UserWarning, match="`CombinedLoader` across ranks is zero"),
        pytest.warns(UserWarning, match="`DataLoader` across ranks is zero"),
        pytest.raises(ValueError, match="the tracked batch is empty"),
    ):
        trainer.fit(Regression(), empty, DataLoader(points(4)))


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give a preset"):
        LossTrackingEarlyStopping(window=3)
    with pytest.raises(ValueError, match="window is 1"):
        LossTrackingEarlyStopping(window=1, threshold=0.1)
    with pytest.raises(ValueError, match="threshold is 1"):
        LossTrackingEarlyStopping("adapter", threshold=1)
    with pytest.raises(ValueError, match="every_n_batches 0"):
        LossTrackingEarlyStopping("adapter", every_n_batches=0)
    with pytest.raises(ValueError, match="every_n_batches is 4, the weights change every 3 batches"):
        train(tmp_path, [LossTrackingEarlyStopping("adapter")], accumulate_grad_batches=3)
    with pytest.raises(TypeError, match="this run trains a Untracked"):
        train(tmp_path, [LossTrackingEarlyStopping("adapter")], Untracked())
    broken = points()
    broken.tensors[0][:] = torch.nan
    with pytest.raises(ValueError, match="tracked batch holds numbers that are not finite"):
        train(tmp_path, [LossTrackingEarlyStopping("adapter")], data=broken)


def test_a_window_beyond_the_budget_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="it has 60 batches, the window spans 80"):
        train(tmp_path, [LossTrackingEarlyStopping(window=80, threshold=0.1)], steps=60)


def test_presets_are_those_of_the_paper():
    assert {name: PRESETS[name] for name in ("textual_inversion", "custom_diffusion", "dreambooth_lora")} == {
        "textual_inversion": (310, 0.15, 1),
        "custom_diffusion": (180, 0.15, 1),
        "dreambooth_lora": (440, 0.4, 1),
    }
    tracker = LossTrackingEarlyStopping("custom_diffusion", threshold=0.2)
    assert (tracker.window, tracker.threshold, tracker.every_n_batches) == (180, 0.2, 1)
    assert LossTrackingEarlyStopping("adapter", every_n_batches=2).every_n_batches == 2


@pytest.mark.parametrize("file", sorted((CONFIGS / "lora_adaptation").glob("*.yaml")), ids=lambda file: file.stem)
def test_adaptations_track_their_loss(file):
    tracking = {"class_path": "LossTrackingEarlyStopping", "init_args": {"preset": "adapter"}}
    assert yaml.safe_load(file.read_text())["early_stopping"] == tracking


def test_the_group_is_changed_and_switched_off_by_itself(trained, tmp_path):
    words = [
        "fit", f"-c={CONFIGS / 'lora_adaptation' / 'small.yaml'}", f"--data.root={trained['pairs']}",
        f"--model.base={trained['base']}", "--data.concepts=[sepia]", "--data.size=32", "--data.batch_size=2",
        "--data.split=[0.5,0.25,0.25]", "--budget.images=16", "--trainer.val_check_interval=4",
        "--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    changed = ["--early_stopping.window=2", "--early_stopping.every_n_batches=1"]
    for name, more in (("on", changed), ("off", ["--early_stopping=null"])):
        main([*words, f"--trainer.default_root_dir={tmp_path / name}", *more])
        assert (tmp_path / name / "adapter").is_dir()  # the other callbacks are there
    curve = curve_of(tmp_path / "on")
    assert (curve["window"], curve["threshold"], curve["every_n_batches"]) == (2, 3e-5, 1)
    assert not (tmp_path / "off" / "loss_tracking.json").exists()
    main(["test", f"-c={tmp_path / 'on' / 'config.yaml'}"])  # warnings are errors: the checkpoint has its state


def test_a_run_that_began_without_tracking_says_so(pair_set, tmp_path, capsys):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=8")
    with pytest.warns(UserWarning, match="has seen 8 images without loss tracking; its history begins here"):
        fit_base(pair_set, run, "--budget.images=16", "--ckpt_path=last", tracking(window=9, threshold=0))
    assert (
        "did not stop at batch 2 (16 images): it needs more than 9 values, and there were 2;" in capsys.readouterr().out
    )


def test_the_group_takes_what_may_end_a_run(pair_set, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit_base(pair_set, tmp_path / "run", "--early_stopping=RichProgressBar")
    assert "early_stopping" in capsys.readouterr().err
    stops = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/reconstruction"}}
    fit_base(pair_set, tmp_path / "run", f"--early_stopping={json.dumps(stops)}", "--budget.images=8")


def test_a_rank_search_in_front_is_no_part_of_the_history(trained, tmp_path):
    run = tmp_path / "run"
    main(
        [
            "fit", f"-c={TINY_CONFIGS / 'lora_adaptation' / 'rank_search.yaml'}", f"--data.root={trained['pairs']}",
            f"--model.base={trained['base']}", f"--trainer.default_root_dir={run}", "--data.concepts=[sepia]",
            "--budget.images=48", tracking(window=2, threshold=0, images=3),
        ]
    )  # fmt: skip
    searched = json.loads((run / "rank_search.json").read_text())
    assert sum(trial["images"] for trial in searched) > 0
    curve = curve_of(run)
    assert curve["batches"] == len(curve["objective"]) == 48 // 4
    assert curve["tracking_seconds"] < curve["seconds"]
