"""The slot for models that edit photos."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Teacher(nn.Module, ABC):
    """A frozen model that edits photos: pairs are made from it, it never learns here."""

    @property
    @abstractmethod
    def concepts(self) -> dict[str, str]:
        """The concepts that this teacher offers by itself: name to prompt. Empty where prompts are the user's."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Every setting that changes a pixel, as plain JSON values; goes into the pair set's manifest.

        An optional key ``prompts`` maps a prompt to settings of that prompt alone; they are kept with its concept,
        so that a set can be given further concepts.
        """

    @property
    def origin(self) -> dict[str, str]:
        """Where the edits come from, for the manifest: ``model`` and ``licence``, as far as they are known.

        No part of what a set is compared by: a licence that cannot be looked up today changes no pixel.
        """
        return {}

    @abstractmethod
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        """Edit photos.

        Args:
            photos: (B, 3, H, W) in [-1, 1].
            prompt: One prompt for the whole batch.
            seeds: B seeds, one per photo; a pair depends on its own seed alone, never on the batch around it.

        Returns:
            (B, 3, H, W) in [-1, 1], the edits at the photos' own size; NaN where a teacher withholds an edit.
        """
