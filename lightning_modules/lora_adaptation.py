"""A new concept on a trained base, by LoRA on the crucial layers."""

import copy
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.cli import OptimizerCallable
from peft import PeftModel

from lightning_modules.paired_gan import PairedGAN
from lightning_modules.run import load_run
from pocketgan.adapters import add_lora, ranks_of, read_ranks, resized
from pocketgan.digest import weights_digest
from pocketgan.losses import AdversarialLoss, ReconstructionLoss
from pocketgan.metrics import EditQuality
from pocketgan.networks import Generator
from pocketgan.schedule import LinearDecay


class LoRAAdaptation(PairedGAN):
    """E2GAN's adaptation (arXiv 2401.06127): low-rank deltas on down- and up-sampling layers and the transformer.

    Residual blocks stay frozen without LoRA. The generator starts from the base's average; the discriminator starts
    from the base's and serves this training alone. Generator norms run in eval mode, so that batch norm keeps the
    base's statistics and the adapter need not store them.

    Args:
        base: Run folder of the base.
        ranks: LoRA rank by part of the generator, see ``pocketgan.adapters.layer_ranks``; or a YAML file of them, such
            as the ``ranks.yaml`` of a run with RankSearch. For RankSearch they are the relative ranks.
        adversarial_loss: What generator and discriminator minimise against each other.
        reconstruction_loss: Distance to the teacher's edit.
        quality: The figures that ``validate`` and ``test`` report.
        generator_optimizer: Made over deltas, fully trained parts and, where the text encoder learns, the concept's
            tokens. LoRA wants 2 to 10 times the base's learning rate.
        discriminator_optimizer: Made over the discriminator's parameters.
        full_layers: Parts of the generator trained in full; stem and head in E2GAN, as its parameter counts suggest.
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
        ranks: dict[str, int] | Path,
        adversarial_loss: AdversarialLoss,
        reconstruction_loss: ReconstructionLoss,
        quality: EditQuality,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        full_layers: list[str] | None = None,
        adversarial_weight: float = 1.0,
        reconstruction_weight: float = 100.0,
        ema_halflife_images: float = 1_000.0,
        learning_rate_decay: LinearDecay | None = None,
        channels_last: bool = False,
        compile_networks: bool = False,
    ) -> None:
        trained = load_run(base)
        if isinstance(trained.generator, PeftModel):
            raise ValueError(f"{base} holds an adapter; adapt its base instead, which its config.yaml names")
        base_identity = {
            "base_sha256": weights_digest(trained.generator_ema),
            "text_encoder": trained.text_encoder.identity,
        }
        given = read_ranks(ranks) if isinstance(ranks, Path) else ranks
        try:
            generator = add_lora(trained.generator_ema, given, full_layers or [])
        except ValueError as error:
            if isinstance(ranks, Path):
                raise ValueError(f"rank file {ranks} does not fit the base {base}: {error}") from error
            raise
        super().__init__(
            generator=cast(Generator, generator),
            discriminator=trained.discriminator,
            text_encoder=trained.text_encoder_ema,
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
        self.generator.eval()
        self.discriminator.requires_grad_(True).train()
        self.base_concepts = trained.concepts
        self.base_identity = base_identity
        self.ranks = ranks_of(generator)

    @property
    def concept(self) -> str:
        """The concept that this adapter is for."""
        return self.concepts[0]

    @property
    def adapter(self) -> PeftModel:
        """The averaged generator with its deltas, as it is stored."""
        allocated = cast(PeftModel, self.generator_ema)
        return allocated if ranks_of(allocated) == self.ranks else resized(allocated, self.ranks)

    def allocate(self, ranks: dict[str, int]) -> None:
        """Give the deltas other ranks; only before optimizers and distributed wrappers are made.

        Args:
            ranks: Rank by full name of every layer that gets one.
        """
        self.generator = cast(Generator, resized(cast(PeftModel, self.generator), ranks))
        self.generator_ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.lay_out()

    def add_concepts(self, prompts: dict[str, str]) -> None:
        """Add the one new concept; its tokens train, where tokens do.

        Raises:
            ValueError: The data hold several concepts.
        """
        if len({*self.prompts, *prompts}) != 1:
            raise ValueError(
                f"an adapter is for one concept, the data hold {', '.join(sorted({*self.prompts, *prompts}))}; "
                "name one with --data.concepts '[NAME]'"
            )
        self.warn_of_known(prompts, self.base_concepts)
        super().add_concepts(prompts)
        self.text_encoder.learn_only(sorted(prompts))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store also the ranks and what tells the base."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["allocated_ranks"] = ranks_of(cast(PeftModel, self.generator))
        checkpoint["ranks"] = self.ranks
        checkpoint["base"] = self.base_identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the ranks, too.

        Raises:
            ValueError: The weights belong to another base or are of another architecture.
        """
        found = checkpoint.get("base", self.base_identity)
        if found != self.base_identity:
            raise ValueError(
                f"the checkpoint's adapter was trained on another base (weights {found['base_sha256'][:12]}…, "
                f"{found['text_encoder']}) than model.base names (weights {self.base_identity['base_sha256'][:12]}…, "
                f"{self.base_identity['text_encoder']}); set model.base to its own base"
            )
        if "allocated_ranks" in checkpoint:
            if checkpoint["allocated_ranks"] != ranks_of(cast(PeftModel, self.generator)):
                self.allocate(checkpoint["allocated_ranks"])
            self.ranks = checkpoint["ranks"]
        super().on_load_checkpoint(checkpoint)
