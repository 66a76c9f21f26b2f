"""Textual inversion: one new word."""

from pathlib import Path

from diffusers import StableDiffusionPipeline
from typing_extensions import override

from pocketgan.personalization.personalization_method import PersonalizationMethod
from pocketgan.personalization.placeholder_token import PlaceholderToken


class TextualInversion(PersonalizationMethod):
    """Train the embedding of one new token; every network stays as it is.

    Gal et al., *An Image is Worth One Word*, ICLR 2023, arXiv 2208.01618; diffusers' ``examples/textual_inversion``.

    Args:
        placeholder_token: The new word, which must be in every prompt.
        initializer_token: A word of one token whose embedding it begins with.
    """

    def __init__(self, placeholder_token: str, initializer_token: str) -> None:
        self.token = placeholder_token
        self._placeholder = PlaceholderToken(placeholder_token, initializer_token)

    @override
    def _add(self, pipeline: StableDiffusionPipeline) -> None:
        self._placeholder.add(pipeline)

    @override
    def save(self, folder: Path) -> None:
        self._placeholder.save(folder)
