"""The original GAN's loss in its non-saturating form."""

import torch.nn.functional as F
from torch import Tensor

from pocketgan.losses.adversarial_loss import AdversarialLoss


class NonSaturatingLoss(AdversarialLoss):
    """Non-saturating GAN (arXiv 1406.2661, section 3) written with softplus, as StyleGAN2 does.

    Example:
        Logits 0 everywhere give the generator ln 2 and the discriminator 2 ln 2.
    """

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Mean of softplus(-D(fake)) = -log sigmoid(D(fake))."""
        return F.softplus(-fake_logits).mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Mean of softplus(-D(real)) plus mean of softplus(D(fake))."""
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
