"""Runs that a cluster takes from their nodes and starts again."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.console import say
from callbacks.run_mirror import RunMirror
from callbacks.trainer_state import callback_of, checkpoint_folder


class Requeue(Callback):
    """On SIGUSR1 saves ``last.ckpt`` after the batch in work and, under SLURM, puts the job back into the queue.

    ``#SBATCH --signal=SIGUSR1@120`` sends the signal; a job that begins with ``--ckpt_path last`` goes on at the very
    image. Lightning's own handler saves wherever the signal finds it, which may be between the steps of generator and
    discriminator. Ranks agree every ``check_batches`` batches, since they get the signal at different ones.

    Args:
        check_batches: Batches between two looks at the other ranks; a rank alone looks after each.

    Raises:
        ValueError: Fewer than 1.
    """

    def __init__(self, check_batches: int = 10) -> None:
        if check_batches < 1:
            raise ValueError(f"check_batches is {check_batches}; give 1 or more")
        self.check_batches = check_batches
        self.is_called = False
        self.stop_reason: str | None = None
        self._batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Listen, from before the data are read until ``handler_restored`` ends; the answer comes with a batch."""
        self.is_called = False
        try:
            signal.signal(signal.SIGUSR1, self._note)
        except ValueError:  # only the main thread may
            rank_zero_warn("no requeue on SIGUSR1: the training does not run in the main thread")

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.is_called = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Save and leave, if any rank was called; a validation that was due has been by now.

        Raises:
            SystemExit: Once the checkpoint is there; 0 if the job is back in the queue, else 75, "try again".
        """
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients that are being gathered are in no checkpoint
        if self.is_due(trainer):
            folder = checkpoint_folder(trainer)
            # the batch that begins here is no part of what is saved: validations keep their places
            progress = trainer.fit_loop.epoch_loop.batch_progress
            progress.total.ready -= 1
            progress.current.ready -= 1
            trainer.save_checkpoint(folder / "last.ckpt")
            self.leave(trainer, f"at {getattr(pl_module, 'images_seen', 0):,} images: {folder}/last.ckpt is written")

    def is_due(self, trainer: Trainer) -> bool:
        """Whether any rank was called; between two batches, on all ranks."""
        self._batches += 1
        if trainer.world_size > 1 and self._batches % self.check_batches:
            return False
        return trainer.strategy.reduce_boolean_decision(self.is_called, all=False)

    def leave(self, trainer: Trainer, where: str) -> NoReturn:
        """End the process once what is to be kept is on the disk; on all ranks.

        Args:
            trainer: The run's.
            where: What is kept, for the user.

        Raises:
            SystemExit: 0 if the job is back in the queue, else 75, "try again".
        """
        job = None
        if (mirror := callback_of(trainer, RunMirror)) is not None:
            mirror.finish(trainer)  # a job that is queued may begin at once, elsewhere
        if trainer.is_global_zero:
            job = requeue_job()
            what = f"job {job} is back in the queue" if job else "start it again with --ckpt_path last"
            self.stop_reason = f"SIGUSR1; {what}"
            say(f"SIGUSR1 {where}; {what}")
        raise SystemExit(0 if trainer.strategy.broadcast(job) else os.EX_TEMPFAIL)


@contextmanager
def handler_restored() -> Iterator[None]:
    """Leave SIGUSR1 as it was: Lightning puts back after a fit what it found, which is Requeue's handler."""
    before = signal.getsignal(signal.SIGUSR1)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, before)


def requeue_job() -> str | None:
    """Put this SLURM job back into the queue.

    Returns:
        Its number; None outside SLURM, or where SLURM refused, which is a warning.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        rank_zero_warn(f"`scontrol requeue {job}` failed ({said}); the checkpoint is there, submit the job again")
        return None
    return job
