"""Least-squares GAN."""

from torch import Tensor

from pocketgan.losses.adversarial_loss import AdversarialLoss


class LeastSquaresLoss(AdversarialLoss):
    """LSGAN (arXiv 1611.04076, equation 9: a = 0, b = c = 1); the discriminator's halves are averaged, as in pix2pix.

    Example:
        Real logits 0.5 and fake logits 0.5 give the discriminator 0.25, the generator 0.25.
    """

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Mean of (D(fake) - 1)²."""
        return (fake_logits - 1).square().mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Half the mean of (D(real) - 1)² plus half the mean of D(fake)²."""
        return ((real_logits - 1).square().mean() + fake_logits.square().mean()) / 2
