"""Generators, discriminators and what they are built of."""

from pocketgan.networks.biggan_checkpoint import load_biggan
from pocketgan.networks.biggan_discriminator import BigGANDiscriminator
from pocketgan.networks.biggan_generator import BigGANGenerator
from pocketgan.networks.discriminator import Discriminator
from pocketgan.networks.e2gan_generator import E2GANGenerator
from pocketgan.networks.generator import Generator
from pocketgan.networks.image_discriminator import ImageDiscriminator
from pocketgan.networks.latent_generator import LatentGenerator
from pocketgan.networks.norm import BatchNorm, GroupNorm, InstanceNorm, Norm
from pocketgan.networks.patch_discriminator import PatchDiscriminator

__all__ = [
    "BatchNorm",
    "BigGANDiscriminator",
    "BigGANGenerator",
    "Discriminator",
    "E2GANGenerator",
    "Generator",
    "GroupNorm",
    "ImageDiscriminator",
    "InstanceNorm",
    "LatentGenerator",
    "Norm",
    "PatchDiscriminator",
    "load_biggan",
]
