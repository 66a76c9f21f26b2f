"""What teachers that noise and denoise a photo share."""

from abc import abstractmethod
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from typing_extensions import override

from pocketgan.digest import weights_digest
from pocketgan.teachers.teacher import Teacher


class PipelineTeacher(Teacher):
    """A pipeline of diffusers that edits by SDEdit (Meng et al., arXiv 2108.01073).

    A photo gets noise up to ``strength`` of the schedule and is denoised under the concept. Each photo is edited by
    itself with a generator of its own on the CPU: kernels and random numbers would otherwise depend on the batch.

    Args:
        pipeline: With all weights in place.
        strength: Share of the schedule, above 0 to 1; 1 keeps nothing of the photo.
        steps: Steps of the whole schedule, of which ``strength`` is done.
    """

    def __init__(self, pipeline: DiffusionPipeline, strength: float, steps: int) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._pipeline.set_progress_bar_config(disable=True)
        # submodules, so that the pipeline follows this module to its device
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.networks = nn.ModuleDict(parts).eval().requires_grad_(False)
        self._strength, self._steps = strength, steps

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_digest(self.networks)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel: weights and schedule rather than the pipeline's name."""
        schedule = {name: value for name, value in self._pipeline.scheduler.config.items() if name[0] != "_"}
        return {
            "name": type(self).__name__,
            "pipeline": type(self._pipeline).__name__,
            "weights_sha256": self._weights_sha256,
            "scheduler": {"name": type(self._pipeline.scheduler).__name__, **schedule},
            "strength": self._strength,
            "steps": self._steps,
            "diffusers": version("diffusers"),
        }

    @override
    @torch.no_grad()
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        edits = [
            self._edit_one(photos[row : row + 1].float(), prompt, torch.Generator().manual_seed(seed))
            for row, seed in enumerate(seeds)
        ]
        return torch.cat(edits).to(photos) if edits else photos

    @abstractmethod
    def _edit_one(self, photo: Tensor, prompt: str, generator: torch.Generator) -> Tensor:
        """Edit one photo.

        Args:
            photo: (1, 3, H, W) in [-1, 1].
            prompt: The concept's.
            generator: The photo's own, on the CPU.

        Raises:
            ValueError: The pipeline cannot take the size.
        """
