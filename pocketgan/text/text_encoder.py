"""The slot for what turns a concept's prompt into tokens."""

from abc import ABC, abstractmethod

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
        """Encode B concepts, named and prompted; returns (B, L, D)."""

    @abstractmethod
    def add_concepts(self, concepts: list[str]) -> None:
        """Make room for concepts that are not known yet; known ones are left as they are."""

    @abstractmethod
    def learn_only(self, concepts: list[str]) -> None:
        """Freeze all that is learned but these concepts' own parameters, for an adaptation."""
