"""The end of a run, in images, or for now by the clock."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.console import say
from callbacks.trainer_state import callback_of


def is_used_up(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a resumed run had its whole budget before: it trains nothing."""
    budget, images = budget_of(trainer), getattr(module, "images_seen", 0)
    return budget is not None and images >= budget


def budget_of(trainer: Trainer) -> int | None:
    """Images at which a run ends; None where nothing counts them."""
    budget = callback_of(trainer, ImageBudget)
    return None if budget is None else budget.images


class ImageBudget(Callback):
    """Stops the run once the generator has seen this many images over all ranks.

    ``max_steps`` and ``max_epochs`` count other things: every optimizer's steps (Lightning issue 17958) and passes.

    Args:
        images: The budget; the batch that reaches it is the last.
        hours: Ends this start after so many hours of wall clock as well, of which rank 0 decides; it leaves a last
            validation and checkpoint, from which ``--ckpt_path last`` goes on. Leave room for these two. No limit if
            None.

    Raises:
        ValueError: The budget is below 1, or there are no hours.
    """

    def __init__(self, images: int = 100_000, hours: float | None = None) -> None:
        if images < 1:
            raise ValueError(f"budget of {images} images; give 1 or more")
        if hours is not None and hours <= 0:
            raise ValueError(f"budget of {hours:g} hours; give more than 0, or null for no limit")
        self.images, self.hours = images, hours
        self.stop_reason: str | None = None
        self._begun = time.monotonic()

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if getattr(module, "images_seen", 0) >= self.images:
            trainer.should_stop = True
            self.stop_reason = f"the budget of {self.images:,} images is used up"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a resumed run that has already reached its budget."""
        self._check(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop after the batch that reaches the budget."""
        self._check(trainer, pl_module)
        if self.hours is None or trainer.should_stop:
            return
        is_over = trainer.is_global_zero and time.monotonic() - self._begun > 3600 * self.hours
        if trainer.strategy.reduce_boolean_decision(is_over, all=False):
            trainer.should_stop = True
            seen = getattr(pl_module, "images_seen", 0)
            self.stop_reason = f"{self.hours:g} hours are over: {seen:,} of {self.images:,} images"
            if trainer.is_global_zero:
                say(f"{self.stop_reason}; go on with --ckpt_path last")
