"""What adversarial modules share beside their steps: the clock, and how they are measured."""

from abc import abstractmethod
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from torch import Tensor

from pocketgan.losses import AdversarialLoss


class AdversarialModule(LightningModule):
    """A GAN under manual optimisation whose clock is images seen by the generator over all ranks.

    Attributes:
        adversarial_loss: What generator and discriminator minimise.
        quality: The figures that ``validate`` and ``test`` report.
        progress_figure: The one of them that stands in the progress bar, if any: a figure of each step there would make
            the CPU wait for the GPU.
        images_seen: In this run.
        earlier_images: That the networks had seen before it; the moving average's ramp-up goes on from there.
    """

    progress_figure: ClassVar[str | None] = None
    adversarial_loss: AdversarialLoss
    quality: Any  # its update differs from GAN to GAN

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.images_seen = 0
        self.earlier_images = 0

    @abstractmethod
    def _set_reference(self, split: Any) -> None:
        """Give ``quality`` the other side of its distances."""

    @abstractmethod
    def _evaluate(self, batch: dict[str, Any]) -> None:
        """Update ``quality`` with the averaged generator's images for a batch."""

    @abstractmethod
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What shows how good the averaged generator is on a batch.

        Returns:
            (B, 3, H, W) in [-1, 1] each, by what they are called: the last are made by the generator, those before are
            what they should be like.
        """

    def on_validation_start(self) -> None:
        """Fetch the other side of the distances."""
        self._set_reference("val")

    def on_test_start(self) -> None:
        """Fetch the other side of the distances."""
        self._set_reference("test")

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:  # noqa: ARG002
        """Measure the averaged generator."""
        self._evaluate(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:  # noqa: ARG002
        """Measure the averaged generator."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/…``."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/…``."""
        self._report("test")

    def _report(self, stage: str) -> None:
        # every rank holds the same figures already; Lightning asks for sync_dist all the same
        figures = self.quality.compute()
        if self.progress_figure is not None:
            shown = figures.pop(self.progress_figure)
            self.log(f"{stage}/{self.progress_figure}", shown, prog_bar=True, sync_dist=True)
        named = {f"{stage}/{name}": value for name, value in figures.items()}
        self.log_dict({**named, "images": float(self.images_seen)}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the clock."""
        checkpoint["images_seen"] = self.images_seen
        checkpoint["earlier_images"] = self.earlier_images

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the clock back; a checkpoint may be older than ``earlier_images``."""
        self.images_seen = checkpoint["images_seen"]
        self.earlier_images = checkpoint.get("earlier_images", 0)
