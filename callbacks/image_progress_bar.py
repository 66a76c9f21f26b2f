"""A progress bar that knows the budget."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import TaskID

from callbacks.image_budget import budget_of


class ImageProgressBar(RichProgressBar):
    """Lightning's rich bar, counting a training's images up to its budget rather than the batches of a pass.

    Modules without a clock of images, and runs without a budget, show batches.
    """

    _budget_images: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look the budget up."""
        budget = budget_of(trainer)
        self._budget_images = budget if hasattr(pl_module, "images_seen") else None
        super().on_train_start(trainer, pl_module)

    @property
    def total_train_batches(self) -> int | float:
        """The end of the bar: the budget in images."""
        return self._budget_images or super().total_train_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Images" if self._budget_images else super()._get_train_description(current_epoch)

    def _update(self, progress_bar_id: TaskID | None, current: int, visible: bool = True, hard: bool = False) -> None:
        if self._budget_images and progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            seen: Any = self.trainer.lightning_module.images_seen
            current = min(seen, self._budget_images)
        super()._update(progress_bar_id, current, visible, hard)
