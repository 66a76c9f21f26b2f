"""The adversarial step: what it changes, the moving average, resume, ranks."""

import copy
import csv
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from checkpoints import assert_same, state, weights
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIGS, fit_adapter, fit_base, make_pair_set, tiny_paired_gan
from two_ranks import fit_on_two_ranks

from datamodules import PairedImages
from lightning_modules import BaseGAN, load_run
from pocketgan.text import ConceptTokens


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


module = partial(tiny_paired_gan, BaseGAN)


def test_average_by_hand():
    model = module(ema_halflife_images=8)
    model.add_concepts({"sepia": ""})
    model.images_seen = 1000  # the ramp-up is over
    before = copy.deepcopy(model.generator_ema.state_dict())
    tokens_before = model.text_encoder_ema.tokens["concept_sepia"].clone()
    with torch.no_grad():
        for parameter in (*model.generator.parameters(), *model.text_encoder.parameters()):
            parameter.add_(1)
    model.update_average(batch_images=16)  # two half-lives: a quarter of the old remains
    for name, value in model.generator_ema.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.75)
    torch.testing.assert_close(model.text_encoder_ema.tokens["concept_sepia"], tokens_before + 0.75)
    assert not any(parameter.requires_grad for parameter in model.generator_ema.parameters())


def test_average_of_a_young_run_forgets_sooner():
    model = module(ema_halflife_images=1000, ema_rampup_ratio=0.125)
    model.images_seen = 48
    before = copy.deepcopy(model.generator_ema.state_dict())
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(1)
    model.update_average(batch_images=16)  # an eighth of 64 images is the half-life: two of them
    for name, value in model.generator_ema.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.75)


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="tokens of 16 features, the text encoder makes 64"):
        module(text_encoder=ConceptTokens(64))
    with pytest.raises(ValueError, match="ema_halflife_images is 0"):
        module(ema_halflife_images=0)
    with pytest.raises(ValueError, match="ema_rampup_ratio is 0"):
        module(ema_rampup_ratio=0)


def test_one_step_changes_what_it_should(pair_set, tmp_path):
    """From the state before (budget reached at once) to the state after one batch."""
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=4", "--trainer.val_check_interval=1")
    first = weights(run)
    fit_base(pair_set, run, "--budget.images=8", "--trainer.val_check_interval=1", "--ckpt_path=last")
    after = weights(run)
    changed = {name for name, value in after["state_dict"].items() if not torch.equal(value, first["state_dict"][name])}
    parts = {name.split(".")[0] for name in changed}
    assert parts == {"generator", "generator_ema", "discriminator", "text_encoder", "text_encoder_ema"}
    assert changed == set(after["state_dict"])
    assert after["images_seen"] == 8


class GradientWatch(Callback):
    """Which networks hold gradients when each optimizer steps."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        networks = (pl_module.generator, pl_module.discriminator)
        self.seen.append(
            tuple(any(p.grad is not None and p.grad.any() for p in network.parameters()) for network in networks)
        )


def test_each_step_leaves_the_other_network_without_gradients(pair_set):
    watch = GradientWatch()
    data = PairedImages(pair_set, size=32, batch_size=4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module(), data)
    assert watch.seen == [(True, False), (False, True)] * 2


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    pairs = make_pair_set(folder / "pairs")
    arguments = ("--budget.images=40", "--trainer.val_check_interval=1")
    return pairs, state(fit_base(pairs, folder / "run", *arguments)), arguments


@pytest.mark.parametrize("images", [8, 16, 24])
@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_equals_uninterrupted(uninterrupted, tmp_path, images, workers):
    """Stopped inside the first pass, at its end, and inside the second (16 training pairs, 4 batches)."""
    pairs, expected, arguments = uninterrupted
    arguments = (*arguments, f"--data.num_workers={workers}")
    run = fit_base(pairs, tmp_path / "run", *arguments, f"--budget.images={images}")
    assert weights(run)["images_seen"] == images
    fit_base(pairs, run, *arguments, "--ckpt_path=last")
    assert_same(state(run), expected)


def test_resumed_adapter_equals_uninterrupted(trained, tmp_path):
    def adapted(run, *arguments):
        return fit_adapter(trained["pairs"], trained["base"], run, "--data.concepts=[sepia]", *arguments)

    interval = "--trainer.val_check_interval=1"
    whole = adapted(tmp_path / "whole", "--budget.images=24", interval)
    parts = adapted(tmp_path / "parts", "--budget.images=12", interval)
    adapted(parts, "--budget.images=24", interval, "--ckpt_path=last")
    assert_same(state(parts), state(whole))


def test_learning_rate_decays_by_images(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=24", "--model.learning_rate_decay.end_images=24")
    rates = [state["param_groups"][0]["lr"] for state in weights(run)["optimizer_states"]]
    # the last batch began at 20 images, half way from 16 to 24
    assert rates == pytest.approx([5e-4, 5e-4])


def command(pairs, run, *arguments):
    return [
        sys.executable,
        "-m",
        "pocketgan",
        "fit",
        f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}",
        f"--data.root={pairs}",
        f"--trainer.default_root_dir={run}",
        *arguments,
    ]


@pytest.mark.extended
def test_killed_fit_resumes_to_the_uninterrupted_result(uninterrupted, tmp_path):
    pairs, expected, arguments = uninterrupted
    run = tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from lightning_modules import PairedGAN\n"
        "from pocketgan.cli import main\n"
        "step = PairedGAN.training_step\n"
        "def killed(self, batch, batch_index):\n"
        "    step(self, batch, batch_index)\n"
        "    if self.images_seen == 28:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "PairedGAN.training_step = killed\n"
        "main(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, script, *command(pairs, run, *arguments)[3:]], check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert weights(run)["images_seen"] == 24
    fit_base(pairs, run, *arguments, "--ckpt_path=last")
    assert_same(state(run), expected)


def test_two_processes_end_with_equal_weights_and_the_result_of_one(tmp_path):
    pairs = make_pair_set(tmp_path / "pairs")
    # Adam's first steps are signs, which turn rounding into differences of the size of the learning rate
    sgd = '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001}}'
    optimizers = (f"--model.generator_optimizer={sgd}", f"--model.discriminator_optimizer={sgd}")
    # three validation pairs: the ranks' shares are uneven
    data = ("--data.concepts=[sepia]", "--data.split=[0.6,0.25,0.15]", "--data.batch_size=2")
    arguments = ("--budget.images=8", "--trainer.val_check_interval=2", *data, *optimizers)
    one = fit_base(pairs, tmp_path / "one", *arguments)
    two = tmp_path / "two"
    ranks = fit_on_two_ranks(tmp_path, command(pairs, two, *arguments)[3:], strategy="ddp_find_unused_parameters_true")
    assert_same(ranks[0], ranks[1])
    assert weights(two)["images_seen"] == 8
    single = weights(one)["state_dict"]
    for name, value in ranks[0].items():
        torch.testing.assert_close(value, single[name], atol=1e-5, rtol=1e-4, msg=name)
    figures = [metrics(run)[-1] for run in (one, two)]
    assert figures[0].keys() == figures[1].keys()
    for name, value in figures[0].items():
        assert float(figures[1][name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name


def test_options_train(pair_set, tmp_path):
    run = fit_base(
        pair_set,
        tmp_path / "run",
        "--model.channels_last=true",
        "--trainer.precision=bf16-mixed",
        "--model.adversarial_loss=HingeLoss",
        "--model.generator.norm=BatchNorm",
    )
    assert load_run(run).images_seen == 24


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # dynamo warns about tensors of its own
def test_compiled_networks_train(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--model.compile_networks=true")
    assert load_run(run).images_seen == 24


def test_adapter_keeps_batch_norm_statistics(pair_set, tmp_path):
    base = fit_base(pair_set, tmp_path / "base", "--data.concepts=[inverted]", "--model.generator.norm=BatchNorm")
    run = fit_adapter(pair_set, base, tmp_path / "adapter", "--data.concepts=[sepia]")
    statistics = {name: value for name, value in load_run(base).generator_ema.named_buffers() if "running" in name}
    adapted = dict(load_run(run).generator.base_model.model.named_buffers())
    kept = [name for name in statistics if name in adapted]
    assert kept
    assert all(torch.equal(adapted[name], statistics[name]) for name in kept)
