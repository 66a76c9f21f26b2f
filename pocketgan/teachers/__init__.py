"""Models that edit photos, for a GAN to learn from."""

from pocketgan.teachers.diffusers_teacher import DiffusersTeacher
from pocketgan.teachers.style_transfer_teacher import StyleTransferTeacher
from pocketgan.teachers.teacher import Teacher

__all__ = ["DiffusersTeacher", "StyleTransferTeacher", "Teacher"]
