"""What teachers that wrap a pipeline of diffusers share."""

from functools import cached_property
from importlib.metadata import version
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn
from typing_extensions import override

from pocketgan.digest import weights_digest
from pocketgan.teachers.teacher import Teacher


class PipelineTeacher(Teacher):
    """A frozen pipeline of diffusers.

    Args:
        pipeline: With all weights in place.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._pipeline.set_progress_bar_config(disable=True)
        # submodules, so that the pipeline follows this module to its device
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.networks = nn.ModuleDict(parts).eval().requires_grad_(False)

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
            "diffusers": version("diffusers"),
        }
