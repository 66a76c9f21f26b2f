"""A concept from a few photos, taught to a text-to-image pipeline of diffusers."""

from pocketgan.personalization.custom_diffusion import CustomDiffusion
from pocketgan.personalization.dreambooth_lora import DreamBoothLoRA
from pocketgan.personalization.image_embedding import CLIPImageEmbedding, ImageEmbedding
from pocketgan.personalization.personalization_method import PersonalizationMethod
from pocketgan.personalization.pipeline import load_personalization, load_pipeline, pipeline_class_of
from pocketgan.personalization.placeholder_token import PlaceholderToken
from pocketgan.personalization.textual_inversion import TextualInversion

__all__ = [
    "CLIPImageEmbedding",
    "CustomDiffusion",
    "DreamBoothLoRA",
    "ImageEmbedding",
    "PersonalizationMethod",
    "PlaceholderToken",
    "TextualInversion",
    "load_personalization",
    "load_pipeline",
    "pipeline_class_of",
]
