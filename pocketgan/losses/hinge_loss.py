"""Hinge GAN."""

import torch.nn.functional as F
from torch import Tensor

from pocketgan.losses.adversarial_loss import AdversarialLoss


class HingeLoss(AdversarialLoss):
    """Hinge GAN (arXiv 1802.05957, equations 16 and 17).

    Example:
        Real logits 0.5 and fake logits -2 give the discriminator 0.5, the generator 2.
    """

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Mean of -D(fake)."""
        return -fake_logits.mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Mean of max(0, 1 - D(real)) plus mean of max(0, 1 + D(fake))."""
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
