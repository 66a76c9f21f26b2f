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
from pocketgan.networks.style_generator import StyleGenerator
from pocketgan.networks.stylegan2_checkpoint import (
    load_rosinality_stylegan2_discriminator,
    load_rosinality_stylegan2_generator,
    load_stylegan2_ada_discriminator,
    load_stylegan2_ada_generator,
)
from pocketgan.networks.stylegan2_discriminator import StyleGAN2Discriminator
from pocketgan.networks.stylegan2_generator import StyleGAN2Generator

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
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "StyleGenerator",
    "load_biggan",
    "load_rosinality_stylegan2_discriminator",
    "load_rosinality_stylegan2_generator",
    "load_stylegan2_ada_discriminator",
    "load_stylegan2_ada_generator",
]
