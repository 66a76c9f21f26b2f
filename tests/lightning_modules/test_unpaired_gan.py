"""The adversarial step on single images: by hand, lazy terms, resume, ranks, figures, refusals."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, state, weights
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIGS, fit_base
from tiny_gan import (
    TinyImageDiscriminator,
    TinyLatentGenerator,
    fit_unpaired,
    make_image_folder,
    tiny_unpaired_gan,
    train_unpaired,
)
from two_ranks import fit_on_two_ranks

from datamodules import PairedImages, UnpairedImages
from lightning_modules import UnpairedGAN, load_run, load_unpaired_run
from pocketgan.losses import (
    DiscriminatorRegularization,
    GeneratorRegularization,
    HingeLoss,
    NonSaturatingLoss,
    PathLengthRegularization,
    R1Regularization,
)
from pocketgan.metrics import EfficientNetLite0Features, frechet_distance
from pocketgan.run_folder import last_figures

TINY = f"{TinyLatentGenerator.__module__}."


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("images") / "images")


module = partial(tiny_unpaired_gan, UnpairedGAN, adversarial_loss=NonSaturatingLoss())


train = partial(train_unpaired, flip=False)


class WeightSum(GeneratorRegularization):
    """The mean of the images: cheap, and the latents can be seen."""

    interval = 2

    def __init__(self):
        super().__init__()
        self.latents = []

    def forward(self, generator, latents, labels=None):
        self.latents.append(latents)
        return generator(latents, labels).mean()


class ScoreOfReal(DiscriminatorRegularization):
    """The mean score of the data."""

    interval = 3

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, discriminator, images, labels=None):
        self.calls += 1
        return discriminator(images, labels).mean()


class FirstBatch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_index):
        self.image = batch["image"].clone()


def test_a_step_by_hand(images):
    def networks():
        torch.manual_seed(1)
        return TinyLatentGenerator(noise=False), TinyImageDiscriminator()

    generator, discriminator = networks()
    lazy, seen = WeightSum(), FirstBatch()
    model = module(
        generator=generator, discriminator=discriminator, generator_regularization=lazy,
        discriminator_regularization=R1Regularization(gamma=10, interval=16),
    )  # fmt: skip
    train(model, images, seen)
    hand, judge = networks()
    hand.train()
    draws = torch.Generator().manual_seed(hash((0, 0, 0)))
    rate = {"discriminator": 0.1, "generator": 0.1 * 2 / 3}

    def step(network, loss, learning_rate):
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(learning_rate * (0 if gradient is None else gradient))

    softplus = torch.nn.functional.softplus
    fake = hand(torch.randn(4, 6, generator=draws)).detach()
    real = seen.image.requires_grad_()
    (slope,) = torch.autograd.grad(judge(real).sum(), real, create_graph=True)
    penalty = 16 * 10 / 2 * slope.square().sum((1, 2, 3)).mean()
    step(judge, softplus(judge(fake)).mean() + softplus(-judge(real)).mean() + penalty, rate["discriminator"])
    step(hand, softplus(-judge(hand(torch.randn(4, 6, generator=draws)))).mean(), rate["generator"])
    latents = torch.randn(4, 6, generator=draws)
    step(hand, 2 * hand(latents).mean(), rate["generator"])
    assert torch.equal(lazy.latents[0], latents)
    for found, expected in ((model.discriminator, judge), (model.generator, hand)):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=1e-4)


def test_latents_of_both_steps_and_of_each_batch_differ(images):
    generator = TinyLatentGenerator()
    drawn = []
    generator.register_forward_pre_hook(lambda _, given: drawn.append(given[0]))
    train(module(generator=generator), images, batches=2)
    assert len(drawn) == 4
    assert torch.cat(drawn).unique(dim=0).shape == (16, 6)


def test_lazy_terms_come_at_their_intervals(images):
    lazy, judged = WeightSum(), ScoreOfReal()
    train(module(generator_regularization=lazy, discriminator_regularization=judged), images, batches=4)
    assert (len(lazy.latents), judged.calls) == (2, 2)  # steps 0 and 2; 0 and 3


def test_adam_is_corrected_for_lazy_steps():
    def adam(given):
        return torch.optim.Adam(given, lr=0.002, betas=(0.0, 0.99))

    options = {"generator_optimizer": adam, "discriminator_optimizer": adam}
    regularized = module(discriminator_regularization=R1Regularization(interval=16), **options)
    generator, discriminator = regularized.configure_optimizers()
    assert (generator.param_groups[0]["lr"], generator.param_groups[0]["betas"]) == (0.002, (0.0, 0.99))
    assert discriminator.param_groups[0]["lr"] == pytest.approx(0.002)  # R1 joins a step
    assert discriminator.param_groups[0]["betas"] == pytest.approx((0.0, 0.99))


def test_several_discriminator_steps_share_a_batch(images):
    judged = ScoreOfReal()
    judged.interval = 1
    model = module(discriminator_steps=2, discriminator_regularization=judged)
    train(model, images, batches=2)
    assert judged.calls == 4
    assert (model.images_seen, model.data_images_seen) == (4, 8)


def test_the_average_has_the_networks_buffers(images):
    model = train(module(), images, batches=2)
    assert torch.equal(model.generator_ema.norm.running_mean, model.generator.norm.running_mean)
    assert model.generator.norm.running_mean.any()
    assert not torch.equal(model.generator_ema.last.weight, model.generator.last.weight)
    assert not any(parameter.requires_grad for parameter in model.generator_ema.parameters())


ARGUMENTS = {
    "stylegan2": ("--budget.images=40", "--trainer.val_check_interval=1"),
    "classes": (
        f"--model.generator={TINY}TinyLatentGenerator", "--model.generator.classes=2",
        f"--model.discriminator={TINY}TinyImageDiscriminator", "--model.discriminator.classes=2",
        "--model.generator_regularization=null", "--model.discriminator_steps=2", "--data.labels=true",
        "--budget.images=20", "--trainer.val_check_interval=1",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=ARGUMENTS)
def uninterrupted(request, images, tmp_path_factory):
    arguments = ARGUMENTS[request.param]
    run = fit_unpaired(images, tmp_path_factory.mktemp(request.param) / "run", *arguments)
    return request.param, state(run), arguments


@pytest.mark.parametrize("batches", [2, 4, 5])
def test_resumed_equals_uninterrupted(uninterrupted, images, tmp_path, batches):
    """Inside the first pass, at its end, and inside the second (17 or 16 training images, 4 batches)."""
    kind, expected, arguments = uninterrupted
    stop = batches * (4 if kind == "stylegan2" else 2)
    run = fit_unpaired(images, tmp_path / "run", *arguments, f"--budget.images={stop}")
    assert weights(run)["images_seen"] == stop
    fit_unpaired(images, run, *arguments, "--ckpt_path=last")
    assert_same(state(run), expected)


def words(images, run, *arguments, family="stylegan2"):
    config = TINY_CONFIGS / "dgl_compression" / f"{family}_stage1.yaml"
    return ["fit", f"-c={config}", f"--data.root={images}", f"--trainer.default_root_dir={run}", *arguments]


def last_row(run):
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)][-1]


def test_two_processes_end_with_equal_weights_and_the_result_of_one(images, tmp_path):
    sgd = '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}'
    arguments = (
        f"--model.generator={TINY}TinyLatentGenerator", "--model.generator.noise=false", "--model.generator.norm=false",
        f"--model.discriminator={TINY}TinyImageDiscriminator", "--model.generator_regularization=null",
        f"--model.generator_optimizer={sgd}", f"--model.discriminator_optimizer={sgd}",
        "--data.split=[0.7,0.21,0.09]",  # five validation images: the ranks' shares are uneven
        "--budget.images=16", "--trainer.val_check_interval=2",
    )  # fmt: skip
    one, two = fit_unpaired(images, tmp_path / "one", *arguments), tmp_path / "two"
    support = Path(__file__).parents[1] / "support"
    ranks = fit_on_two_ranks(
        tmp_path, words(images, two, *arguments), before=f"sys.path.insert(0, r'{support}')",
        strategy="ddp_find_unused_parameters_true",
    )  # fmt: skip
    assert_same(ranks[0], ranks[1])
    single = weights(one)["state_dict"]
    for name, value in ranks[0].items():
        torch.testing.assert_close(value, single[name], atol=1e-5, rtol=1e-4, msg=name)
    figures = [last_row(run) for run in (one, two)]
    assert figures[0].keys() == figures[1].keys() >= {"val/fd_lite0", "val/generated_images"}
    for name, value in figures[0].items():
        assert float(figures[1][name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("family", ["stylegan2", "biggan"])
def test_both_families_keep_equal_weights_on_two_processes(images, tmp_path, family):
    kept = "{name: value.data for name, value in model.named_parameters()}"
    arguments = words(
        images, tmp_path / "run", "--model.quality.feature_extractor=null",
        family=family,
    )  # fmt: skip
    ranks = fit_on_two_ranks(tmp_path, arguments, kept, strategy="ddp_find_unused_parameters_true")
    assert_same(ranks[0], ranks[1])


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return fit_unpaired(images, tmp_path_factory.mktemp("measured") / "run", "--model.images_per_real=2")


def test_figures_by_hand(run, images):
    figures = last_figures(run, "val")
    assert set(figures) == {
        "images", "generated_images", "real_images", "fd_lite0", "kid_lite0", "kid_lite0_low", "kid_lite0_high"
    }  # fmt: skip
    data = UnpairedImages(images, size=32, batch_size=4, split=(0.7, 0.15, 0.15))
    data.setup("validate")
    extractor, model = EfficientNetLite0Features(), load_unpaired_run(run)
    real = torch.cat([extractor(data.on_after_batch_transfer(batch, 0)["image"]) for batch in data.val_dataloader()])
    seeds = range(2 * len(real))
    latents = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    with torch.no_grad():
        fake = extractor(model(latents).clamp(-1, 1))
    assert (figures["generated_images"], figures["real_images"]) == (len(fake), len(real)) == (6, 3)
    assert figures["fd_lite0"] == pytest.approx(frechet_distance(fake, real).item(), rel=1e-3)


def test_validate_and_test_measure_the_trained_weights(run):
    from pocketgan.cli import main

    before = last_figures(run, "val")
    for command in ("validate", "test"):
        main([command, f"-c={run / 'config.yaml'}"])
    assert last_figures(run, "val") == pytest.approx(before)
    assert last_figures(run, "test")["generated_images"] == 8


def test_a_run_is_loaded_as_what_it_is(run, trained):
    model = load_unpaired_run(run)
    assert (model.images_seen, model.training) == (24, False)
    assert model(torch.zeros(2, 16)).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="holds a UnpairedDGLCompression, which edits no photos"):
        load_run(run)
    with pytest.raises(ValueError, match="holds a BaseGAN, which makes no images of noise"):
        load_unpaired_run(trained["base"])


def test_checkpoints_of_others_are_refused(run, images, trained, tmp_path):
    with pytest.raises(ValueError, match="of another architecture"):
        fit_unpaired(images, tmp_path / "run", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}",
                     "--model.discriminator.channel_multiplier=1")  # fmt: skip
    paired = trained["base"] / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="is of no GAN on single images"):
        fit_unpaired(images, tmp_path / "run", f"--ckpt_path={paired}")
    with pytest.raises(ValueError, match="is not of a base or an adapter"):
        fit_base(trained["pairs"], tmp_path / "base", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")


def test_networks_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match="the generator's size is 32, the discriminator's 16"):
        module(discriminator=TinyImageDiscriminator(16))
    with pytest.raises(ValueError, match="the generator's classes is 2, the discriminator's 0"):
        module(generator=TinyLatentGenerator(classes=2))
    with pytest.raises(ValueError, match="image_channels is 3, the discriminator's 1"):
        module(discriminator=TinyImageDiscriminator(image_channels=1))
    with pytest.raises(TypeError, match="TinyLatentGenerator has no styles"):
        module(generator_regularization=PathLengthRegularization())
    with pytest.raises(ValueError, match="discriminator_steps is 0"):
        module(discriminator_steps=0)


def test_data_that_do_not_fit(images, trained):
    def classed(count):
        return module(generator=TinyLatentGenerator(classes=count), discriminator=TinyImageDiscriminator(classes=count))

    with pytest.raises(ValueError, match=r"makes images of 32 px, the data are of 16; set data.size to 32"):
        train(module(), images, size=16)
    with pytest.raises(ValueError, match=r"one of 2 classes, the data come without labels; .* set data.labels to true"):
        train(classed(2), images)
    with pytest.raises(ValueError, match=r"one of 3 classes, .* holds 2; set model\.generator\.classes to 2"):
        train(classed(3), images, labels=True)
    with pytest.raises(ValueError, match="batch of 4 does not divide over 3 discriminator_steps"):
        train(module(discriminator_steps=3), images)
    data = PairedImages(trained["pairs"], ["inverted"], size=32, batch_size=4)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match="UnpairedGAN learns from UnpairedImages, data is PairedImages"):
        trainer.fit(module(), data)


def test_hinge_and_labels_train(images):
    model = module(
        generator=TinyLatentGenerator(classes=2), discriminator=TinyImageDiscriminator(classes=2),
        adversarial_loss=HingeLoss(),
    )  # fmt: skip
    before = model.generator.embedding.weight.clone()
    train(model, images, labels=True)
    assert not torch.equal(model.generator.embedding.weight, before)
