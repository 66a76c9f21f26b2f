"""A new concept on a trained base, with every weight trained: the baseline of LoRA."""

from pathlib import Path
from typing import Any

from lightning_modules.paired_gan import PairedGAN
from lightning_modules.run import load_base


class FullFineTuning(PairedGAN):
    """Trains all weights of a base on new concepts: what E2GAN's LoRA (arXiv 2401.06127) is compared with.

    Generator and prompt tokens start from the base's averages, the discriminator from the base's. A whole generator is
    stored for each run; the base's folder is still read when the run is loaded.

    Args:
        base: Run folder of the base.
        ema_halflife_images: Images after which a weight counts half in the moving average.
        **options: Of ``PairedGAN``.

    Raises:
        FileNotFoundError: There is no such base.
        ValueError: The base is an adapter.
    """

    def __init__(
        self,
        base: Path,
        ema_halflife_images: float = 1_000.0,
        **options: Any,
    ) -> None:
        trained = load_base(base)
        super().__init__(
            generator=trained.generator_ema.requires_grad_(True),
            discriminator=trained.discriminator,
            text_encoder=trained.text_encoder_ema.requires_grad_(trained.text_encoder.learns),
            ema_halflife_images=ema_halflife_images,
            **options,
        )
        self.generator.train()
        self.discriminator.requires_grad_(True).train()
        self.base_concepts = trained.concepts

    def add_concepts(self, prompts: dict[str, str]) -> None:
        """Add the new concepts; the base's own tokens stay as they are."""
        self.warn_of_known(prompts, self.base_concepts)
        super().add_concepts(prompts)
        self.text_encoder.learn_only(sorted(self.prompts))
