"""DGL-GAN's teacher: a trained discriminator that judges a student's images, too."""

from torch import Tensor, nn

from pocketgan.digest import weights_digest
from pocketgan.losses import AdversarialLoss
from pocketgan.metrics import FrozenModule


class TeacherDiscriminator(nn.Module):
    """A trained discriminator whose verdict is a further term of a student generator's loss.

    DGL-GAN (arXiv 2112.06502) minimises ``M(G, D) + λ M(G, D_teacher)`` over the student generator G; the words are
    those of the official code, ``stylegan2_dgl/training/loss.py``. This is the second M. Neither a teacher generator
    nor the student discriminator's loss has a part in it.

    A frozen teacher is always in eval mode, whatever its parent does, so that neither weights nor buffers (such as
    spectral norm's vectors, which drift in the official code) ever change; it stays out of checkpoints. Gradients pass
    through it to the images.

    Args:
        discriminator: With the student discriminator's arguments; it is taken over, not copied.
        learns: Whether it goes on learning. Then it trains and is stored like any other network.

    Attributes:
        sha256: Digest of its weights as they came.
    """

    def __init__(self, discriminator: nn.Module, learns: bool = False) -> None:
        super().__init__()
        self.learns = learns
        self.sha256 = weights_digest(discriminator)
        discriminator.requires_grad_(learns)
        self.judge: nn.Module = discriminator.train() if learns else _FrozenDiscriminator(discriminator)

    def forward(self, *judged: Tensor | None) -> Tensor:
        """Its logits; arguments as its discriminator's."""
        logits: Tensor = self.judge(*judged)
        return logits

    def generator_loss(self, adversarial_loss: AdversarialLoss, *judged: Tensor | None) -> Tensor:
        """The generator's loss under this discriminator, before λ.

        Args:
            adversarial_loss: The one that the student trains with.
            judged: The generator's images, with all else that the discriminator takes.

        Returns:
            A scalar.
        """
        return adversarial_loss.generator(self(*judged))


class _FrozenDiscriminator(FrozenModule):
    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.eval()

    def forward(self, *judged: Tensor | None) -> Tensor:
        logits: Tensor = self.discriminator(*judged)
        return logits
