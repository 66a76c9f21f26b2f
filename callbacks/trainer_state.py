"""A trainer's state and folder, as several callbacks use them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer

from pocketgan.files import write_whole


@contextmanager
def without_augmentation(trainer: Trainer) -> Iterator[None]:
    """Have a ``fit`` say that it validates, which is when the data come as they are."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


def write_into_run(trainer: Trainer, name: str, text: str) -> None:
    """Write a whole file into the run folder, which is made if need be."""
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, text.encode())


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where a run's ``last.ckpt`` stands."""
    given = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(given) if given else Path(trainer.default_root_dir) / "checkpoints"
