"""R1 regularisation."""

import torch
from torch import Tensor

from pocketgan.losses.discriminator_regularization import DiscriminatorRegularization
from pocketgan.networks.image_discriminator import ImageDiscriminator


class R1Regularization(DiscriminatorRegularization):
    """The discriminator should be flat on the data: γ / 2 · E ‖∇ D(x)‖².

    Mescheder et al. 2018, arXiv 1801.04406, equation 9.

    Args:
        gamma: The γ.
        interval: The discriminator's steps from one computation to the next.

    Raises:
        ValueError: One of them is out of range.

    Example:
        D(x) = w · x with ‖w‖² = 3 and γ = 10 give 15 on any images.
    """

    def __init__(self, gamma: float = 10.0, interval: int = 16) -> None:
        super().__init__()
        if gamma <= 0 or interval < 1:
            raise ValueError(
                f"gamma {gamma}, interval {interval}: a gamma above 0 and an interval from 1 are needed; StyleGAN2 has "
                "10 and 16 at 1024 px"
            )
        self.gamma = gamma
        self.interval = interval

    def forward(self, discriminator: ImageDiscriminator, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the weighted loss; see ``DiscriminatorRegularization.forward``."""
        images = images.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
        return self.gamma / 2 * slopes.square().sum((1, 2, 3)).mean()
