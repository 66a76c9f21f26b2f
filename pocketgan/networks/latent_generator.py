"""The slot for networks that make images of noise."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class LatentGenerator(nn.Module, ABC):
    """Noise, and a class where there are classes, go in; an image comes out.

    Attributes:
        latent_size: Z, features of one latent.
        size: Side of the images in pixels.
        image_channels: C, channels of the images; 3 for RGB.
        classes: Number of classes; 0 if it takes no labels.
    """

    latent_size: int
    size: int
    image_channels: int
    classes: int

    @abstractmethod
    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images.

        Args:
            latents: (B, Z), standard normal.
            labels: (B,) whole numbers below ``classes``; None if there are no classes.

        Returns:
            (B, C, size, size), made to be in [-1, 1]; a network without a last tanh may leave it.
        """
