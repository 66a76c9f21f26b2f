"""The adversarial step of GANs that make images of noise, with or without classes."""

import copy
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from datamodules import UnpairedImages
from lightning_modules.adversarial_module import AdversarialModule
from lightning_modules.diffusion_draws import draw_by_rank
from lightning_modules.run_state import refuse_other_weights
from pocketgan.losses import AdversarialLoss, DiscriminatorRegularization, GeneratorRegularization
from pocketgan.metrics import ImageSetQuality
from pocketgan.networks import ImageDiscriminator, LatentGenerator
from pocketgan.schedule import MovingAverage


class UnpairedGAN(AdversarialModule):
    """A GAN on single images: StyleGAN2, BigGAN, or any pair of networks in the two slots.

    A step is the discriminator's, then the generator's, on latents of its own; images pass the discriminator apart
    from real ones, since StyleGAN2's looks across the batch. The clock is images seen by the generator over all ranks.
    Validation and use take the generator's moving average.

    Regularisation is lazy as in StyleGAN2 (arXiv 1912.04958, appendix B): in one of ``interval`` steps, times
    ``interval``. The discriminator's joins the loss of its step, the generator's has a step of its own after the
    adversarial one, as in DGL-GAN (arXiv 2112.06502); Adam's learning rate and betas are corrected for it, to
    c · lr and beta^c with c = interval / (interval + 1).

    Deviations: classes of generated images are those of the real ones in the batch, so that both sides have the same
    shares; BigGAN draws them evenly, StyleGAN2-ADA from the data. Latents depend on the run's seed and images seen
    alone, so that a resumed run, and one on other ranks, draws the same.

    Args:
        generator: Makes images of latents and, where there are classes, labels.
        discriminator: Judges images; never used after training.
        adversarial_loss: What the two minimise against each other.
        quality: The figures that ``validate`` and ``test`` report.
        generator_optimizer: Made over the generator's parameters.
        discriminator_optimizer: Made over the discriminator's parameters.
        generator_regularization: A lazy term of the generator, such as path length.
        discriminator_regularization: A lazy term of the discriminator, such as R1.
        discriminator_steps: Steps of the discriminator in one of the generator's. A batch is dealt over them, so that
            the generator makes ``batch_size / discriminator_steps`` images in its step, as in BigGAN-PyTorch.
        ema_halflife_images: Images after which a weight counts half in the moving average (EDM2's convention).
        ema_rampup_ratio: The half-life is at most this share of the images seen (StyleGAN2-ADA's convention); infinity
            for no ramp-up.
        images_per_real: Images generated for each real one of the split that is measured on, of its class. Their
            latents are the same at each measurement and in each run.

    Raises:
        TypeError: The generator is none that the regularisation can be computed on.
        ValueError: The two networks do not fit each other, or a number makes no sense; later, in ``fit``: the data are
            of another size, or have no labels or other classes for networks with classes.
    """

    def __init__(
        self,
        generator: LatentGenerator,
        discriminator: ImageDiscriminator,
        adversarial_loss: AdversarialLoss,
        quality: ImageSetQuality,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        generator_regularization: GeneratorRegularization | None = None,
        discriminator_regularization: DiscriminatorRegularization | None = None,
        discriminator_steps: int = 1,
        ema_halflife_images: float = 10_000.0,
        ema_rampup_ratio: float = 0.125,
        images_per_real: int = 1,
    ) -> None:
        super().__init__()
        for name in ("size", "image_channels", "classes"):
            made, judged = getattr(generator, name), getattr(discriminator, name)
            if made != judged:
                raise ValueError(f"the generator's {name} is {made}, the discriminator's {judged}; set both alike")
        if discriminator_steps < 1 or images_per_real < 1:
            raise ValueError(
                f"discriminator_steps is {discriminator_steps}, images_per_real {images_per_real}; give 1 or more"
            )
        if generator_regularization is not None:
            generator_regularization.check_generator(generator)
        self.moving_average = MovingAverage(ema_halflife_images, ema_rampup_ratio)
        self.generator = generator
        self.discriminator = discriminator
        self.generator_ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.adversarial_loss = adversarial_loss
        self.quality = quality
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.generator_regularization = generator_regularization
        self.discriminator_regularization = discriminator_regularization
        self.discriminator_steps = discriminator_steps
        self.images_per_real = images_per_real
        self.latent_seed = torch.initial_seed()
        self.trained_classes: list[str] = []

    @property
    def data_images_seen(self) -> int:
        """Real images that the run has had."""
        return self.images_seen * self.discriminator_steps

    @property
    def data(self) -> UnpairedImages:
        """The datamodule.

        Raises:
            TypeError: It is of another kind.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, UnpairedImages):
            raise TypeError(
                f"{type(self).__name__} learns from UnpairedImages, data is {type(data).__name__}; set it so"
            )
        return data

    def setup(self, stage: str) -> None:
        """Refuse data that do not fit the networks.

        Raises:
            TypeError: The data are of another kind.
            ValueError: They are of another size, or have no labels or other classes for networks with classes.
        """
        data, network = self.data, type(self.generator).__name__
        if data.size != self.generator.size:
            raise ValueError(
                f"{network} makes images of {self.generator.size} px, the data are of {data.size}; set data.size to "
                f"{self.generator.size}, or both networks' size"
            )
        if self.generator.image_channels != 3:
            raise ValueError(f"the data are RGB, {network} makes {self.generator.image_channels} channels; set it to 3")
        if self.generator.classes and not data.labels:
            raise ValueError(
                f"{network} takes one of {self.generator.classes} classes, the data come without labels; put each "
                "class's images into a folder of its name and set data.labels to true"
            )
        if self.generator.classes and len(data.classes) != self.generator.classes:
            raise ValueError(
                f"{network} takes one of {self.generator.classes} classes, {data.root} holds {len(data.classes)}; set "
                f"model.generator.classes to {len(data.classes)}, and the discriminator's where it does not follow"
            )
        if stage == "fit" and (data.batch_size // self.trainer.world_size) % self.discriminator_steps:
            raise ValueError(
                f"a rank's batch of {data.batch_size // self.trainer.world_size} does not divide over "
                f"{self.discriminator_steps} discriminator_steps; set data.batch_size to a multiple"
            )

    def on_fit_start(self) -> None:
        """Give each rank draws of its own for what networks draw inside, such as noise."""
        draw_by_rank(self.trainer)

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for the generator, one for the discriminator."""
        optimizers = [
            self.generator_optimizer([each for each in self.generator.parameters() if each.requires_grad]),
            self.discriminator_optimizer([each for each in self.discriminator.parameters() if each.requires_grad]),
        ]
        # the discriminator's lazy term joins a step, the generator's has steps of its own
        if self.generator_regularization is not None:
            _correct_for_further_steps(optimizers[0], self.generator_regularization.interval)
        return optimizers

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:  # noqa: ARG002
        """Steps of the discriminator, each on its part of the batch, then one of the generator."""
        generator_optimizer, *_ = self.optimizers()  # type: ignore[attr-defined]
        count = len(batch["image"]) // self.discriminator_steps
        batch_images = count * self.trainer.world_size
        step = self.images_seen // batch_images
        draws = torch.Generator().manual_seed(hash((self.latent_seed, self.images_seen, 0)))
        labels = self._labels(batch["label"])

        for part in range(self.discriminator_steps):
            own = slice(part * count, (part + 1) * count)
            own_labels = None if labels is None else labels[own]
            with torch.no_grad():
                fake = self.generator(self._draw_latents(count, draws), own_labels)
            self.train_discriminators(batch["image"][own], fake, own_labels, step)

        own_labels = None if labels is None else labels[:count]
        with self.toggled_optimizer(generator_optimizer):
            fake = self.generator(self._draw_latents(count, draws), own_labels)
            self.manual_backward(self.generator_adversarial(fake, own_labels))
            generator_optimizer.step()
            generator_optimizer.zero_grad()
            lazy = self.generator_regularization
            if lazy is not None and step % lazy.interval == 0:
                term = lazy(self.generator, self._draw_latents(count, draws), own_labels)
                self.manual_backward(lazy.interval * term)
                generator_optimizer.step()
                generator_optimizer.zero_grad()
                self.log("train/generator_regularization", term.detach())

        seen = self.earlier_images + self.images_seen + batch_images
        self.moving_average.update_networks([(self.generator, self.generator_ema)], batch_images, seen)
        self.images_seen += batch_images
        self.log("images", float(self.images_seen))

    def generator_adversarial(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        """The generator's adversarial loss on its own images, a scalar."""
        adversarial = self.adversarial_loss.generator(self.discriminator(fake, labels))
        self.log("train/adversarial", adversarial.detach())
        return adversarial

    def train_discriminators(self, image: Tensor, fake: Tensor, labels: Tensor | None, step: int) -> None:
        """Let what judges images learn from some.

        Args:
            image: (B, 3, size, size) in [-1, 1], real.
            fake: Generated, likewise, without gradient.
            labels: (B,) of both; None without classes.
            step: The generator's steps so far.
        """
        lazy = self.discriminator_regularization
        due = lazy if lazy is not None and step % lazy.interval == 0 else None
        self.log("train/discriminator", self.discriminator_step(self.discriminator, 1, image, fake, labels, due))

    def discriminator_step(
        self,
        discriminator: torch.nn.Module,
        optimizer: int,
        image: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        regularization: DiscriminatorRegularization | None,
    ) -> Tensor:
        """One step of a discriminator.

        Args:
            discriminator: An ``ImageDiscriminator``.
            optimizer: Place of its optimizer in ``configure_optimizers``.
            image: (B, 3, size, size) in [-1, 1], real.
            fake: Generated, likewise, without gradient.
            labels: (B,) of both; None without classes.
            regularization: A term of the module's own discriminator that is due.

        Returns:
            Its adversarial loss, a scalar.
        """
        stepped = self.optimizers()[optimizer]  # type: ignore[index]
        with self.toggled_optimizer(stepped):
            adversarial = self.adversarial_loss.discriminator(discriminator(image, labels), discriminator(fake, labels))
            loss = adversarial
            if regularization is not None:
                term = regularization(self.discriminator, image, labels)
                loss = adversarial + regularization.interval * term
                self.log("train/discriminator_regularization", term.detach())
            self.manual_backward(loss)
            stepped.step()
            stepped.zero_grad()
        return adversarial.detach()

    def _labels(self, labels: Tensor) -> Tensor | None:
        return labels if self.generator.classes else None

    def _draw_latents(self, count: int, draws: torch.Generator) -> Tensor:
        """This rank's share of latents drawn for all ranks, (count, Z)."""
        ranks = self.trainer.world_size
        latents = torch.randn(count * ranks, self.generator.latent_size, generator=draws)
        return latents[self.global_rank :: ranks].to(self.device)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images with the averaged generator.

        Args:
            latents: (B, Z), standard normal.
            labels: (B,) whole numbers, for networks with classes.

        Returns:
            (B, 3, size, size), made to be in [-1, 1].
        """
        return self.generator_ema(latents, labels)

    def _set_reference(self, split: Any) -> None:
        self.quality.reset()
        if self.quality.feature_extractor is not None:
            self.quality.set_reference(self.data.reference_features(split, self.quality.feature_extractor))

    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Real images, and as many of the averaged generator's, always the same latents for the same real image."""
        return {"real": batch["image"], "GAN": self._of_fixed_latents(batch, batch["place"] * self.images_per_real)}

    def _of_fixed_latents(self, batch: dict[str, Tensor], numbers: Tensor) -> Tensor:
        latents = torch.stack(
            [
                torch.randn(self.generator.latent_size, generator=torch.Generator().manual_seed(number))
                for number in numbers.tolist()
            ]
        )
        return self(latents.to(self.device), self._labels(batch["label"]))

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        for round_number in range(self.images_per_real):
            numbers = batch["place"] * self.images_per_real + round_number
            self.quality.update(self._of_fixed_latents(batch, numbers), numbers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the clock, the seed of the latents, and what the labels stand for."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["latent_seed"] = self.latent_seed
        checkpoint["classes"] = list(self.data.classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take clock and seed back; refuse weights of another architecture.

        Raises:
            ValueError: The checkpoint is of another kind, or a weight is missing, unexpected or of another shape.
        """
        if not {"images_seen", "latent_seed"} <= checkpoint.keys():
            raise ValueError("the checkpoint is of no GAN on single images: it has no images_seen and latent_seed")
        super().on_load_checkpoint(checkpoint)
        self.latent_seed = checkpoint["latent_seed"]
        self.trained_classes = checkpoint.get("classes", [])
        refuse_other_weights(checkpoint["state_dict"], self.state_dict())


def _correct_for_further_steps(optimizer: Optimizer, interval: int) -> None:
    """StyleGAN2's correction of Adam for steps of a lazy term between the others (training_loop.py)."""
    ratio = interval / (interval + 1)
    for group in optimizer.param_groups:
        group["lr"] *= ratio
        if "betas" in group:
            group["betas"] = tuple(beta**ratio for beta in group["betas"])
