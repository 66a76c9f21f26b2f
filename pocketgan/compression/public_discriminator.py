"""Discriminators of public checkpoints, as teachers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from pocketgan.networks import (
    BigGANDiscriminator,
    ImageDiscriminator,
    StyleGAN2Discriminator,
    load_biggan,
    load_rosinality_stylegan2_discriminator,
    load_stylegan2_ada_discriminator,
)


class PublicDiscriminator(ABC):
    """A discriminator whose weights lie in a file of another code; the network is made when it is needed."""

    @abstractmethod
    def random(self) -> ImageDiscriminator:
        """The network with weights that nothing was loaded into."""

    @abstractmethod
    def load(self) -> ImageDiscriminator:
        """The network with the file's weights.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds other weights, or those of another architecture.
        """


class PublicStyleGAN2AdaDiscriminator(PublicDiscriminator):
    """``D`` of stylegan2-ada-pytorch.

    Args:
        file: A state dict, or a dict with ``D``.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], StyleGAN2Discriminator]) -> None:
        self.file, self.discriminator = file, discriminator

    def random(self) -> StyleGAN2Discriminator:
        """See ``PublicDiscriminator.random``."""
        return self.discriminator()

    def load(self) -> StyleGAN2Discriminator:
        """See ``PublicDiscriminator.load``."""
        network = self.discriminator()
        load_stylegan2_ada_discriminator(network, self.file)
        return network


class PublicRosinalityDiscriminator(PublicDiscriminator):
    """``d`` of rosinality/stylegan2-pytorch.

    Args:
        file: A state dict, or a dict with ``d``.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], StyleGAN2Discriminator]) -> None:
        self.file, self.discriminator = file, discriminator

    def random(self) -> StyleGAN2Discriminator:
        """See ``PublicDiscriminator.random``."""
        return self.discriminator()

    def load(self) -> StyleGAN2Discriminator:
        """See ``PublicDiscriminator.load``."""
        network = self.discriminator()
        load_rosinality_stylegan2_discriminator(network, self.file)
        return network


class PublicBigGANDiscriminator(PublicDiscriminator):
    """``D.pth`` of BigGAN-PyTorch.

    Args:
        file: A state dict.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], BigGANDiscriminator]) -> None:
        self.file, self.discriminator = file, discriminator

    def random(self) -> BigGANDiscriminator:
        """See ``PublicDiscriminator.random``."""
        return self.discriminator()

    def load(self) -> BigGANDiscriminator:
        """See ``PublicDiscriminator.load``."""
        network = self.discriminator()
        load_biggan(network, self.file)
        return network
