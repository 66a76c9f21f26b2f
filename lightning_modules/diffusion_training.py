"""A diffusion network from scratch, on whole pictures or on crops."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DModel
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_modules.diffusion_module import DiffusionModule
from pocketgan.class_pipeline import ClassPipeline
from pocketgan.compression import plain_tensors
from pocketgan.losses import DiffusionLoss
from pocketgan.patch_diffusion import PatchCrop, with_coordinates


class DiffusionTraining(DiffusionModule):
    """Trains a U-Net of diffusers on pixels or latents, on request by Patch Diffusion (arXiv 2304.12526).

    With ``patch_crop`` the network sees two more channels, the coordinates, and is sampled and validated on whole
    pictures with the whole grid. Images of the data count on the clock, not the crops made of them.

    Args:
        network: With two input channels more than the data for ``patch_crop``; with ``num_class_embeds`` it is
            conditioned on classes.
        loss: Compares prediction and target, with its weight for each noise level.
        optimizer: Made over all weights.
        patch_crop: Cuts crops; whole pictures if None.
        ema_halflife_images: Images after which a weight counts half in the moving average (EDM2's convention).
        ema_rampup_ratio: The half-life is at most this share of the images seen (StyleGAN2-ADA's convention).
        scheduler: Noise levels; DDPM's linear ones if None.
    """

    def __init__(
        self,
        network: UNet2DModel,
        loss: DiffusionLoss,
        optimizer: OptimizerCallable,
        patch_crop: PatchCrop | None = None,
        ema_halflife_images: float = 10_000.0,
        ema_rampup_ratio: float = 0.125,
        scheduler: DDPMScheduler | None = None,
    ) -> None:
        super().__init__(loss, optimizer, scheduler or DDPMScheduler(), ema_halflife_images, ema_rampup_ratio)
        self.network, self.patch_crop = network, patch_crop
        self.start_average()

    @property
    def denoiser(self) -> nn.Module:
        """The network."""
        return self.network

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All weights."""
        return dict(self.network.named_parameters())

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Check that network and data go together."""
        data = self.labelled_data()
        self.check(data.latent_shape, len(data.classes))

    def check(self, shape: tuple[int, int, int], classes: int) -> None:
        """Refuse latents (C, H, W) or classes that the network cannot take.

        Raises:
            ValueError: Channels, sides or classes do not fit.
        """
        channels, height, width = shape
        wanted = channels + (2 if self.patch_crop else 0)
        if self.network.config.in_channels != wanted or self.network.config.out_channels < channels:
            raise ValueError(
                f"the network takes {self.network.config.in_channels} channels and gives "
                f"{self.network.config.out_channels}; these data need in_channels {wanted}"
                f"{' (two are coordinates)' if self.patch_crop else ''} and out_channels {channels}"
            )
        factor = 2 ** (len(self.network.config.block_out_channels) - 1)
        smallest = factor * (max(self.patch_crop.shares) if self.patch_crop else 1)
        if height % smallest or width % smallest:
            raise ValueError(
                f"latents of {height}x{width} are not divisible by {smallest}, the network's factor of {factor} times "
                "the smallest crop's divisor; change data.size, the network's blocks or the crops"
            )
        known = self.network.config.num_class_embeds
        if known is not None and known < classes:
            raise ValueError(
                f"the network knows {known} classes, the data hold {classes}; set num_class_embeds to that"
            )

    def predict(self, noisy: Tensor, batch: dict[str, Tensor], denoiser: Callable[..., Any]) -> Tensor:
        """Run the network on crops with their coordinates, or on whole pictures with all of them."""
        if self.patch_crop is not None:
            noisy = torch.cat((noisy, batch["coordinates"]), 1) if "coordinates" in batch else with_coordinates(noisy)
        label = batch["label"] if self.network.config.num_class_embeds is not None else None
        return denoiser(noisy, batch["timesteps"], class_labels=label).sample

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:  # noqa: ARG002
        """Cut crops of one size, predict noise of drawn levels."""
        images = len(batch["label"])
        if self.patch_crop is not None:
            crops, grids, places = self.patch_crop(batch["latents"])
            batch = {"latents": crops, "coordinates": grids, "label": batch["label"][places]}
        return self.learn(batch, images)

    def pipeline(self, classes: list[str], sample_size: int, vae: AutoencoderKL | None = None) -> ClassPipeline:
        """The averaged network as diffusers' pipelines are, to sample from.

        Args:
            classes: Names in the order of the labels.
            sample_size: Side of the pixels or latents.
            vae: The autoencoder of latents; None for pixels.
        """
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn; the training's numbers are not for them
            network = UNet2DModel.from_config(self.network.config, sample_size=sample_size).to(self.device)
        network.load_state_dict(plain_tensors(self.network, self.averaged))
        # trailing: the first step is at the highest noise level; samples of latents go beyond [-1, 1]
        options = {"timestep_spacing": "trailing", "clip_sample": vae is None}
        scheduler = DDIMScheduler.from_config(self.scheduler.config, **options)
        return ClassPipeline(network, scheduler, vae, classes, coordinates=self.patch_crop is not None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the clock, and where masks are."""
        checkpoint["images_seen"] = self.images_seen
        self.store_masks(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take clock and masks back.

        Raises:
            ValueError: The checkpoint is of something else.
        """
        if "images_seen" not in checkpoint:
            raise ValueError("the checkpoint is of no DiffusionTraining: it has no images_seen")
        self.images_seen = checkpoint["images_seen"]
        self.restore_masks(checkpoint)
