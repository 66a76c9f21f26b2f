"""One base in memory, many concepts, switched between two photos."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from pocketgan.adapters.lora import ADAPTER_NAME, lora_layers, read_tokens
from pocketgan.networks import Generator


class Delta(NamedTuple):
    """W ← base + scale · B A; A is (r, inputs), B (outputs, r)."""

    a: Tensor
    b: Tensor
    scale: float


class ConceptChanges(NamedTuple):
    """What a concept changes in a base.

    Attributes:
        tokens: Its prompt's tokens (L, D).
        deltas: By the name of the generator's weight.
        whole: Weights that were trained in full, by name.
    """

    tokens: Tensor
    deltas: dict[str, Delta]
    whole: dict[str, Tensor]


class SwitchableGenerator(nn.Module):
    """A base with adapters that are folded into its weights one at a time.

    PEFT's own ``set_adapter`` runs the deltas beside the weights, which costs time at each photo, and its merging
    subtracts the last delta again, which adds up rounding errors. Here every switch starts from the base's weights, so
    that a concept's output does not depend on what was used before.

    Args:
        generator: The base's generator; it is kept, in eval mode and frozen, and a copy of it is changed.
        tokens: The base's own concepts and their prompt tokens (L, D); they need no delta.
        text_encoder: The base's ``TextEncoder.identity``; adapters of another are refused.
    """

    def __init__(
        self, generator: Generator, tokens: dict[str, Tensor] | None = None, text_encoder: str | None = None
    ) -> None:
        super().__init__()
        self.base = generator.eval().requires_grad_(False)
        self.generator = copy.deepcopy(self.base)
        self.text_encoder = text_encoder
        self.concept: str | None = None
        self._tokens = {name: value.detach() for name, value in (tokens or {}).items()}
        self._deltas: dict[str, dict[str, Delta]] = {name: {} for name in self._tokens}
        self._whole: dict[str, dict[str, Tensor]] = {name: {} for name in self._tokens}

    @property
    def concepts(self) -> list[str]:
        """Names that ``use`` accepts."""
        return sorted(self._tokens)

    def changes(self, concept: str) -> ConceptChanges:
        """What a concept changes in the base.

        Raises:
            ValueError: The concept was not added.
        """
        self._check(concept)
        return ConceptChanges(self._tokens[concept], self._deltas[concept], self._whole[concept])

    def _check(self, concept: str) -> None:
        if concept not in self._tokens:
            raise ValueError(f"unknown concept {concept}; added so far: {', '.join(self.concepts) or 'none'}")

    def add(self, folder: Path) -> str:
        """Take in an adapter that ``save_adapter`` wrote.

        Returns:
            The concept's name.

        Raises:
            FileNotFoundError: The folder holds no adapter.
            ValueError: The adapter belongs to another base or text encoder, is not for one concept, or has a concept
                that is here already.
        """
        held = read_tokens(folder, self.base, self.text_encoder)
        if len(held) != 1:
            names = ", ".join(sorted(held)) or "no concept"
            raise ValueError(f"{folder} holds tokens of {names}; an adapter is for one concept")
        ((concept, tokens),) = held.items()
        if concept in self._tokens:
            raise ValueError(f"{folder} is for {concept}, which is here already; each concept is added once")
        adapted = PeftModel.from_pretrained(copy.deepcopy(self.base), folder)
        deltas = {
            f"{name}.weight": Delta(
                layer.lora_A[ADAPTER_NAME].weight.detach().flatten(1).clone(),
                layer.lora_B[ADAPTER_NAME].weight.detach().flatten(1).clone(),
                layer.scaling[ADAPTER_NAME],
            )
            for name, layer in lora_layers(adapted).items()
        }
        whole = {}
        for name, layer in adapted.get_base_model().named_modules():
            if isinstance(layer, ModulesToSaveWrapper):
                trained = layer.modules_to_save[ADAPTER_NAME].state_dict()
                whole.update({f"{name}.{key}": value.clone() for key, value in trained.items()})
        self._tokens[concept], self._deltas[concept], self._whole[concept] = tokens, deltas, whole
        return concept

    @torch.no_grad()
    def use(self, concept: str) -> None:
        """Make this the concept that photos are edited with.

        Raises:
            ValueError: The concept was not added.
        """
        self._check(concept)
        base, weights = self.base.state_dict(), self.generator.state_dict()
        deltas, whole = self._deltas[concept], self._whole[concept]
        if self.concept is not None:
            for name in {*self._deltas[self.concept], *self._whole[self.concept]} - {*deltas, *whole}:
                weights[name].copy_(base[name])
        for name, (a, b, scale) in deltas.items():
            weight = base[name]
            delta = torch.mm(b.to(weight), a.to(weight)).mul_(scale)
            torch.add(weight, delta.view(weight.shape), out=weights[name])
        for name, value in whole.items():
            weights[name].copy_(value)
        self.concept = concept

    def forward(self, photo: Tensor) -> Tensor:
        """Edit photos.

        Args:
            photo: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: No concept was chosen.
        """
        if self.concept is None:
            raise ValueError(f"no concept is in use; call use(NAME) first: {', '.join(self.concepts) or 'none added'}")
        tokens = self._tokens[self.concept].to(photo.device)
        return self.generator(photo, tokens.expand(len(photo), -1, -1))
