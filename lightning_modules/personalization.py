"""A concept from a few photos, taught to a Stable Diffusion pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.functional import max_pool2d, pad
from torch.optim import Optimizer
from typing_extensions import override

from datamodules import ConceptImages
from lightning_modules.diffusion_draws import draw_by_rank, spread_timesteps
from pocketgan.digest import weights_digest
from pocketgan.losses import DiffusionLoss
from pocketgan.personalization import PersonalizationMethod, load_pipeline


class Personalization(LightningModule):
    """Textual inversion, DreamBooth with LoRA or Custom Diffusion: one step, the method is a slot.

    The usual diffusion loss on photos of the concept, with noise and timestep drawn for each photo, plus
    ``prior_weight`` times the same loss on class images where the method wants them. The clock is images seen over all
    ranks; class images do not count. All networks are in eval mode: none of them has dropout or batch statistics.
    Checkpoints hold what trains, and nothing of the pipeline.

    Args:
        pipeline: Repo id or local folder of a Stable Diffusion pipeline.
        method: What trains, and how it is stored.
        loss: Weighs noise levels; the scheduler of the pipeline says what is predicted.
        optimizer: Made over what trains.

    Raises:
        FileNotFoundError: The pipeline can be neither found nor reached.
        ValueError: It is of another kind, or the method's words do not fit its tokenizer; later: the data's phrase
            lacks the method's token, class images and prior weight do not go together, or the size does not fit.
    """

    def __init__(
        self, pipeline: str, method: PersonalizationMethod, loss: DiffusionLoss, optimizer: OptimizerCallable
    ) -> None:
        super().__init__()
        self.strict_loading = False  # the pipeline is no part of a checkpoint; on_load_checkpoint checks the rest
        self.pipeline = load_pipeline(pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.method, self.loss, self.optimizer = method, loss, optimizer
        method.prepare(self.pipeline)
        # submodules, so that they follow the trainer to its device
        self.unet, self.text_encoder, self.vae = self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.vae
        self.scheduler: DDPMScheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.images_seen = 0

    @override
    def setup(self, stage: str) -> None:
        """Check that data and method go together."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ConceptImages):
            raise TypeError(f"Personalization learns from ConceptImages; data is {type(data).__name__}")
        if self.method.token not in data.phrase:
            raise ValueError(
                f"data.phrase is {data.phrase!r}, without the method's token {self.method.token!r}; the prompts must "
                "hold it"
            )
        if bool(self.method.prior_weight) != bool(data.class_prompts):
            raise ValueError(
                f"prior_weight is {self.method.prior_weight:g} and there are {len(data.class_prompts)} class images; "
                "give data.class_root with class_prompt for prior preservation, or leave both out"
            )
        step = self.pipeline.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if data.size % step:
            lower = data.size // step * step
            raise ValueError(
                f"size {data.size} is not divisible by {step}, the model's step; use {lower or step} or {lower + step}"
            )
        if data.rescale and data.size < 12 * self.pipeline.vae_scale_factor:
            raise ValueError(
                f"size {data.size} is too small for rescale: a third of it must span 4 of the VAE's cells of "
                f"{self.pipeline.vae_scale_factor} px; use {12 * self.pipeline.vae_scale_factor} or more"
            )

    @override
    def on_fit_start(self) -> None:
        """Have the VAE see the photos once; give each rank noise of its own, where all begin with one seed."""
        draw_by_rank(self.trainer)
        self._provide_moments()

    @override
    def on_validation_start(self) -> None:
        """Have the VAE see the photos once, where no training did."""
        self._provide_moments()

    def _provide_moments(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        data.provide_moments(self.encode, weights_digest(self.vae), self.device)

    @override
    def configure_optimizers(self) -> Optimizer:
        """One optimizer over what the method trains."""
        return self.optimizer(self.method.trainable_parameters())

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """The VAE's posterior: (B, 3, S, S) in [-1, 1] to means and log variances (B, 2C, h, w)."""
        moments: Tensor = self.vae.encode(image.to(self.device)).latent_dist.parameters
        return moments

    def _latents(self, moments: Tensor) -> Tensor:
        """One sample of the posterior (B, C, h, w), scaled as the U-Net wants it."""
        return DiagonalGaussianDistribution(moments).sample() * self.vae.config.scaling_factor

    def _text(self, prompts: Sequence[str]) -> Tensor:
        """Token features (B, L, D), as the pipeline itself makes them."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        features: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return features

    def _mask(self, mask: Tensor) -> Tensor:
        """Cells of the latent that show the photo alone: (B, 1, S, S) to (B, 1, h, w).

        A cell counts if all of its pixels do, and all cells around it, since the VAE looks beyond a cell; as in Custom
        Diffusion's code, but for cells at the border of the picture, which have no such neighbour.
        """
        whole = -max_pool2d(-mask, self.pipeline.vae_scale_factor)
        return -max_pool2d(-pad(whole, (1, 1, 1, 1), value=1.0), 3, stride=1)

    def _drawn(self, batch: dict[str, Any], timesteps: Tensor | None = None) -> dict[str, Any]:
        """Draw latents, noise and, unless given, timesteps for the photos of a batch."""
        moments = batch["moments"] if "moments" in batch else self.encode(batch["image"])
        latents = self._latents(moments)
        if timesteps is None:
            timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), device=self.device)
        drawn = {
            "latents": latents,
            "noise": torch.randn_like(latents),
            "timesteps": timesteps,
            "prompt": batch["prompt"],
        }
        return drawn | ({"mask": self._mask(batch["mask"])} if "mask" in batch else {})

    def _losses(self, drawn: dict[str, Any]) -> Tensor:
        """The loss of each example (B,)."""
        latents, noise, timesteps = drawn["latents"], drawn["noise"], drawn["timesteps"]
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy, timesteps, self._text(drawn["prompt"])).sample
        losses: Tensor = self.loss(prediction, latents, noise, timesteps, self.scheduler, drawn.get("mask"))
        return losses

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss on the photos and, in the same pass, on the class images."""
        concept, count = self._drawn(batch), len(batch["prompt"])
        if self.method.prior_weight:
            prior = self._drawn({"moments": batch["class_moments"], "prompt": batch["class_prompt"]})
            if "mask" in concept:
                prior["mask"] = torch.ones_like(concept["mask"])
            losses = self._losses(
                {
                    name: [*value, *prior[name]] if name == "prompt" else torch.cat((value, prior[name]))
                    for name, value in concept.items()
                }
            )
            prior_loss = losses[count:].mean()
            loss = losses[:count].mean() + self.method.prior_weight * prior_loss
            self.log("train/prior", prior_loss, batch_size=count)
        else:
            loss = self._losses(concept).mean()
        self.images_seen += count * self.trainer.world_size
        self.log("train/loss", loss, batch_size=count)
        self.log("images", float(self.images_seen), batch_size=count)
        return loss

    def frozen(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draw once all that a step draws, as DVAR's code does: one posterior sample, noise, timesteps.

        Timesteps come from one permutation, so that none comes twice before all have come.

        Args:
            batch: Of ``ConceptImages``, nothing drawn.

        Returns:
            ``latents`` and ``noise`` (B, C, h, w), ``timesteps`` (B,), ``prompt`` (list of B).
        """
        count, steps = len(batch["prompt"]), self.scheduler.config.num_train_timesteps
        return self._drawn(batch, spread_timesteps(count, steps, self.device))

    def deterministic_objective(self, batch: dict[str, Any]) -> Tensor:
        """The training loss on a ``frozen`` batch: same weighting, same prediction type.

        Without the prior term: it keeps the class where it was and says nothing of the concept. DVAR's code takes
        the class images of its frozen batch in, but leaves out mask and prior weight.
        """
        return self._losses(batch).mean()

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log ``val/loss``: the loss on the training photos with draws that are the same each time."""
        with isolate_rng(include_cuda=self.device.type == "cuda"):
            torch.manual_seed(batch_idx)
            loss = self.deterministic_objective(self.frozen(batch))
        self.log("val/loss", loss, batch_size=len(batch["prompt"]), sync_dist=True)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, size: int) -> Tensor:
        """Make pictures with the pipeline as it is now.

        Args:
            prompts: B prompts.
            seeds: B seeds, one a picture.
            steps: Sampling steps.
            guidance: Scale of classifier-free guidance; 1 for none.
            size: Side in pixels.

        Returns:
            (B, 3, S, S) in [-1, 1].
        """
        pictures: Tensor = self.pipeline(
            list(prompts),
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        return pictures * 2 - 1

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What trains, by its name in this module."""
        return {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the clock."""
        checkpoint["images_seen"] = self.images_seen

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the clock; refuse weights of another method or pipeline.

        Raises:
            ValueError: What the checkpoint holds is not what this run trains.
        """
        expected = {name: tuple(weight.shape) for name, weight in self.state_dict().items()}
        found = {name: tuple(weight.shape) for name, weight in checkpoint["state_dict"].items()}
        if found != expected:
            names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            raise ValueError(
                f"the checkpoint is of another method or pipeline: {names[0]} is {found.get(names[0], 'missing')} "
                f"there and {expected.get(names[0], 'missing')} here; resume with the run's own config.yaml"
            )
        self.images_seen = checkpoint["images_seen"]
