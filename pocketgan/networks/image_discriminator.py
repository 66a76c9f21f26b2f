"""The slot for networks that judge single images."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ImageDiscriminator(nn.Module, ABC):
    """Judges images, of a class where there are classes.

    Attributes:
        size: Side of the images in pixels.
        image_channels: C, channels of the images; 3 for RGB.
        classes: Number of classes; 0 if it takes no labels.
    """

    size: int
    image_channels: int
    classes: int

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            images: (B, C, size, size) in [-1, 1].
            labels: (B,) whole numbers below ``classes``; None if there are no classes.

        Returns:
            Logits (B, 1); larger is more like the data.
        """
