"""Models that edit photos, for a GAN to learn from."""

from pocketgan.teachers.class_diffusion_teacher import ClassDiffusionTeacher
from pocketgan.teachers.diffusers_teacher import DiffusersTeacher
from pocketgan.teachers.style_transfer_teacher import StyleTransferTeacher
from pocketgan.teachers.teacher import Teacher

__all__ = ["ClassDiffusionTeacher", "DiffusersTeacher", "StyleTransferTeacher", "Teacher"]
