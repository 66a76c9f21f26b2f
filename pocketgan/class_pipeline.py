"""Sampling from a class-conditional diffusion U-Net, and editing photos with it."""

from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pocketgan.dit_pipeline import downscaling, scaled_latents
from pocketgan.patch_diffusion import with_coordinates
from pocketgan.sdedit import steps_done


class ClassPipeline(DiffusionPipeline):
    """What a ``DiffusionTraining`` run leaves: ``RUN/pipeline``, in diffusers' own format.

    Pixels or latents, with Patch Diffusion's coordinates or without: whole pictures have the whole grid.

    Args:
        unet: Its ``sample_size`` is the side of the pixels or latents that it learned.
        scheduler: Noise levels.
        vae: The autoencoder of latents; None for pixels.
        classes: Names in the order of the labels.
        coordinates: Whether the U-Net reads two channels of coordinates.
    """

    _optional_components: ClassVar[list[str]] = ["vae"]  # diffusers reads it so

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        vae: AutoencoderKL | None = None,
        classes: list[str] | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(classes=classes or [], coordinates=coordinates)

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that it learned."""
        side: int = self.unet.config.sample_size
        return side if self.vae is None else side * downscaling(self.vae)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        image: Tensor | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Sample pictures, or edit given ones by SDEdit (Meng et al., arXiv 2108.01073).

        Args:
            class_labels: B labels, places in ``classes``.
            image: (B, 3, S, S) in [-1, 1] with S = ``image_size``, to begin from; noise alone if None.
            strength: Share of the schedule that an image is noised to and denoised from, above 0 to 1.
            num_inference_steps: Steps of the whole schedule.
            generator: One, or one a picture.

        Returns:
            (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: Labels and images are not as many, a label is unknown, the size is another, or no step is left.
        """
        if not class_labels or (image is not None and len(image) != len(class_labels)):
            given = "no image" if image is None else f"{len(image)} images"
            raise ValueError(f"{len(class_labels)} labels came with {given}; give one label for each picture")
        if any(not 0 <= label < len(self.config.classes) for label in class_labels):
            raise ValueError(f"labels {class_labels} go beyond the {len(self.config.classes)} classes")
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps
        channels, side = self.unet.config.in_channels - 2 * self.config.coordinates, self.unet.config.sample_size
        noise = randn_tensor(
            (len(class_labels), channels, side, side),
            generator=generator,
            device=self._execution_device,
            dtype=self.unet.dtype,
        )
        sample = noise * self.scheduler.init_noise_sigma
        if image is not None:
            if image.shape[-2:] != (self.image_size, self.image_size):
                height, width = image.shape[-2:]
                raise ValueError(
                    f"images are {height}×{width} px, this pipeline learned {self.image_size}×{self.image_size}; "
                    "scale them to that"
                )
            timesteps = timesteps[-steps_done(strength, num_inference_steps) :]
            sample = self.scheduler.add_noise(self._encoded(image.to(noise)), noise, timesteps[:1])
        labels = torch.tensor(class_labels, device=sample.device)
        conditional = {"class_labels": labels} if self.unet.config.num_class_embeds is not None else {}
        for timestep in self.progress_bar(timesteps):
            seen = self.scheduler.scale_model_input(sample, timestep)
            prediction = self.unet(
                with_coordinates(seen) if self.config.coordinates else seen, timestep, **conditional
            ).sample
            sample = self.scheduler.step(prediction[:, :channels], timestep, sample).prev_sample
        return self._decoded(sample).clamp(-1, 1)

    def _encoded(self, image: Tensor) -> Tensor:
        if self.vae is None:
            return image
        return scaled_latents(self.vae.encode(image).latent_dist.mean, self.vae)

    def _decoded(self, sample: Tensor) -> Tensor:
        if self.vae is None:
            return sample
        latents = sample / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        return cast(Tensor, self.vae.decode(latents).sample)


def load_class_pipeline(folder: Path) -> ClassPipeline:
    """Open ``RUN/pipeline``.

    Args:
        folder: With ``model_index.json``.

    Raises:
        FileNotFoundError: There is no pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model_index.json; give RUN/pipeline of a `pocketgan fit -c "
            "configs/diffusion_training/….yaml`"
        )
    pipeline: Any = ClassPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return cast(ClassPipeline, pipeline)
