"""A new concept on a trained base, by LoRA on the crucial layers."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from lightning_modules.paired_gan import PairedGAN
from lightning_modules.run import load_base
from pocketgan.adapters import add_lora, ranks_of, read_ranks, resized
from pocketgan.digest import weights_digest
from pocketgan.networks import Generator


class LoRAAdaptation(PairedGAN):
    """E2GAN's adaptation (arXiv 2401.06127): low-rank deltas on down- and up-sampling layers and the transformer.

    Residual blocks stay frozen without LoRA. The generator starts from the base's average; the discriminator starts
    from the base's and serves this training alone. Generator norms run in eval mode, so that batch norm keeps the
    base's statistics and the adapter need not store them.

    Args:
        base: Run folder of the base.
        ranks: LoRA rank by part of the generator, see ``pocketgan.adapters.layer_ranks``; or a YAML file of them, such
            as the ``ranks.yaml`` of a run with RankSearch. For RankSearch they are the relative ranks.
        full_layers: Parts of the generator trained in full; stem and head in E2GAN, as its parameter counts suggest.
        ema_halflife_images: Images after which a weight counts half in the moving average.
        **options: Of ``PairedGAN``. The generator's optimizer gets deltas, fully trained parts and, where the text
            encoder learns, the concept's tokens; LoRA wants 2 to 10 times the base's learning rate.

    Raises:
        FileNotFoundError: There is no such base or rank file.
        ValueError: The base is itself an adapter, or the ranks do not fit it.
    """

    def __init__(
        self,
        base: Path,
        ranks: dict[str, int] | Path,
        full_layers: list[str] | None = None,
        ema_halflife_images: float = 1_000.0,
        **options: Any,
    ) -> None:
        trained = load_base(base)
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
            ema_halflife_images=ema_halflife_images,
            **options,
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
            ranks: Rank by full name of every layer that gets one; all of them are stored until ``ranks`` says less.
        """
        self.ranks = ranks
        # new rows of A by the run's seed alone: Lightning's ddp rewinds torch's own random numbers before this
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(torch.initial_seed())
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
