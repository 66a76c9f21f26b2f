"""The slot for what a discriminator pays beside its adversarial loss."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pocketgan.networks.image_discriminator import ImageDiscriminator


class DiscriminatorRegularization(nn.Module, ABC):
    """A loss on the discriminator and the data, computed lazily: in every ``interval``-th of the discriminator's steps.

    The loss holds its weight but not the factor ``interval``: who computes it in one of ``interval`` steps multiplies
    it by that, as StyleGAN2's lazy regularisation does (arXiv 1912.04958, appendix B).

    Attributes:
        interval: The discriminator's steps from one computation to the next.
    """

    interval: int

    @abstractmethod
    def forward(self, discriminator: ImageDiscriminator, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the weighted loss.

        Args:
            discriminator: In train mode.
            images: (B, C, H, W) of the data, in [-1, 1].
            labels: (B,) whole numbers; None if the discriminator has no classes.

        Returns:
            A scalar.
        """
