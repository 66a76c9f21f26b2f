"""The end of a run, in images."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ImageBudget(Callback):
    """Stops the run once the generator has seen this many images over all ranks.

    ``max_steps`` and ``max_epochs`` count other things: every optimizer's steps (Lightning issue 17958) and passes.

    Args:
        images: The budget; the batch that reaches it is the last.

    Raises:
        ValueError: The budget is below 1.
    """

    def __init__(self, images: int = 100_000) -> None:
        if images < 1:
            raise ValueError(f"budget of {images} images; give 1 or more")
        self.images = images

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if getattr(module, "images_seen", 0) >= self.images:
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a resumed run that has already reached its budget."""
        self._check(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop after the batch that reaches the budget."""
        self._check(trainer, pl_module)
