"""The slot for what turns a concept's prompt into tokens."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module, ABC):
    """Turns concepts into prompt tokens.

    Attributes:
        token_size: D, features of a token; a generator's ``token_size`` must equal it.
        learns: Whether training changes its parameters.
    """

    token_size: int
    learns: bool

    @property
    def identity(self) -> str:
        """What tells this encoder from another whose tokens mean something else."""
        return f"{type(self).__name__} of {self.token_size} features"

    @abstractmethod
    def forward(self, concepts: list[str], prompts: list[str]) -> Tensor:
        """Encode B concepts, named and prompted; returns (B, L, D).

        Where their tokens differ in number, each concept's come as often as it takes to make all equally many: see
        ``stacked``. One concept alone comes as it is.
        """

    def remember(self, encoded: dict[str, Tensor]) -> None:
        """Take prompts with their tokens (L, D) that a checkpoint stored; nothing to do where prompts can be read."""

    @abstractmethod
    def add_concepts(self, concepts: list[str]) -> None:
        """Make room for concepts that are not known yet; known ones are left as they are."""

    @abstractmethod
    def learn_only(self, concepts: list[str]) -> None:
        """Freeze all that is learned but these concepts' own parameters, for an adaptation."""


def stacked(tokens: list[Tensor]) -> Tensor:
    """Stack tokens of different number, (L_i, D) each, without a mask.

    Each sequence is repeated as a whole, up to the least common multiple of all L_i. Attention to keys that all come
    equally often is attention to each of them once: the softmax's sum and its weights scale alike.

    Returns:
        (B, L, D), L the least common multiple.
    """
    length = math.lcm(*(len(sequence) for sequence in tokens))
    return torch.stack([sequence.repeat(length // len(sequence), 1) for sequence in tokens])
