"""DGL on single images: what the teacher changes and what it does not, both stages, public teachers, refusals."""

import copy
import shutil
from functools import partial

import biggan_reference
import pytest
import torch
import yaml
from checkpoints import assert_same, state, weights
from lightning.pytorch import Callback
from public_stylegan2 import ada_discriminator_shapes, random_state, rosinality_discriminator_shapes
from tiny import TINY_CONFIGS, config_of
from tiny_gan import (
    TinyImageDiscriminator,
    TinyLatentGenerator,
    fit_unpaired,
    make_image_folder,
    tiny_unpaired_gan,
    train_unpaired,
)

from lightning_modules import UnpairedDGLCompression, load_unpaired_run
from pocketgan.cli import main
from pocketgan.compression import PublicBigGANDiscriminator
from pocketgan.losses import HingeLoss, PathLengthRegularization
from pocketgan.networks import BigGANDiscriminator

EVERY_BATCH = "--trainer.val_check_interval=1"
NO_FEATURES = "--model.quality.feature_extractor=null"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Teachers at full width and first stages, of both families."""
    folder = tmp_path_factory.mktemp("runs")
    full = {
        "stylegan2": ("--model.generator.channel_multiplier=1", "--model.discriminator.channel_multiplier=1"),
        "biggan": ("--model.generator.width=4",),
    }
    return {
        f"{name}_{kind}": fit_unpaired(
            images, folder / f"{name}_{kind}", NO_FEATURES, *arguments, config=f"{name}_stage1"
        )
        for name in full
        for kind, arguments in {"teacher": full[name], "start": ()}.items()
    }


def stage_two(images, runs, run, *arguments, family="stylegan2"):
    given = (f"--model.teacher={runs[f'{family}_teacher']}", f"--model.start={runs[f'{family}_start']}")
    return fit_unpaired(images, run, *given, NO_FEATURES, *arguments, config=f"{family}_stage2")


@pytest.fixture(scope="module")
def tiny_teacher(images, tmp_path_factory):
    return fit_unpaired(
        images, tmp_path_factory.mktemp("tiny") / "teacher", NO_FEATURES, "--model=UnpairedGAN",
        "--model.generator=tiny_gan.TinyLatentGenerator", "--model.discriminator=tiny_gan.TinyImageDiscriminator",
        "--model.generator_regularization=null",
    )  # fmt: skip


student = partial(tiny_unpaired_gan, UnpairedDGLCompression, adversarial_loss=HingeLoss())


train = train_unpaired


class Gradients(Callback):
    """Of each optimizer's first step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        network = {0: pl_module.generator, 1: pl_module.discriminator}[trainer.optimizers.index(optimizer)]
        gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        if not hasattr(self, type(network).__name__):
            setattr(self, type(network).__name__, gradient.clone())


def test_generator_gradient_is_the_sum_and_the_discriminators_step_does_not_see_the_teacher(images, tiny_teacher):
    found = {}
    for weight in (0.0, 0.3, 1.0):
        found[weight] = Gradients()
        train(student(teacher=tiny_teacher, teacher_weight=weight), images, found[weight])
    own = found[0.0].TinyLatentGenerator
    taught = found[1.0].TinyLatentGenerator - own
    assert taught.abs().max() > 1e-4
    torch.testing.assert_close(found[0.3].TinyLatentGenerator, own + 0.3 * taught, atol=1e-6, rtol=1e-3)
    for watch in found.values():
        assert torch.equal(watch.TinyImageDiscriminator, found[0.0].TinyImageDiscriminator)


@pytest.mark.parametrize("family", ["stylegan2", "biggan"])
def test_no_weight_is_the_plain_gan_bit_for_bit(images, runs, tmp_path, family):
    start = f"--model.start={runs[f'{family}_start']}"
    plain = fit_unpaired(images, tmp_path / "plain", start, NO_FEATURES, EVERY_BATCH, config=f"{family}_stage1")
    for control in ("false", "true"):
        zero = stage_two(
            images, runs, tmp_path / control, "--model.teacher_weight=0", EVERY_BATCH,
            f"--model.random_teacher={control}", family=family,
        )  # fmt: skip
        assert_same(state(zero), state(plain))


@pytest.mark.parametrize("family", ["stylegan2", "biggan"])
def test_the_teacher_is_bitwise_unchanged_and_stage_two_starts_at_stage_one(images, runs, family):
    config = config_of(runs[f"{family}_start"])
    module = load_unpaired_run(runs[f"{family}_start"]).train().requires_grad_(True)
    model = student(
        generator=module.generator, discriminator=module.discriminator, start=runs[f"{family}_start"],
        teacher=runs[f"{family}_teacher"],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # what it has now must not matter
    expected = copy.deepcopy(load_unpaired_run(runs[f"{family}_teacher"]).discriminator.state_dict())
    start, before = Start(), weights(runs[f"{family}_start"])["state_dict"]
    train(model, images, start, batches=2, labels=config["data"]["init_args"]["labels"])
    found = model.teacher_discriminator.judge.discriminator
    assert_same(dict(found.state_dict()), dict(expected))
    assert not any(part.training for part in found.modules())
    parts = ("generator.", "generator_ema.", "discriminator.")
    taken = {name: value for name, value in before.items() if name.startswith(parts)}
    assert_same({name: start.weights[name] for name in taken}, taken)
    assert start.optimizers == [{}, {}]
    assert model.earlier_images == weights(runs[f"{family}_start"])["images_seen"]
    assert not any("teacher" in name for name in model.state_dict())


class Start(Callback):
    """What a fit begins with."""

    def on_train_start(self, trainer, pl_module):
        self.weights = copy.deepcopy(dict(pl_module.state_dict()))
        self.optimizers = [dict(optimizer.state) for optimizer in trainer.optimizers]


def test_path_lengths_mean_is_taken_over_where_there_is_one(images, runs):
    module = load_unpaired_run(runs["stylegan2_start"]).train().requires_grad_(True)
    start = Start()
    model = student(
        generator=module.generator, discriminator=module.discriminator, start=runs["stylegan2_start"],
        generator_regularization=PathLengthRegularization(),
    )  # fmt: skip
    train(model, images, start)
    mean = start.weights["generator_regularization.mean_length"]
    assert mean == weights(runs["stylegan2_start"])["state_dict"]["generator_regularization.mean_length"] != 0


@pytest.mark.extended
def test_resumed_equals_uninterrupted(images, runs, tmp_path):
    for family, option in (("stylegan2", "update_teacher"), ("biggan", "random_teacher")):
        arguments = (f"--model.{option}=true", EVERY_BATCH)
        whole = stage_two(images, runs, tmp_path / family / "whole", *arguments, family=family)
        parts = stage_two(images, runs, tmp_path / family / "parts", "--budget.images=8", *arguments, family=family)
        stage_two(images, runs, parts, *arguments, "--ckpt_path=last", family=family)
        assert_same(state(parts), state(whole))


def test_a_learning_teachers_first_step_by_hand(images, tiny_teacher):
    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_index):
            self.real = batch["image"].clone()

    seen, fakes = Seen(), []
    generator = TinyLatentGenerator()
    generator.register_forward_hook(lambda _, given, made: fakes.append(made.detach()))
    model = train(student(generator=generator, teacher=tiny_teacher, update_teacher=True), images, seen)
    judge = load_unpaired_run(tiny_teacher).discriminator.requires_grad_(True)
    loss = HingeLoss().discriminator(judge(seen.real), judge(fakes[0]))
    gradients = torch.autograd.grad(loss, judge.parameters())
    for found, before, gradient in zip(
        model.teacher_discriminator.parameters(), judge.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(found.detach(), (before - 0.1 * gradient).detach(), atol=1e-6, rtol=1e-4)
    assert len(model.trainer.optimizers) == 3


def test_a_student_is_used_and_measured_without_teacher_and_start(images, runs, tmp_path):
    teacher, start = (shutil.copytree(runs[f"biggan_{kind}"], tmp_path / kind) for kind in ("teacher", "start"))
    run = fit_unpaired(
        images, tmp_path / "run", f"--model.teacher={teacher}", f"--model.start={start}",
        "--model.update_teacher=true", config="biggan_stage2",
    )  # fmt: skip
    for folder in (teacher, start):
        shutil.rmtree(folder)
    assert load_unpaired_run(run)(torch.zeros(2, 8), torch.tensor([0, 1])).shape == (2, 3, 32, 32)
    for command in ("validate", "test"):
        main([command, f"-c={run / 'config.yaml'}"])


STYLEGAN2_WIDTHS = {4: 16, 8: 16, 16: 16, 32: 8}


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("PublicStyleGAN2AdaDiscriminator", ada_discriminator_shapes),
        ("PublicRosinalityDiscriminator", rosinality_discriminator_shapes),
    ],
)
def test_public_stylegan2_checkpoints_are_teachers(images, runs, tmp_path, kind, shapes):
    torch.save(random_state(shapes(STYLEGAN2_WIDTHS)), tmp_path / "public.pt")
    network = "{size: 32, channel_base: 256, channel_max: 16}"
    teacher = (
        f"--model.teacher_checkpoint={kind}", f"--model.teacher_checkpoint.file={tmp_path / 'public.pt'}",
        f"--model.teacher_checkpoint.discriminator={{class_path: StyleGAN2Discriminator, init_args: {network}}}",
    )  # fmt: skip
    run = fit_unpaired(images, tmp_path / "run", *teacher, NO_FEATURES)
    control = fit_unpaired(images, tmp_path / "control", *teacher, NO_FEATURES, "--model.random_teacher=true")
    digests = [weights(each)["teacher_sha256"] for each in (run, control)]
    assert digests[0] != digests[1]
    with pytest.raises(ValueError, match="both teacher and teacher_checkpoint are given"):
        fit_unpaired(images, tmp_path / "both", *teacher, f"--model.teacher={runs['stylegan2_teacher']}")


def test_a_public_biggan_is_a_teacher(images, tmp_path):
    torch.save(biggan_reference.discriminator_state(32, 4, 2, ()), tmp_path / "D.pth")
    public = PublicBigGANDiscriminator(tmp_path / "D.pth", lambda: BigGANDiscriminator(32, 4, 2))
    model = student(
        generator=TinyLatentGenerator(classes=2), discriminator=TinyImageDiscriminator(classes=2),
        teacher_checkpoint=public,
    )  # fmt: skip
    train(model, images, labels=True)
    assert isinstance(model.teacher_discriminator.judge.discriminator, BigGANDiscriminator)
    with pytest.raises(ValueError, match="does not fit this BigGANDiscriminator"):
        PublicBigGANDiscriminator(tmp_path / "D.pth", lambda: BigGANDiscriminator(32, 8, 2)).load()


def refused(images, message, error=ValueError, **arguments):
    with pytest.raises(error, match=message):
        train(student(**arguments), images)


def test_teachers_that_do_not_fit(images, runs, tiny_teacher, trained, tmp_path):
    refused(images, "holds a BaseGAN, whose discriminator judges no single images", teacher=trained["base"])
    refused(images, "is not a run folder", FileNotFoundError, teacher=tmp_path / "none")
    with pytest.raises(ValueError, match="was trained at 32 px, the student makes 16"):
        train(
            student(generator=TinyLatentGenerator(16), discriminator=TinyImageDiscriminator(16), teacher=tiny_teacher),
            images, size=16,
        )  # fmt: skip
    refused(images, "was trained with 2 classes, the student with none", teacher=runs["biggan_teacher"])
    classed = {
        "generator": TinyLatentGenerator(classes=2), "discriminator": TinyImageDiscriminator(classes=2),
    }  # fmt: skip
    with pytest.raises(ValueError, match="was trained with no classes, the student with 2"):
        train(student(**classed, teacher=tiny_teacher), images, labels=True)
    make_image_folder(tmp_path / "three", ("one", "two", "three"), each=6)
    classed = {
        "generator": TinyLatentGenerator(classes=3), "discriminator": TinyImageDiscriminator(classes=3),
    }  # fmt: skip
    with pytest.raises(ValueError, match="was trained with 2 classes, the student with 3"):
        train(student(**classed, teacher=runs["biggan_teacher"]), tmp_path / "three", labels=True)


def test_classes_of_other_names_are_refused(runs, tmp_path):
    make_image_folder(tmp_path / "others", ("apple", "zebra"), each=12)
    classed = {
        "generator": TinyLatentGenerator(classes=2), "discriminator": TinyImageDiscriminator(classes=2),
    }  # fmt: skip
    message = (
        r"was trained with other classes: 0 is .*, where the data have apple, zebra; give folders of the same names"
    )
    for role, run in (("teacher", runs["biggan_teacher"]), ("start", runs["biggan_start"])):
        with pytest.raises(ValueError, match=f"{role} .*{message}"):
            train(student(**classed, **{role: run}), tmp_path / "others", labels=True)


def test_a_teacher_of_other_channels_is_refused(images):
    class Grey(PublicBigGANDiscriminator):
        def load(self):
            return TinyImageDiscriminator(image_channels=1)

    refused(
        images, "judges images of 1 channels, the student makes 3",
        teacher_checkpoint=Grey(None, None),
    )  # fmt: skip


def test_an_unpaired_run_is_no_teacher_and_no_start_of_a_paired_student(runs, trained, tmp_path):
    config = TINY_CONFIGS / "dgl_compression" / "paired_stage1.yaml"
    words = ["fit", f"-c={config}", f"--data.root={trained['pairs']}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="holds a UnpairedDGLCompression, which judges single images"):
        main([*words, f"--model.teacher={runs['biggan_teacher']}"])
    with pytest.raises(ValueError, match="is no paired GAN's run"):
        main([*words, f"--model.start={runs['biggan_start']}"])


def test_starts_that_do_not_fit(images, runs, tiny_teacher, trained, tmp_path):
    refused(images, "is not a run folder", FileNotFoundError, start=tmp_path / "none")
    refused(images, "is no run of a GAN on single images", start=trained["base"])
    refused(images, "cannot start from .*: the checkpoint is of another architecture", start=runs["stylegan2_start"])
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tiny_teacher, unfinished)
    config = config_of(unfinished)
    config["budget"]["images"] = 100
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    refused(images, "is unfinished: it has seen 24 of 100 images", start=unfinished)
    config["budget"]["images"], config["data"]["init_args"]["size"] = 24, 64
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    refused(images, r"start .*unfinished was trained at 64 px, this student makes \d+", start=unfinished)
    shutil.rmtree(unfinished / "checkpoints")
    refused(images, "has no checkpoint", FileNotFoundError, start=unfinished)
