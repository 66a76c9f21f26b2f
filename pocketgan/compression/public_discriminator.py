"""Discriminators of public checkpoints, as teachers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketgan.networks import (
    BigGANDiscriminator,
    ImageDiscriminator,
    StyleGAN2Discriminator,
    load_biggan,
    load_rosinality_stylegan2_discriminator,
    load_stylegan2_ada_discriminator,
)


class PublicDiscriminator(ABC):
    """A discriminator whose weights lie in a file of another code; the network is made when it is needed.

    Args:
        file: Of the weights.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], ImageDiscriminator]) -> None:
        self.file, self.discriminator = file, discriminator

    def random(self) -> ImageDiscriminator:
        """The network with weights that nothing was loaded into."""
        return self.discriminator()

    def load(self) -> ImageDiscriminator:
        """The network with the file's weights.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds other weights, or those of another architecture.
        """
        network = self.discriminator()
        self.load_into(network)
        return network

    @abstractmethod
    def load_into(self, network: Any) -> None:
        """Put the file's weights into a network of its architecture."""


class PublicStyleGAN2AdaDiscriminator(PublicDiscriminator):
    """``D`` of stylegan2-ada-pytorch.

    Args:
        file: A state dict, or a dict with ``D``.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], StyleGAN2Discriminator]) -> None:
        super().__init__(file, discriminator)

    def load_into(self, network: StyleGAN2Discriminator) -> None:
        """See ``PublicDiscriminator.load_into``."""
        load_stylegan2_ada_discriminator(network, self.file)


class PublicRosinalityDiscriminator(PublicDiscriminator):
    """``d`` of rosinality/stylegan2-pytorch.

    Args:
        file: A state dict, or a dict with ``d``.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], StyleGAN2Discriminator]) -> None:
        super().__init__(file, discriminator)

    def load_into(self, network: StyleGAN2Discriminator) -> None:
        """See ``PublicDiscriminator.load_into``."""
        load_rosinality_stylegan2_discriminator(network, self.file)


class PublicBigGANDiscriminator(PublicDiscriminator):
    """``D.pth`` of BigGAN-PyTorch.

    Args:
        file: A state dict.
        discriminator: Makes the network, of the file's sizes.
    """

    def __init__(self, file: Path, discriminator: Callable[[], BigGANDiscriminator]) -> None:
        super().__init__(file, discriminator)

    def load_into(self, network: BigGANDiscriminator) -> None:
        """See ``PublicDiscriminator.load_into``."""
        load_biggan(network, self.file)
