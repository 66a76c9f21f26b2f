"""A diffusion pipeline as the teacher."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pocketgan.personalization import load_personalization, pipeline_class_of
from pocketgan.sdedit import steps_done
from pocketgan.teachers.pipeline_teacher import PipelineTeacher


class DiffusersTeacher(PipelineTeacher):
    """Any image-to-image pipeline that diffusers' ``AutoPipelineForImage2Image`` opens, by repo id or local folder.

    A photo is denoised under the concept's prompt. The safety checker is left out: it would black out edits.

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
        ValueError: A number is out of range, the pipeline is of a kind that edits no photos, there is no prompt, or
            none holds the personalization's token.
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
        steps_done(strength, steps)  # refuses before anything is loaded
        if not prompts:
            raise ValueError(
                "prompts is empty; give concepts as a mapping of name to prompt, for example oil: an oil painting"
            )
        from diffusers import AutoPipelineForImage2Image

        found = pipeline_class_of(pipeline)
        try:
            opened = AutoPipelineForImage2Image.from_pretrained(
                pipeline, safety_checker=None, requires_safety_checker=False
            )
        except ValueError as error:
            if "can't find a pipeline linked to" not in str(error):
                raise
            raise ValueError(
                f"{pipeline} holds a {found}, of which diffusers has no image-to-image form; give one such as "
                "StableDiffusionPipeline or StableDiffusionXLPipeline"
            ) from error
        if personalization is not None:
            token = load_personalization(opened, personalization)
            if token is not None and not any(token in prompt for prompt in prompts.values()):
                raise ValueError(
                    f"{personalization} taught the token {token}, which none of the prompts holds "
                    f"({', '.join(prompts.values())}); write it into them"
                )
        super().__init__(opened, strength, steps)
        self._prompts, self._guidance = dict(prompts), guidance

    @property
    @override
    def concepts(self) -> dict[str, str]:
        return dict(self._prompts)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel, guidance too."""
        return {**super().settings, "guidance": self._guidance}

    @override
    def _edit_one(self, photo: Tensor, prompt: str, generator: torch.Generator) -> Tensor:
        step = self._pipeline.vae_scale_factor
        if hasattr(self._pipeline, "unet"):
            step *= 2 ** (len(self._pipeline.unet.config.block_out_channels) - 1)
        height, width = photo.shape[-2:]
        if height % step or width % step:
            raise ValueError(f"photos are {height}×{width}, the pipeline's step is {step}; set data.size to a multiple")
        edited: Tensor = self._pipeline(
            prompt=prompt,
            image=photo.add(1).div(2),  # of tensors, diffusers takes those in [0, 1]
            strength=self._strength,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            generator=generator,
            output_type="pt",
        ).images
        return edited.mul(2).sub(1)
