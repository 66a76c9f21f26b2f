"""The slot for adversarial losses."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class AdversarialLoss(nn.Module, ABC):
    """What generator and discriminator minimise against each other, on logits of any shape."""

    @abstractmethod
    def generator(self, fake_logits: Tensor) -> Tensor:
        """The generator's loss on logits of its own edits; a scalar."""

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss on logits of the teacher's edits and of the generator's; a scalar."""
