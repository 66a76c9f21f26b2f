"""The slot for what zeroes weights of a layer, and the fixed mask."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class WeightMask(nn.Module, ABC):
    """A parametrisation (``torch.nn.utils.parametrize``) of a layer's weight that zeroes part of it."""

    @property
    @abstractmethod
    def pattern(self) -> list[int]:
        """What makes the same mask again in another process, as plain numbers: N and M, or nothing for a fixed one."""

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Zero part of a weight (O, I, …); shape and type stay."""


class FixedMask(WeightMask):
    """Zeroes chosen weights; the choice is a buffer, so that it is stored with the weights.

    The product's gradient at a zeroed weight is 0.

    Args:
        weight: At first all of it is kept.
    """

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool, requires_grad=False))

    @property
    def pattern(self) -> list[int]:
        """Nothing: the mask stands among the weights."""
        return []

    def forward(self, weight: Tensor) -> Tensor:
        """See ``WeightMask.forward``."""
        return weight * self.mask
