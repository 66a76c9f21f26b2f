"""The slot for networks that judge an edit of a photo."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Discriminator(nn.Module, ABC):
    """Judges (photo, edit) pairs.

    A sample's logits must depend on that sample alone (no batch norm): real and generated pairs pass in one batch.
    """

    @abstractmethod
    def forward(self, photo: Tensor, edit: Tensor) -> Tensor:
        """Judge pairs.

        Args:
            photo: (B, 3, H, W) in [-1, 1].
            edit: (B, 3, H, W) in [-1, 1].

        Returns:
            Logits (B, 1, h, w), one for each patch; larger is more like the teacher's.
        """
