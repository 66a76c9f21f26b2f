"""The slot for losses between an edit and the teacher's."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn


class ReconstructionLoss(nn.Module, ABC):
    """How far a generated edit is from the teacher's, a scalar."""

    @abstractmethod
    def forward(self, fake: Tensor, edit: Tensor) -> Tensor:
        """Compare (B, 3, H, W) with (B, 3, H, W), both in [-1, 1]."""


class L1Loss(ReconstructionLoss):
    """Mean absolute difference, pix2pix's and E2GAN's term; black against white gives 2."""

    def forward(self, fake: Tensor, edit: Tensor) -> Tensor:
        """Mean of |fake - edit|."""
        return F.l1_loss(fake, edit)
