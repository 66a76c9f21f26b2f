"""A trainer's state and folder, as several callbacks use them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from pocketgan.files import write_whole

AnyCallback = TypeVar("AnyCallback", bound=Callback)


@contextmanager
def without_augmentation(trainer: Trainer) -> Iterator[None]:
    """Have a ``fit`` say that it validates, which is when the data come as they are."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


def callback_of(trainer: Trainer, kind: type[AnyCallback]) -> AnyCallback | None:
    """The trainer's first callback of a class, or of one that is derived from it; None if it has none."""
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)  # type: ignore[attr-defined]


def is_validating_a_fit(trainer: Trainer) -> bool:
    """Whether a validation is one of a training's, not Lightning's sanity check of untrained weights."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


@contextmanager
def validation_precision(trainer: Trainer) -> Iterator[None]:
    """Run networks as a validation does, without the training's random numbers."""
    devices = [trainer.strategy.root_device] if trainer.strategy.root_device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision_plugin.val_step_context():
        yield


def batch_images(trainer: Trainer) -> int:
    """Images that the generator sees in a batch over all ranks."""
    batch_size: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
    return batch_size // getattr(trainer.lightning_module, "discriminator_steps", 1)


def write_into_run(trainer: Trainer, name: str, text: str) -> None:
    """Write a whole file into the run folder, which is made if need be."""
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, text.encode())


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where a run's ``last.ckpt`` stands."""
    given = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(given) if given else Path(trainer.default_root_dir) / "checkpoints"
