"""The slot for ways to teach a concept to a pipeline."""

from abc import ABC, abstractmethod
from pathlib import Path

from diffusers import StableDiffusionPipeline
from torch import nn


class PersonalizationMethod(ABC):
    """What of a pipeline trains, and how it is stored.

    Attributes:
        token: The word for the concept; every training prompt must hold it.
        prior_weight: Factor on the loss on class images, DreamBooth's prior preservation; 0 for none.
    """

    token: str
    prior_weight: float = 0.0

    def prepare(self, pipeline: StableDiffusionPipeline) -> None:
        """Freeze the pipeline, then add what trains and mark it; the prediction changes by the new token alone.

        Args:
            pipeline: Changed in place; text encoder and U-Net may be on the meta device.

        Raises:
            ValueError: The method's words do not fit the tokenizer.
        """
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            part.requires_grad_(False).eval()
        self._add(pipeline)
        self._networks: tuple[nn.Module, nn.Module] = (pipeline.text_encoder, pipeline.unet)

    @abstractmethod
    def _add(self, pipeline: StableDiffusionPipeline) -> None:
        """Add what trains to the frozen pipeline, with ``requires_grad``."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What trains, after ``prepare``."""
        return [weight for network in self._networks for weight in network.parameters() if weight.requires_grad]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained, and nothing else, in files that diffusers loads.

        Args:
            folder: An existing folder.
        """


def check_prior_weight(weight: float) -> float:
    """Refuse a negative weight.

    Raises:
        ValueError: It is below 0.
    """
    if weight < 0:
        raise ValueError(f"prior_weight is {weight}; give 0 for no prior preservation, or more, such as 1")
    return weight
