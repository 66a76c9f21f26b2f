"""DGL on paired GANs: what the teacher changes and what it does not, both stages, refusals."""

import copy
import csv
import json
import shutil
from functools import partial

import pytest
import torch
import yaml
from checkpoints import assert_same, state, weights
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIGS, config_of, fit_adapter, make_pair_set, tiny_paired_gan

from datamodules import PairedImages
from lightning_modules import DGLCompression, load_run
from pocketgan.cli import main
from pocketgan.losses import LeastSquaresLoss

EVERY_BATCH = "--trainer.val_check_interval=1"


def fit_student(pairs, run, *arguments, config="paired_stage1"):
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'dgl_compression' / f'{config}.yaml'}",
            f"--data.root={pairs}",
            "--data.concepts=[inverted]",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


@pytest.fixture(scope="module")
def stage_one(trained, tmp_path_factory):
    return fit_student(trained["pairs"], tmp_path_factory.mktemp("stages") / "one")


def stage_two(trained, stage_one, run, *arguments):
    given = (f"--model.teacher={trained['base']}", f"--model.start={stage_one}")
    return fit_student(trained["pairs"], run, *given, *arguments, config="paired_stage2")


student = partial(tiny_paired_gan, DGLCompression)


def train(model, pairs, *callbacks, batches=2):
    data = PairedImages(pairs, ["inverted"], size=32, batch_size=4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=batches, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, data)
    return model


def test_the_teacher_is_bitwise_unchanged_and_not_stored(trained, tmp_path):
    expected = load_run(trained["base"]).discriminator.state_dict()
    model = train(student(teacher=trained["base"]), trained["pairs"])
    found = model.teacher_discriminator.judge.discriminator.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any("teacher" in name for name in model.state_dict())
    assert "train/teacher_adversarial" in model.trainer.logged_metrics


class FirstGradient(Callback):
    """The generator's first gradient, and what it is made of."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_index):
        if batch_index:
            return
        parameters = list(pl_module.generator.parameters())
        judges = (pl_module.discriminator, pl_module.teacher_discriminator.judge.discriminator)
        self.expected = []
        for judge in judges:
            fake = pl_module.generator(batch["photo"], pl_module.prompt_tokens(batch))
            loss = pl_module.adversarial_loss.generator(judge(batch["photo"], fake))
            self.expected.append(torch.autograd.grad(loss, parameters, allow_unused=True))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not hasattr(self, "found"):
            self.found = [copy.deepcopy(parameter.grad) for parameter in pl_module.generator.parameters()]


def test_generator_gradient_is_the_sum_of_both(trained):
    watch = FirstGradient()
    model = student(teacher=trained["base"], teacher_weight=0.3, reconstruction_weight=0.0)
    train(model, trained["pairs"], watch, batches=1)
    own, taught = watch.expected
    assert any(one is not None and one.any() for one in taught)
    for found, one, other in zip(watch.found, own, taught, strict=True):
        torch.testing.assert_close(found, one + 0.3 * other, atol=2e-6, rtol=1e-3)


def test_the_discriminators_step_does_not_see_the_teacher(trained):
    plain = train(student(), trained["pairs"], batches=1)
    guided = train(student(teacher=trained["base"], teacher_weight=10.0), trained["pairs"], batches=1)
    assert_same(guided.discriminator.state_dict(), plain.discriminator.state_dict())
    losses = [model.trainer.logged_metrics["train/discriminator"] for model in (plain, guided)]
    assert torch.equal(*losses)
    changed = (
        not torch.equal(one, guided.generator.state_dict()[n]) for n, one in plain.generator.state_dict().items()
    )
    assert any(changed)


def test_no_weight_is_the_plain_gan_bit_for_bit(trained, tmp_path):
    runs = {
        name: fit_student(trained["pairs"], tmp_path / name, EVERY_BATCH, *arguments)
        for name, arguments in {
            "plain": (),
            "zero": (f"--model.teacher={trained['base']}", "--model.teacher_weight=0"),
            "random": (f"--model.teacher={trained['base']}", "--model.teacher_weight=0", "--model.random_teacher=true"),
        }.items()
    }
    for name in ("zero", "random"):
        assert_same(state(runs[name]), state(runs["plain"]))
    main(
        ["fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", f"--data.root={trained['pairs']}",
         "--data.concepts=[inverted]", f"--trainer.default_root_dir={tmp_path / 'base'}", EVERY_BATCH]
    )  # fmt: skip
    assert_same(state(tmp_path / "base"), state(runs["plain"]))


class Start(Callback):
    """What a fit begins with."""

    def on_train_start(self, trainer, pl_module):
        self.weights = copy.deepcopy(pl_module.state_dict())
        self.optimizers = [dict(optimizer.state) for optimizer in trainer.optimizers]


def test_the_second_stage_starts_at_the_first_with_fresh_optimizers(trained, stage_one):
    start, before = Start(), weights(stage_one)
    model = train(student(teacher=trained["base"], start=stage_one), trained["pairs"], start, batches=1)
    assert_same(dict(start.weights), dict(before["state_dict"]))
    assert start.optimizers == [{}, {}]
    assert before["optimizer_states"][0]["state"]
    assert (model.images_seen, model.earlier_images) == (4, 24)


def test_the_average_goes_on_over_the_stages(trained, stage_one):
    model = student(start=stage_one, ema_halflife_images=1e9, ema_rampup_ratio=0.5)
    before = weights(stage_one)["state_dict"]
    train(model, trained["pairs"], batches=1)
    kept = 0.5 ** (4 / (0.5 * 28))  # 24 images of the first stage and the 4 of this step
    for name, value in model.generator.named_parameters():
        old = before[f"generator_ema.{name}"]
        torch.testing.assert_close(model.generator_ema.get_parameter(name), kept * old + (1 - kept) * value)


@pytest.mark.extended
def test_resumed_equals_uninterrupted(trained, stage_one, tmp_path):
    for arguments in ((), ("--model.update_teacher=true",), ("--model.random_teacher=true",)):
        folder = tmp_path / (arguments or ("frozen",))[0].split(".")[-1]
        whole = stage_two(trained, stage_one, folder / "whole", EVERY_BATCH, *arguments)
        parts = stage_two(trained, stage_one, folder / "parts", EVERY_BATCH, "--budget.images=12", *arguments)
        stage_two(trained, stage_one, parts, EVERY_BATCH, *arguments, "--ckpt_path=last")
        assert_same(state(parts), state(whole))


def test_a_learning_teacher_has_its_own_optimizer_and_is_stored(trained, stage_one, tmp_path):
    run = stage_two(trained, stage_one, tmp_path / "run", "--model.update_teacher=true")
    found = weights(run)
    assert len(found["optimizer_states"]) == 3
    teacher = load_run(trained["base"]).discriminator.state_dict()
    stored = {name: value for name, value in found["state_dict"].items() if name.startswith("teacher_discriminator.")}
    assert len(stored) == len(teacher)
    assert all(not torch.equal(stored[f"teacher_discriminator.judge.{name}"], value) for name, value in teacher.items())
    with (run / "metrics.csv").open() as file:
        assert any(row["train/teacher"] for row in csv.DictReader(file))
    frozen = weights(stage_two(trained, stage_one, tmp_path / "frozen"))
    assert len(frozen["optimizer_states"]) == 2
    assert not any("teacher" in name for name in frozen["state_dict"])


def test_a_learning_teachers_first_step_by_hand(trained):
    sgd = torch.optim.SGD
    model = student(
        teacher=trained["base"], update_teacher=True,
        generator_optimizer=lambda given: sgd(given, lr=0.1), discriminator_optimizer=lambda given: sgd(given, lr=0.1),
    )  # fmt: skip

    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_index):
            fake = pl_module.generator(batch["photo"], pl_module.prompt_tokens(batch)).detach()
            judge = load_run(trained["base"]).discriminator
            loss = LeastSquaresLoss().discriminator(judge(batch["photo"], batch["edit"]), judge(batch["photo"], fake))
            gradients = torch.autograd.grad(loss, judge.parameters())
            pairs = zip(judge.parameters(), gradients, strict=True)
            self.expected = [parameter.detach() - 0.1 * gradient for parameter, gradient in pairs]

    seen = Seen()
    train(model, trained["pairs"], seen, batches=1)
    for parameter, expected in zip(model.teacher_discriminator.parameters(), seen.expected, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-4)


def test_a_random_teacher_is_of_the_teachers_sizes(trained):
    base = load_run(trained["base"]).discriminator.state_dict()
    models = [
        train(student(teacher=trained[name], random_teacher=True), trained["pairs"], batches=1)
        for name in ("base", "base")
    ]
    found, again = (model.teacher_discriminator.judge.discriminator.state_dict() for model in models)
    assert all(found[name].shape == value.shape for name, value in base.items())
    assert not any(torch.equal(found[name], value) for name, value in base.items() if value.ndim > 1)
    assert_same(dict(found), dict(again))


def test_an_adapter_can_be_the_teacher_and_its_random_one_is_the_bases_class(trained, tmp_path):
    run = fit_student(
        trained["pairs"], tmp_path / "run", f"--model.teacher={trained['adapter']}", "--data.concepts=[sepia]",
        "--model.random_teacher=true",
    )  # fmt: skip
    assert load_run(run).concepts == ["sepia"]


def test_a_student_is_used_and_measured_without_teacher_and_start(trained, stage_one, tmp_path):
    teacher, start = (shutil.copytree(run, tmp_path / run.name) for run in (trained["base"], stage_one))
    given = (f"--model.teacher={teacher}", f"--model.start={start}", "--model.update_teacher=true")
    run = fit_student(trained["pairs"], tmp_path / "student", *given, config="paired_stage2")
    for folder in (teacher, start):
        shutil.rmtree(folder)
    model = load_run(run)
    assert model.images_seen == 24
    assert model.deployed("inverted")(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    for command in ("validate", "test"):
        main([command, f"-c={run / 'config.yaml'}"])
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        main(["fit", f"-c={run / 'config.yaml'}", "--ckpt_path=last", "--budget.images=40"])


def refused(trained, tmp_path, message, *arguments, error=ValueError, config="paired_stage1"):
    with pytest.raises(error, match=message):
        fit_student(trained["pairs"], tmp_path / "refused", *arguments, config=config)
    assert not (tmp_path / "refused" / "checkpoints").exists()


def test_teachers_that_do_not_fit(trained, tmp_path):
    teacher = f"--model.teacher={trained['base']}"
    refused(
        trained, tmp_path, "was trained at 32 px, the student trains at 16; set data.size to 32", teacher,
        "--data.size=16",
    )  # fmt: skip
    refused(
        trained, tmp_path, "never saw sepia; it was trained on inverted: choose among these", teacher,
        "--data.concepts=[inverted,sepia]",
    )  # fmt: skip
    refused(trained, tmp_path, "is not a run folder", f"--model.teacher={tmp_path / 'none'}", error=FileNotFoundError)


def test_starts_that_do_not_fit(trained, stage_one, tmp_path):
    start = f"--model.start={stage_one}"
    refused(
        trained,
        tmp_path,
        "none is not a run folder: it does not exist",
        f"--model.start={tmp_path / 'none'}",
        error=FileNotFoundError,
    )
    refused(
        trained, tmp_path, r"cannot start from .*one: the checkpoint is of another architecture: .*there and .*here",
        start, "--model.discriminator.width=16",
    )  # fmt: skip
    refused(
        trained, tmp_path, "start .* was trained on inverted, the data hold sepia", start, "--data.concepts=[sepia]"
    )
    refused(
        trained, tmp_path, "was trained at 32 px, the data are of 16; train both stages at one size", start,
        "--data.size=16",
    )  # fmt: skip
    adapter = fit_adapter(trained["pairs"], trained["base"], tmp_path / "adapter", "--data.concepts=[sepia]")
    refused(trained, tmp_path, "of another architecture", f"--model.start={adapter}", "--data.concepts=[sepia]")
    unfinished = fit_student(trained["pairs"], tmp_path / "unfinished", "--budget.images=12")
    config = config_of(unfinished)
    config["budget"]["images"] = 24
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    refused(
        trained, tmp_path, r"is unfinished: it has seen 12 of 24 images; finish it with `pocketgan fit .*--ckpt_path",
        f"--model.start={unfinished}",
    )  # fmt: skip
    refused(trained, tmp_path, "is unfinished: it has seen 12 of 24 images", f"--model.teacher={unfinished}")
    shutil.rmtree(unfinished / "checkpoints")
    refused(trained, tmp_path, r"has no checkpoint last\.ckpt", f"--model.start={unfinished}", error=FileNotFoundError)


def test_a_start_that_early_stopping_ended_is_finished(trained, tmp_path):
    tracking = (
        "--early_stopping=LossTrackingEarlyStopping", "--early_stopping.window=2", "--early_stopping.threshold=0.9",
        "--budget.images=2000",
    )  # fmt: skip
    stopped = fit_student(trained["pairs"], tmp_path / "stopped", *tracking)
    assert json.loads((stopped / "loss_tracking.json").read_text())["stopped"]
    seen = weights(stopped)["images_seen"]
    assert seen < 2000
    run = fit_student(trained["pairs"], tmp_path / "run", f"--model.start={stopped}")
    assert weights(run)["earlier_images"] == seen
    config = config_of(stopped)
    config["early_stopping"]["init_args"]["threshold"] = 0.0  # it never stops
    (stopped / "config.yaml").write_text(yaml.safe_dump(config))
    refused(trained, tmp_path, f"is unfinished: it has seen {seen} of 2000", f"--model.start={stopped}")


def test_lightnings_early_stopping_counts_too(trained, tmp_path):
    stopping = (
        "--early_stopping=lightning.pytorch.callbacks.EarlyStopping", "--early_stopping.monitor=val/reconstruction",
        "--early_stopping.patience=1", "--early_stopping.min_delta=10", EVERY_BATCH, "--budget.images=2000",
    )  # fmt: skip
    stopped = fit_student(trained["pairs"], tmp_path / "stopped", *stopping)
    run = fit_student(trained["pairs"], tmp_path / "run", f"--model.start={stopped}")
    assert weights(run)["earlier_images"] == weights(stopped)["images_seen"] < 2000


def test_options_that_make_no_sense(trained, tmp_path):
    with pytest.raises(ValueError, match="teacher_weight is -1"):
        student(teacher_weight=-1.0)
    with pytest.raises(ValueError, match="random_teacher is a control"):
        student(teacher=trained["base"], update_teacher=True, random_teacher=True)
    refused(trained, tmp_path, "are about a teacher; name its run", "--model.update_teacher=true")


def test_another_teacher_is_refused_on_resume(trained, stage_one, tmp_path):
    run = stage_two(trained, stage_one, tmp_path / "run", "--budget.images=12")
    with pytest.raises(ValueError, match=r"the run began with a teacher of weights .* and would go on with no teacher"):
        fit_student(trained["pairs"], run, "--ckpt_path=last")
    other = fit_student(make_pair_set(tmp_path / "pairs"), tmp_path / "other", "--seed_everything=1")
    with pytest.raises(ValueError, match=r"would go on with a teacher of weights"):
        fit_student(trained["pairs"], run, "--ckpt_path=last", f"--model.teacher={other}")
