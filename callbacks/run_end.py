"""What stays of the end of a training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.image_budget import is_used_up
from callbacks.requeue import Requeue
from callbacks.trainer_state import callback_of, write_into_run
from pocketgan.run_folder import ENDED_FILE


class RunEnd(Callback):
    """Leaves ``RUN/ended.json``, which says why, when and after how many images a fit ended.

    A callback that ends runs says why in its ``stop_reason``; an error is told as it is. The file is not there while a
    fit goes on, nor after one that was killed. One that cannot be written is a warning.
    """

    def __init__(self) -> None:
        self._has_begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take away what an earlier start left; a start that was refused before leaves it."""
        file = Path(trainer.default_root_dir) / ENDED_FILE
        # a start that has nothing to train changes nothing of what is noted
        self._has_begun = not (is_used_up(trainer, pl_module) and file.is_file())
        if self._has_begun and trainer.is_global_zero:
            with _warned():
                file.unlink(missing_ok=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what ended the run in good order."""
        if not self._has_begun:
            return
        # ours first: Lightning's EarlyStopping keeps its message over a resume
        for attribute in ("stop_reason", "stopping_reason_message"):
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                reason = getattr(callback, attribute, None)
                if reason:
                    self._write(trainer, pl_module, type(callback).__name__, reason)
                    return
        self._write(trainer, pl_module, "Trainer", "max_epochs, max_steps or max_time is reached")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what broke the run off, or that it goes back into a queue."""
        if not self._has_begun:
            return
        by = type(exception).__name__
        reason = f"broken off: {exception}" if str(exception) else "broken off"
        if isinstance(exception, SIGTERMException):
            reason = "broken off by SIGTERM"
        if isinstance(exception, SystemExit):
            requeue = callback_of(trainer, Requeue)
            if requeue is not None and requeue.stop_reason:
                by, reason = type(requeue).__name__, requeue.stop_reason
        self._write(trainer, pl_module, by, reason)

    def _write(self, trainer: Trainer, module: LightningModule, by: str, reason: str) -> None:
        # a start that was refused leaves no folder
        if not trainer.is_global_zero or not (Path(trainer.default_root_dir) / "config.yaml").is_file():
            return
        ended = {
            "by": by,
            "reason": reason,
            "images": getattr(module, "images_seen", None),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with _warned():
            write_into_run(trainer, ENDED_FILE, json.dumps(ended))


@contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        rank_zero_warn(f"the end of this run is not noted: {error}")
