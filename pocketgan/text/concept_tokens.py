"""Learned tokens for each concept, the embedded default that needs no download."""

import zlib

import torch
from torch import Tensor, nn

from pocketgan.text.text_encoder import TextEncoder


class ConceptTokens(TextEncoder):
    """A table of learned tokens keyed by the concept's name; it does not read the prompt.

    A base trained with it knows its own concepts. A new concept starts at the mean of the known ones and learns
    its tokens during adaptation.

    Args:
        token_size: D, features of a token.
        tokens_per_concept: L, tokens of each concept.
    """

    learns = True

    def __init__(self, token_size: int = 64, tokens_per_concept: int = 4) -> None:
        super().__init__()
        self.token_size = token_size
        self.tokens_per_concept = tokens_per_concept
        self.tokens = nn.ParameterDict()

    def add_concepts(self, concepts: list[str]) -> None:
        """Add a concept at the mean of those known, or at random if there are none."""
        known = [tokens.detach() for tokens in self.tokens.values()]
        for concept in concepts:
            if _key(concept) not in self.tokens:
                self.tokens[_key(concept)] = nn.Parameter(
                    torch.stack(known).mean(0) if known else self._random(concept)
                )

    def _random(self, concept: str) -> Tensor:
        # of the run's seed and the name alone, so that one process and several start alike: Lightning's ddp rewinds
        # torch's own random numbers between the making of the networks and this
        generator = torch.Generator().manual_seed(torch.initial_seed() ^ zlib.crc32(concept.encode()))
        return torch.randn(self.tokens_per_concept, self.token_size, generator=generator)

    def forward(self, concepts: list[str], prompts: list[str]) -> Tensor:  # noqa: ARG002
        """Look up tokens; see ``TextEncoder.forward``.

        Raises:
            ValueError: A concept is unknown.
        """
        unknown = sorted(concept for concept in set(concepts) if _key(concept) not in self.tokens)
        if unknown:
            known = ", ".join(key.removeprefix(_key("")) for key in self.tokens)
            raise ValueError(f"unknown concept {', '.join(unknown)}; this model knows {known}")
        return torch.stack([self.tokens[_key(concept)] for concept in concepts])

    def learn_only(self, concepts: list[str]) -> None:
        """Freeze every other concept's tokens."""
        for key, tokens in self.tokens.items():
            tokens.requires_grad_(key in {_key(concept) for concept in concepts})


def _key(concept: str) -> str:
    # a bare name could be one of the dictionary's own attributes, such as "train"
    return f"concept_{concept}"
