"""How fast a training goes and what it waits for."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.image_budget import budget_of


class ThroughputMonitor(Callback):
    """Logs ``speed/…`` as often as the trainer logs, over the time since the last time; validations do not count.

    * ``images_per_second``, over all ranks,
    * ``data_wait_share``: of that time, spent before a batch was there,
    * ``hours_left``: of the budget in images at that speed,
    * ``gpu_memory_gib``: the most that tensors took on this rank's GPU so far.

    It reads clocks only: nothing waits for a GPU, whose work is behind by a few steps at most.
    """

    def __init__(self) -> None:
        self._figures: dict[str, float] = {}
        self._restart(0)

    def _restart(self, images: int) -> None:
        self._images, self._batches, self._seconds, self._waited = images, 0, 0.0, 0.0
        self._mark = time.perf_counter()

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begin to count."""
        self._restart(getattr(pl_module, "images_seen", 0))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leave out what other callbacks do before a pass, such as a rank search."""
        self._lap()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """A batch is there."""
        lap = self._lap()
        self._waited += lap
        self._seconds += lap

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """A step is done."""
        self._seconds += self._lap()
        self._batches += 1
        images = getattr(pl_module, "images_seen", 0)
        is_due = self._batches >= trainer.log_every_n_steps and images > self._images  # type: ignore[attr-defined]
        if is_due:
            self._figures = self._measured(trainer, images)
            self._restart(images)
        # Lightning keeps what was logged up to the end of a pass, and is not asked for more: each call takes time
        if is_due or batch_idx == 0:
            pl_module.log_dict(self._figures)

    def _measured(self, trainer: Trainer, images: int) -> dict[str, float]:
        speed = (images - self._images) / self._seconds
        figures = {"images_per_second": speed, "data_wait_share": self._waited / self._seconds}
        budget = budget_of(trainer)
        if budget is not None:
            figures["hours_left"] = max(budget - images, 0) / speed / 3600
        device = trainer.strategy.root_device
        if device.type == "cuda":
            figures["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        return {f"speed/{name}": value for name, value in figures.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leave the validation out."""
        self._lap()
