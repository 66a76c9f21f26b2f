"""StyleGAN2's path length regularisation."""

import torch
from torch import Tensor

from pocketgan.losses.generator_regularization import GeneratorRegularization
from pocketgan.networks.latent_generator import LatentGenerator
from pocketgan.networks.style_generator import StyleGenerator


class PathLengthRegularization(GeneratorRegularization):
    """A step in the styles should change the image by the same amount everywhere (arXiv 1912.04958, equation 4).

    weight · E (‖Jᵀy‖ - a)², J the derivative of the image by the styles, y standard normal pixels over √(H · W), a the
    moving average of the lengths. As in NVlabs' code, Jᵀy's squares are summed over a style's features and averaged
    over its layers, styles are mixed as in training, and a, which the loss has a derivative through, already holds the
    batch's own mean.

    Args:
        weight: Factor of the loss.
        interval: The generator's steps from one computation to the next.
        decay: How much of a batch's mean enters the average.
        batch_shrink: The first 1 / batch_shrink of the latents are used, one at least, to save memory.

    Raises:
        ValueError: One of them is out of range.

    Example:
        An image of one pixel, 3 and 4 times two features of the first of two styles, and y = 1: the length is
        √(25 / 2) = 3.54. With an average of 0 before and 0.035 after, the loss is 2 · 3.50² = 24.5.
    """

    mean_length: Tensor

    def __init__(self, weight: float = 2.0, interval: int = 4, decay: float = 0.01, batch_shrink: int = 2) -> None:
        super().__init__()
        if weight <= 0 or interval < 1 or not 0 < decay <= 1 or batch_shrink < 1:
            raise ValueError(
                f"weight {weight}, interval {interval}, decay {decay}, batch_shrink {batch_shrink}: a weight above 0, "
                "an interval and a batch_shrink from 1 and a decay above 0 and up to 1 are needed; StyleGAN2 has 2, "
                "4, 0.01 and 2"
            )
        self.weight = weight
        self.interval = interval
        self.decay = decay
        self.batch_shrink = batch_shrink
        self.register_buffer("mean_length", torch.zeros(()))

    def forward(self, generator: LatentGenerator, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the weighted loss and move the average; see ``GeneratorRegularization.forward``.

        Raises:
            TypeError: The generator has no styles.
        """
        self.check_generator(generator)
        assert isinstance(generator, StyleGenerator)
        batch = max(latents.shape[0] // self.batch_shrink, 1)
        styles = generator.map(latents[:batch], None if labels is None else labels[:batch])
        images = generator.synthesize(styles)
        directions = torch.randn_like(images) / (images.shape[2] * images.shape[3]) ** 0.5
        (slopes,) = torch.autograd.grad((images * directions).sum(), styles, create_graph=True)
        lengths = slopes.square().sum(2).mean(1).sqrt()
        mean_length = self.mean_length.lerp(lengths.mean().to(self.mean_length.dtype), self.decay)
        self.mean_length.copy_(mean_length.detach())
        return self.weight * (lengths - mean_length).square().mean()

    def check_generator(self, generator: LatentGenerator) -> None:
        """Refuse a generator without styles.

        Raises:
            TypeError: It is no ``StyleGenerator``.
        """
        if not isinstance(generator, StyleGenerator):
            raise TypeError(
                f"{type(generator).__name__} has no styles between latents and images, whose path length could be "
                "measured; use a StyleGenerator such as StyleGAN2Generator, or no PathLengthRegularization"
            )
