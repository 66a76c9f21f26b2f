"""Narrower, sparser, faster versions of trained networks."""

from pocketgan.compression.public_discriminator import (
    PublicBigGANDiscriminator,
    PublicDiscriminator,
    PublicRosinalityDiscriminator,
    PublicStyleGAN2AdaDiscriminator,
)
from pocketgan.compression.teacher_discriminator import TeacherDiscriminator

__all__ = [
    "PublicBigGANDiscriminator",
    "PublicDiscriminator",
    "PublicRosinalityDiscriminator",
    "PublicStyleGAN2AdaDiscriminator",
    "TeacherDiscriminator",
]
