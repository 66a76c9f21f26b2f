"""The slot for what spares a denoiser's work between steps."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from pocketgan.digest import constructor_arguments


class DenoiserCache(ABC):
    """Keeps features of one denoising step for later ones; a setting that changes pixels, so the manifest has it.

    A subclass keeps each argument of its constructor under the argument's name.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """Every number that changes a pixel, as plain JSON values."""
        return {"name": type(self).__name__, **constructor_arguments(self)}

    @abstractmethod
    def enable(self, pipeline: Any, arguments: dict[str, Any]) -> None:
        """Put the cache on a pipeline's denoiser.

        Args:
            pipeline: Of diffusers, with its weights in place.
            arguments: Of its calls, such as ``num_inference_steps``; none but those given by the user.

        Raises:
            ValueError: The cache does not work with this pipeline, its scheduler or these arguments.
        """

    @abstractmethod
    def of_one_call(self) -> AbstractContextManager[None]:
        """Around one call of the pipeline, so that nothing of an earlier photo is left in it."""
