"""The slot for networks that edit a photo in one pass."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Generator(nn.Module, ABC):
    """A photo and a prompt go in, an edit of the photo's size comes out.

    Attributes:
        size_divisor: Height and width must be multiples of this many pixels.
        token_size: D, the features of one prompt token.
    """

    size_divisor: int
    token_size: int

    @abstractmethod
    def forward(self, photo: Tensor, prompt_tokens: Tensor) -> Tensor:
        """Edit photos.

        Args:
            photo: (B, 3, H, W) in [-1, 1].
            prompt_tokens: (B, L, D), or (1, L, D) for one prompt over the whole batch.

        Returns:
            (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: H or W is not a multiple of ``size_divisor``.
        """

    @abstractmethod
    def fold_prompt(self, prompt_tokens: Tensor) -> nn.Module:
        """Make the network of one concept, in which the prompt is constants.

        Args:
            prompt_tokens: (1, L, D).

        Returns:
            A copy, a module that takes the photo alone; this network is left as it is.
        """

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the strides cannot halve.

        Raises:
            ValueError: Height or width is not a multiple of ``size_divisor``.
        """
        for side in (height, width):
            if side < self.size_divisor or side % self.size_divisor:
                below = max(side // self.size_divisor, 1) * self.size_divisor
                raise ValueError(
                    f"size {side} is not divisible by {self.size_divisor}; use {below} or {below + self.size_divisor}"
                )
