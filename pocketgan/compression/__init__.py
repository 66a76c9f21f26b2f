"""Narrower, sparser, faster versions of trained networks."""

from pocketgan.compression.public_discriminator import (
    PublicDiscriminator,
    RosinalityStyleGAN2Discriminator,
    StyleGAN2AdaDiscriminator,
)
from pocketgan.compression.teacher_discriminator import TeacherDiscriminator

__all__ = [
    "PublicDiscriminator",
    "RosinalityStyleGAN2Discriminator",
    "StyleGAN2AdaDiscriminator",
    "TeacherDiscriminator",
]
