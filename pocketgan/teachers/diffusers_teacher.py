"""A diffusion pipeline as the teacher."""

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pocketgan.digest import weights_digest
from pocketgan.personalization import load_personalization, pipeline_class_of
from pocketgan.teachers.teacher import Teacher


class DiffusersTeacher(Teacher):
    """Any image-to-image pipeline that diffusers' ``AutoPipelineForImage2Image`` opens, by repo id or local folder.

    A photo gets noise up to ``strength`` of the schedule and is denoised under the concept's prompt (SDEdit, Meng et
    al., arXiv 2108.01073). Each photo is edited by itself with a generator of its own on the CPU: kernels and random
    numbers would otherwise depend on the batch. The safety checker is left out: it would black out edits.

    Args:
        pipeline: Repo id, for example ``stable-diffusion-v1-5/stable-diffusion-v1-5``, or a local folder.
        prompts: Concepts: name to prompt.
        personalization: ``RUN/personalization`` of a ``Personalization`` run on the same pipeline; prompts then hold
            its token.
        strength: Share of the schedule, above 0 to 1; 1 keeps nothing of the photo.
        steps: Steps of the whole schedule, of which ``strength`` is done.
        guidance: Scale of classifier-free guidance; 1 for none.

    Raises:
        FileNotFoundError: Pipeline or personalization cannot be found.
        ValueError: A number is out of range, or there is no prompt.
    """

    def __init__(
        self,
        pipeline: str,
        prompts: dict[str, str],
        personalization: Path | None = None,
        strength: float = 0.6,
        steps: int = 50,
        guidance: float = 7.5,
    ) -> None:
        super().__init__()
        if not 0 < strength <= 1 or int(steps * strength) < 1:
            raise ValueError(
                f"strength is {strength} of {steps} steps; give a strength above 0 to 1 and enough steps for one"
            )
        if not prompts:
            raise ValueError(
                "prompts is empty; give concepts as a mapping of name to prompt, for example oil: an oil painting"
            )
        from diffusers import AutoPipelineForImage2Image

        pipeline_class_of(pipeline)
        self._pipeline = AutoPipelineForImage2Image.from_pretrained(
            pipeline, safety_checker=None, requires_safety_checker=False
        )
        if personalization is not None:
            load_personalization(self._pipeline, personalization)
        self._pipeline.set_progress_bar_config(disable=True)
        # submodules, so that the pipeline follows this module to its device
        parts = {name: part for name, part in self._pipeline.components.items() if isinstance(part, nn.Module)}
        self.networks = nn.ModuleDict(parts).eval().requires_grad_(False)
        self._prompts, self._strength, self._steps, self._guidance = dict(prompts), strength, steps, guidance

    @property
    @override
    def concepts(self) -> dict[str, str]:
        return dict(self._prompts)

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_digest(self.networks)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel: weights, personalization included, and schedule rather than a repo's name."""
        schedule = {name: value for name, value in self._pipeline.scheduler.config.items() if name[0] != "_"}
        return {
            "name": type(self).__name__,
            "pipeline": type(self._pipeline).__name__,
            "weights_sha256": self._weights_sha256,
            "scheduler": {"name": type(self._pipeline.scheduler).__name__, **schedule},
            "strength": self._strength,
            "steps": self._steps,
            "guidance": self._guidance,
            "diffusers": version("diffusers"),
        }

    @override
    @torch.no_grad()
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        edits = [self._edit_one(photos[row : row + 1], prompt, seed) for row, seed in enumerate(seeds)]
        return torch.cat(edits).to(photos) if edits else photos

    def _edit_one(self, photo: Tensor, prompt: str, seed: int) -> Tensor:
        """Edit (1, 3, H, W) in [-1, 1].

        Raises:
            ValueError: The pipeline cannot take the size.
        """
        step = self._pipeline.vae_scale_factor
        if hasattr(self._pipeline, "unet"):
            step *= 2 ** (len(self._pipeline.unet.config.block_out_channels) - 1)
        height, width = photo.shape[-2:]
        if height % step or width % step:
            raise ValueError(f"photos are {height}×{width}, the pipeline's step is {step}; set data.size to a multiple")
        edited: Tensor = self._pipeline(
            prompt=prompt,
            image=photo.float().add(1).div(2),  # of tensors, diffusers takes those in [0, 1]
            strength=self._strength,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        return edited.mul(2).sub(1)
