"""A class-conditional diffusion model of our own as the teacher."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pocketgan.class_pipeline import load_class_pipeline
from pocketgan.pair_set import as_name
from pocketgan.sdedit import steps_done
from pocketgan.teachers.pipeline_teacher import PipelineTeacher


class ClassDiffusionTeacher(PipelineTeacher):
    """Turns photos towards a class, by the model of a ``DiffusionTraining`` run; its classes are the concepts.

    Args:
        pipeline: ``RUN/pipeline``.
        strength: Share of the schedule, above 0 to 1; 1 keeps nothing of the photo.
        steps: Steps of the whole schedule, of which ``strength`` is done.

    Raises:
        FileNotFoundError: There is no pipeline.
        ValueError: A number is out of range, or the model knows no classes; later: photos are of another size than the
            model's.
    """

    def __init__(self, pipeline: Path, strength: float = 0.6, steps: int = 50) -> None:
        steps_done(strength, steps)  # refuses before anything is loaded
        opened = load_class_pipeline(pipeline)
        if opened.unet.config.num_class_embeds is None:
            raise ValueError(
                f"the model of {pipeline} was trained without classes and would make the same edit for each; train it "
                "with network.num_class_embeds"
            )
        super().__init__(opened)
        self._strength, self._steps = strength, steps

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel."""
        return {**super().settings, "strength": self._strength, "steps": self._steps}

    @property
    @override
    def concepts(self) -> dict[str, str]:
        """The classes, each its own prompt; what cannot be part of a file's name becomes _."""
        return {as_name(name): name for name in self._pipeline.config.classes}

    @override
    @torch.no_grad()
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        if not seeds:
            return photos
        # one by one: kernels, and with them the last bits, would depend on the batch
        edits = [
            self._edit_one(photo, prompt, torch.Generator().manual_seed(seed))
            for photo, seed in zip(photos.float().split(1), seeds, strict=True)
        ]
        return torch.cat(edits).to(photos)

    def _edit_one(self, photo: Tensor, prompt: str, generator: torch.Generator) -> Tensor:
        """Edit (1, 3, H, W) in [-1, 1]."""
        classes = list(self._pipeline.config.classes)
        if prompt not in classes:
            raise ValueError(f"the model knows no class {prompt!r}; its classes are {', '.join(classes)}")
        side = self._pipeline.image_size
        if photo.shape[-2:] != (side, side):
            height, width = photo.shape[-2:]
            raise ValueError(f"photos are {height}×{width}, the model edits {side}×{side}; set data.size to {side}")
        edited: Tensor = self._pipeline(
            [classes.index(prompt)],
            image=photo,
            strength=self._strength,
            num_inference_steps=self._steps,
            generator=generator,
        )
        return edited
