"""A run folder's copy where its machine's disk may be lost."""

from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.console import say
from callbacks.trainer_state import checkpoint_folder

LEFT_OUT = ("wandb", "tensorboard")  # loggers' own services keep these
PART = ".part"


class RunMirror(Callback):
    """Copies the run folder to a URL after each new ``last.ckpt``; a start with ``--ckpt_path last`` fetches it.

    It is fetched where the folder holds no checkpoint: on another machine, on each node without a shared disk. Files
    that did not change are not copied again; a copy that is broken off leaves the one before; one that fails is a
    warning, and comes with the next checkpoint.

    Args:
        url: Folder in any file system of fsspec: ``s3://bucket/runs/base``, ``gs://…``, ``sftp://…``, a path; none if
            None.

    Raises:
        ImportError: The file system's package is missing; the message names it.
        ValueError: fsspec knows no such file system.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url
        self._files: Any = None
        if url is not None:
            self._files, self._root = fsspec.core.url_to_fs(url)
        self._copied: dict[str, tuple[int, int]] = {}
        self._checkpoint: tuple[int, int] | None = None

    def fetch(self, folder: Path, resumes: bool) -> None:
        """Fill a folder that holds no checkpoint, before a fit; in every process, of which one does it.

        Args:
            folder: The run's.
            resumes: Whether the run starts with ``--ckpt_path last``.

        Raises:
            FileExistsError: The URL holds a run that this one does not resume.
            OSError: The URL cannot be read.
        """
        if self._files is None or not self._files.exists(f"{self._root}/config.yaml"):
            return
        if not resumes:
            raise FileExistsError(
                f"{self.url} holds a run already; go on with it by --ckpt_path last, or give another --mirror.url"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetch"):
            if (folder / "checkpoints" / "last.ckpt").is_file():
                return
            found = [file for file in self._files.find(self._root) if not file.endswith(PART)]
            # the checkpoint last: with it the folder counts as fetched
            for file in sorted(found, key=lambda name: name.endswith("last.ckpt")):
                target = folder / file.removeprefix(self._root).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(file, str(target) + PART)
                Path(str(target) + PART).replace(target)
        say(f"{folder} is fetched from {self.url}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Copy, if a checkpoint was written since."""
        self._copy(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Copy what the last validation wrote."""
        self._copy(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Copy what callbacks wrote at the end, though the checkpoint is the same."""
        self._checkpoint = None
        self._copy(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Copy what a signal has just saved."""
        self._copy(trainer)

    def _copy(self, trainer: Trainer) -> None:
        if self._files is None or not trainer.is_global_zero:
            return
        checkpoint = checkpoint_folder(trainer) / "last.ckpt"
        if not checkpoint.is_file() or _state(checkpoint) == self._checkpoint:
            return
        self._checkpoint = _state(checkpoint)
        try:
            self._copy_changed(Path(trainer.default_root_dir))
        except Exception as error:  # whatever a service raises
            rank_zero_warn(f"{self.url} does not have the last checkpoint, the training goes on without: {error}")

    def _copy_changed(self, folder: Path) -> None:
        changed = {
            name: state
            for file in folder.rglob("*")
            if file.is_file() and (name := file.relative_to(folder).as_posix())
            if not name.startswith((".", *LEFT_OUT)) and (state := _state(file)) != self._copied.get(name)
        }
        # checkpoints last: what they need is there by then
        for name in sorted(changed, key=lambda name: name.endswith(".ckpt")):
            target = f"{self._root}/{name}"
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(folder / name), target + PART)
            self._files.mv(target + PART, target)
            self._copied[name] = changed[name]
        for name in [name for name in self._copied if not (folder / name).is_file()]:
            self._files.rm(f"{self._root}/{name}")
            del self._copied[name]


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
