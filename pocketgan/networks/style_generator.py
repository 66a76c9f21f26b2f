"""The slot for generators whose layers read a style."""

from abc import abstractmethod

from torch import Tensor

from pocketgan.networks.latent_generator import LatentGenerator


class StyleGenerator(LatentGenerator):
    """Latents become styles, styles become images: what path length regularisation needs to see apart."""

    @abstractmethod
    def map(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents to styles.

        Args:
            latents: (B, Z), standard normal.
            labels: (B,) whole numbers below ``classes``; None if there are no classes.

        Returns:
            (B, S, W), a style of W features for each of S layers.
        """

    @abstractmethod
    def synthesize(self, styles: Tensor) -> Tensor:
        """Make images (B, C, size, size) of styles (B, S, W)."""

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images; see ``LatentGenerator.forward``."""
        return self.synthesize(self.map(latents, labels))
