"""The slot for what a generator pays beside its adversarial loss."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pocketgan.networks.latent_generator import LatentGenerator


class GeneratorRegularization(nn.Module, ABC):
    """A loss on the generator alone, computed lazily: in every ``interval``-th of the generator's steps.

    The loss holds its weight but not the factor ``interval``: who computes it in one of ``interval`` steps multiplies
    it by that, as StyleGAN2's lazy regularisation does (arXiv 1912.04958, appendix B).

    Attributes:
        interval: The generator's steps from one computation to the next.
    """

    interval: int

    @abstractmethod
    def forward(self, generator: LatentGenerator, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the weighted loss.

        Args:
            generator: In train mode.
            latents: (B, Z), standard normal.
            labels: (B,) whole numbers; None if the generator has no classes.

        Returns:
            A scalar.
        """

    def check_generator(self, generator: LatentGenerator) -> None:
        """Refuse a generator that this loss cannot be computed on; call it before training.

        Raises:
            TypeError: It cannot.
        """
