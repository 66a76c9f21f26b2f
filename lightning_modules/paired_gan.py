"""The adversarial step that all paired image-to-image GANs here share."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.adversarial_module import AdversarialModule
from lightning_modules.run_state import refuse_other_weights
from pocketgan.adapters import merge
from pocketgan.compression import restore_masks, sparsity_of
from pocketgan.losses import AdversarialLoss, ReconstructionLoss
from pocketgan.metrics import EditQuality
from pocketgan.networks import Discriminator, Generator
from pocketgan.schedule import LinearDecay, MovingAverage
from pocketgan.text import TextEncoder


class PairedGAN(AdversarialModule):
    """A conditional GAN on (photo, edit) pairs: adversarial loss plus a reconstruction term, pix2pix's form.

    The clock is images seen by the generator over all ranks. Validation, sampling and export use the generator's
    moving average.

    Args:
        generator: Edits photos.
        discriminator: Judges (photo, edit) pairs; never used after training.
        text_encoder: Turns concepts into the generator's prompt tokens.
        adversarial_loss: What the two minimise against each other.
        reconstruction_loss: Distance to the teacher's edit.
        quality: The figures that ``validate`` and ``test`` report.
        generator_optimizer: Made over the generator's and the text encoder's trainable parameters.
        discriminator_optimizer: Made over the discriminator's parameters.
        adversarial_weight: Factor on the adversarial term of the generator.
        reconstruction_weight: Factor on the reconstruction term; pix2pix uses 100.
        ema_halflife_images: Images after which a weight counts half in the moving average (EDM2's convention).
        ema_rampup_ratio: The half-life is at most this share of the images seen (StyleGAN2-ADA's convention), so that
            the average of a short run does not lag behind.
        learning_rate_decay: Factor on both learning rates over images seen; constant if None.
        channels_last: Keep feature maps in channels-last memory; meant for GPUs, on the CPU it was slower
            (benchmarks/training_step.md).
        compile_networks: Run generator and discriminator through ``torch.compile``.

    Attributes:
        extra_terms: A callback's hook into the generator's loss: each is called in a training step with the batch and
            the edits (B, 3, H, W), and its scalar is added.
    """

    progress_figure = "reconstruction"

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        text_encoder: TextEncoder,
        adversarial_loss: AdversarialLoss,
        reconstruction_loss: ReconstructionLoss,
        quality: EditQuality,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        adversarial_weight: float = 1.0,
        reconstruction_weight: float = 100.0,
        ema_halflife_images: float = 10_000.0,
        ema_rampup_ratio: float = 0.125,
        learning_rate_decay: LinearDecay | None = None,
        channels_last: bool = False,
        compile_networks: bool = False,
    ) -> None:
        super().__init__()
        if generator.token_size != text_encoder.token_size:
            raise ValueError(
                f"the generator reads tokens of {generator.token_size} features, the text encoder "
                f"makes {text_encoder.token_size}; set both token_size alike"
            )
        self.moving_average = MovingAverage(ema_halflife_images, ema_rampup_ratio)
        self.generator = generator
        self.discriminator = discriminator
        self.text_encoder = text_encoder
        self.generator_ema = copy.deepcopy(generator).eval().requires_grad_(False)
        # one that never learns is its own average
        self.text_encoder_ema = copy.deepcopy(text_encoder) if text_encoder.learns else text_encoder
        self.adversarial_loss = adversarial_loss
        self.reconstruction_loss = reconstruction_loss
        self.quality = quality
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.adversarial_weight = adversarial_weight
        self.reconstruction_weight = reconstruction_weight
        self.learning_rate_decay = learning_rate_decay
        self.compile_networks = compile_networks
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.prompts: dict[str, str] = {}
        self.extra_terms: list[Callable[[dict[str, Any], Tensor], Tensor]] = []

    @property
    def concepts(self) -> list[str]:
        """Names of the concepts that this model was trained on."""
        return sorted(self.prompts)

    def add_concepts(self, prompts: dict[str, str]) -> None:
        """Learn names and prompts of concepts; tokens of new ones are made, known ones stay."""
        self.prompts.update(prompts)
        self.text_encoder.add_concepts(sorted(prompts))
        if self.text_encoder_ema is not self.text_encoder:
            self.text_encoder_ema.add_concepts(sorted(prompts))
            self.text_encoder_ema.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Take the concepts from the data, before optimizers and a checkpoint's weights come."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.generator.check_size(data.size, data.size)
        if stage == "fit":
            self.add_concepts(data.prompts)
        self.lay_out()

    def lay_out(self) -> None:
        """Apply memory format and compilation to the networks as they are now."""
        for network in (self.generator, self.generator_ema, self.discriminator):
            network.to(memory_format=self.memory_format)
        if self.compile_networks:
            self.generator.compile()
            self.discriminator.compile()

    @staticmethod
    def warn_of_known(concepts: Iterable[str], base_concepts: Iterable[str]) -> None:
        """Warn of concepts that a base has seen, offered as new ones."""
        for concept in sorted(set(concepts) & set(base_concepts)):
            rank_zero_warn(
                f"the base was trained on {concept} already; what this run shows says nothing of new concepts"
            )

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for the generator with its text encoder, one for the discriminator."""
        learned = [*self.generator.parameters(), *self.text_encoder.parameters()]
        return [
            self.generator_optimizer([parameter for parameter in learned if parameter.requires_grad]),
            self.discriminator_optimizer(self.discriminator.parameters()),
        ]

    def prompt_tokens(self, batch: dict[str, Any]) -> Tensor:
        """Tokens (B, L, D) of a batch's concepts."""
        return self.text_encoder(batch["concept"], batch["prompt"]).to(self.device)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> None:  # noqa: ARG002
        """One step of the generator, then one of the discriminator on the same edits."""
        generator_optimizer, *others = self.optimizers()  # type: ignore[attr-defined]
        self._decay_learning_rate(generator_optimizer, *others)
        photo, edit = (batch[key].contiguous(memory_format=self.memory_format) for key in ("photo", "edit"))

        with self.toggled_optimizer(generator_optimizer):
            fake = self.generator(photo, self.prompt_tokens(batch))
            adversarial = self.generator_adversarial(photo, fake)
            reconstruction = self.reconstruction_loss(fake, edit)
            objective = self.adversarial_weight * adversarial + self.reconstruction_weight * reconstruction
            self.manual_backward(objective + sum(term(batch, fake) for term in self.extra_terms))
            generator_optimizer.step()
            generator_optimizer.zero_grad()

        batch_images = len(photo) * self.trainer.world_size
        self.update_average(batch_images)

        self.train_discriminators(photo, edit, fake.detach())

        self.images_seen += batch_images
        self.log("train/reconstruction", reconstruction)
        self.log("images", float(self.images_seen))

    def generator_adversarial(self, photo: Tensor, fake: Tensor) -> Tensor:
        """The generator's adversarial loss on its own edits, a scalar before ``adversarial_weight``."""
        adversarial = self.adversarial_loss.generator(self.discriminator(photo, fake))
        self.log("train/adversarial", adversarial)
        return adversarial

    def train_discriminators(self, photo: Tensor, edit: Tensor, fake: Tensor) -> None:
        """Let what judges edits learn from a batch; ``fake`` comes without gradient."""
        self.log("train/discriminator", self.discriminator_step(self.discriminator, 1, photo, edit, fake))

    def discriminator_step(
        self, discriminator: nn.Module, optimizer: int, photo: Tensor, edit: Tensor, fake: Tensor
    ) -> Tensor:
        """One step of a discriminator.

        Args:
            discriminator: A ``Discriminator``.
            optimizer: Place of its optimizer in ``configure_optimizers``.
            photo: (B, 3, H, W) in [-1, 1].
            edit: The teacher's edits, likewise.
            fake: The generator's, likewise, without gradient.

        Returns:
            Its loss, a scalar.
        """
        stepped = self.optimizers()[optimizer]  # type: ignore[index]
        with self.toggled_optimizer(stepped):
            # one pass over both halves: no norm of a Discriminator looks across the batch
            logits = discriminator(torch.cat((photo, photo)), torch.cat((edit, fake)))
            loss = self.adversarial_loss.discriminator(*logits.chunk(2))
            self.manual_backward(loss)
            stepped.step()
            stepped.zero_grad()
        return loss.detach()

    def _decay_learning_rate(self, *optimizers: Any) -> None:
        if self.learning_rate_decay is not None:
            factor = self.learning_rate_decay(self.images_seen)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def update_average(self, batch_images: int) -> None:
        """Move the averages towards the weights.

        Weights that do not train, and buffers such as batch norm's statistics, are equal or copied.
        """
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.generator, self.generator_ema)]
        if self.text_encoder_ema is not self.text_encoder:
            pairs.append((self.text_encoder, self.text_encoder_ema))
        images_seen = self.earlier_images + self.images_seen + batch_images
        self.moving_average.update_networks(pairs, batch_images, images_seen)

    def forward(self, photo: Tensor, concepts: list[str]) -> Tensor:
        """Edit photos with the averaged generator.

        Args:
            photo: (B, 3, H, W) in [-1, 1].
            concepts: B names of known concepts, or one for all.

        Returns:
            (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: A concept is unknown.
        """
        self._check_known(concepts)
        tokens = self.text_encoder_ema(concepts, [self.prompts[concept] for concept in concepts])
        return self.generator_ema(photo, tokens.to(photo.device))

    def _check_known(self, concepts: Iterable[str]) -> None:
        unknown = sorted(set(concepts) - set(self.prompts))
        if unknown:
            raise ValueError(
                f"unknown concept {', '.join(unknown)}; this run was trained on {', '.join(self.concepts)}"
            )

    def deployed(self, concept: str) -> nn.Module:
        """The network of one concept for a device: averaged weights, adapter and masks folded in, prompt as constants.

        Args:
            concept: A known concept.

        Returns:
            A copy in eval mode, (B, 3, H, W) to (B, 3, H, W) in [-1, 1].
        """
        tokens = self.text_encoder_ema([concept], [self.prompts[concept]]).detach()
        return merge(self.generator_ema).fold_prompt(tokens.to(self.device)).eval().requires_grad_(False)

    def deterministic_objective(self, batch: dict[str, Any]) -> Tensor:
        """Reconstruction of the averaged generator on fixed pairs; the adversarial loss is a moving target."""
        return self.reconstruction_loss(self(batch["photo"], batch["concept"]), batch["edit"])

    def _set_reference(self, split: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._check_known(data.prompts)
        self.quality.reset()
        if self.quality.feature_extractor is not None:
            self.quality.set_reference(data.reference_features(split, self.quality.feature_extractor))

    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Photos, the teacher's edits, the averaged generator's."""
        return {"photo": batch["photo"], "teacher": batch["edit"], "GAN": self(batch["photo"], batch["concept"])}

    def _evaluate(self, batch: dict[str, Any]) -> None:
        self.quality.update(self(batch["photo"], batch["concept"]), batch["edit"], batch["concept"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the clock and the concepts, with their tokens where they are no weights, and where masks are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["prompts"] = self.prompts
        if patterns := sparsity_of(self.generator):
            checkpoint["sparsity"] = patterns
        if not self.text_encoder.learns:
            checkpoint["encoded_prompts"] = {
                "token_size": self.text_encoder.token_size,
                "identity": self.text_encoder.identity,
                "tokens": {
                    prompt: self.text_encoder([concept], [prompt])[0] for concept, prompt in self.prompts.items()
                },
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take clock and concepts back; refuse weights of another architecture.

        Raises:
            ValueError: A weight is missing, unexpected or of another shape, or the prompts were encoded by another text
                encoder.
        """
        if not {"images_seen", "prompts"} <= checkpoint.keys():
            raise ValueError("the checkpoint is not of a base or an adapter: it has no images_seen and prompts")
        super().on_load_checkpoint(checkpoint)
        self.add_concepts(checkpoint["prompts"])
        if "encoded_prompts" in checkpoint:
            encoded = checkpoint["encoded_prompts"]
            if encoded["identity"] != self.text_encoder.identity:
                raise ValueError(
                    f"the checkpoint was trained with {encoded['identity']}, the config names "
                    f"{self.text_encoder.identity}; set model.text_encoder to the one that it was trained with"
                )
            self.text_encoder.remember(encoded["tokens"])
        for network in (self.generator, self.generator_ema):
            if "sparsity" in checkpoint:
                restore_masks(network, checkpoint["sparsity"])
        refuse_other_weights(checkpoint["state_dict"], self.state_dict())
