"""Validation on the clock of images."""

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.trainer_state import batch_images


class ImageQuality(Callback):
    """Measures image quality every so many images, whatever the batch and the number of ranks.

    It sets Lightning's own validation interval, so that checkpoints, samples and results follow, and all ranks measure
    their share together. The figures, with the number of images that they are of, are the module's ``quality``.

    Args:
        every_images: Images seen by the generator between two validations, rounded up to whole batches;
            ``trainer.val_check_interval`` counts batches where it is None.

    Raises:
        ValueError: Fewer than 1.
    """

    def __init__(self, every_images: int | None = None) -> None:
        if every_images is not None and every_images < 1:
            raise ValueError(f"image quality every {every_images} images; give 1 or more, or null")
        self.every_images = every_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Set the interval, before Lightning reads it."""
        if stage == "fit" and self.every_images is not None:
            trainer.val_check_interval = -(-self.every_images // batch_images(trainer))
            trainer.check_val_every_n_epoch = None
