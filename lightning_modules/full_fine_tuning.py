"""A new concept on a trained base, with every weight trained: the baseline of LoRA."""

from pathlib import Path

from lightning.pytorch.cli import OptimizerCallable
from peft import PeftModel

from lightning_modules.paired_gan import PairedGAN
from lightning_modules.run import load_run
from pocketgan.losses import AdversarialLoss, ReconstructionLoss
from pocketgan.metrics import EditQuality
from pocketgan.schedule import LinearDecay


class FullFineTuning(PairedGAN):
    """Trains all weights of a base on new concepts: what E2GAN's LoRA (arXiv 2401.06127) is compared with.

    Generator and prompt tokens start from the base's averages, the discriminator from the base's. A whole generator is
    stored for each run.

    Args:
        base: Run folder of the base.
        adversarial_loss: What generator and discriminator minimise against each other.
        reconstruction_loss: Distance to the teacher's edit.
        quality: The figures that ``validate`` and ``test`` report.
        generator_optimizer: Made over the generator's and, where it learns, the text encoder's parameters.
        discriminator_optimizer: Made over the discriminator's parameters.
        adversarial_weight: Factor on the adversarial term of the generator.
        reconstruction_weight: Factor on the reconstruction term.
        ema_halflife_images: Images after which a weight counts half in the moving average.
        learning_rate_decay: Factor on both learning rates over images seen; constant if None.
        channels_last: See ``PairedGAN``.
        compile_networks: See ``PairedGAN``.
    """

    def __init__(
        self,
        base: Path,
        adversarial_loss: AdversarialLoss,
        reconstruction_loss: ReconstructionLoss,
        quality: EditQuality,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        adversarial_weight: float = 1.0,
        reconstruction_weight: float = 100.0,
        ema_halflife_images: float = 1_000.0,
        learning_rate_decay: LinearDecay | None = None,
        channels_last: bool = False,
        compile_networks: bool = False,
    ) -> None:
        trained = load_run(base)
        if isinstance(trained.generator, PeftModel):
            raise ValueError(f"{base} holds an adapter; give its base instead, which its config.yaml names")
        super().__init__(
            generator=trained.generator_ema.requires_grad_(True),
            discriminator=trained.discriminator,
            text_encoder=trained.text_encoder_ema.requires_grad_(trained.text_encoder.learns),
            adversarial_loss=adversarial_loss,
            reconstruction_loss=reconstruction_loss,
            quality=quality,
            generator_optimizer=generator_optimizer,
            discriminator_optimizer=discriminator_optimizer,
            adversarial_weight=adversarial_weight,
            reconstruction_weight=reconstruction_weight,
            ema_halflife_images=ema_halflife_images,
            learning_rate_decay=learning_rate_decay,
            channels_last=channels_last,
            compile_networks=compile_networks,
        )
        self.generator.train()
        self.discriminator.requires_grad_(True).train()
        self.base_concepts = trained.concepts

    def add_concepts(self, prompts: dict[str, str]) -> None:
        """Add the new concepts; the base's own tokens stay as they are."""
        self.warn_of_known(prompts, self.base_concepts)
        super().add_concepts(prompts)
        self.text_encoder.learn_only(sorted(self.prompts))
