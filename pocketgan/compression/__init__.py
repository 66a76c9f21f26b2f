"""Narrower, sparser, faster versions of trained networks."""

from pocketgan.compression.teacher_discriminator import TeacherDiscriminator

__all__ = ["TeacherDiscriminator"]
