"""A run folder's copy where its machine's disk may be lost."""

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.console import say
from callbacks.trainer_state import checkpoint_folder

LEFT_OUT = ("wandb", "tensorboard")  # loggers' own services keep these
PART, STAMP = ".part", "mirror.json"


class RunMirror(Callback):
    """Copies the run folder below a URL after each new ``last.ckpt``; a start with ``--ckpt_path last`` fetches it.

    It is fetched where the folder holds no checkpoint, or one of fewer images: on another machine, or on each node
    where no disk is shared. The copy stands at the path that the run folder has, so that the runs of a sweep or a
    campaign do not meet. The training goes on meanwhile and waits for the last copy at its end. Within a start files
    that did not change are not copied again. A copy that is broken off leaves the one before; one that fails is a
    warning and comes with the next checkpoint.

    Args:
        url: Folder in any file system of fsspec: ``s3://bucket/pocketgan``, ``gs://…``, ``sftp://…``, a path; none if
            None.

    Raises:
        ImportError: The file system's package is missing; the message names it.
        ValueError: fsspec knows no such file system, or checkpoints are outside of the run folder.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url
        self._files: Any = None
        self._copied: dict[str, tuple[int, int]] = {}
        self._checkpoint: tuple[int, int] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None

    def fetch(self, trainer: Trainer, ckpt_path: str | None) -> None:
        """Bring the folder up to the copy's checkpoint, before a fit; in every process, of which one does it.

        Args:
            trainer: The run's.
            ckpt_path: What the run resumes; only ``last`` fetches.

        Raises:
            FileExistsError: The URL holds a run that this one does not resume.
            OSError: The URL cannot be read.
            ImportError: As above.
            ValueError: As above.
        """
        if self.url is None:
            return
        folder = Path(trainer.default_root_dir)
        if not checkpoint_folder(trainer).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"--mirror.url copies {folder}, and checkpoint.dirpath is {checkpoint_folder(trainer)}; leave it out"
            )
        if re.match(r"\w{2,}:(?!//)", self.url):
            raise ValueError(f"--mirror.url is {self.url}; a URL has two slashes, such as s3://bucket/folder")
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise ImportError(f"--mirror.url {self.url}: {error} (`pip install s3fs`, `gcsfs`, …)") from error
        except ValueError as error:
            known = "s3://, gs://, sftp://, a path, or what else fsspec knows"
            raise ValueError(f"--mirror.url {self.url}: {error}; give {known}") from error
        self._root = f"{root.rstrip('/')}/{_place(folder)}"
        if trainer.is_global_zero:
            say(f"mirror: {self._files.unstrip_protocol(self._root)}")
        if not self._files.exists(f"{self._root}/{STAMP}"):
            return
        if ckpt_path is None:
            raise FileExistsError(
                f"{self.url} holds a run {_place(folder)} already; go on with it by --ckpt_path last, or give another "
                "--mirror.url or --trainer.default_root_dir"
            )
        if ckpt_path != "last":
            return
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetch"):
            there = json.loads(self._files.cat_file(f"{self._root}/{STAMP}"))["images"]
            if _images(checkpoint_folder(trainer) / "last.ckpt") >= there:
                return
            # the checkpoint last: with it the folder counts as fetched
            for name in sorted(self._names(), key=lambda name: name.endswith("last.ckpt")):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._root}/{name}", str(target) + PART)
                Path(str(target) + PART).replace(target)
        say(f"{folder} is fetched from {self.url}: {there:,} images")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Begin a copy, if a checkpoint was written since the last one and none is in work."""
        if self._work is None or self._work.done():
            self._begin(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Copy the last checkpoint, and what callbacks wrote at the end."""
        self._checkpoint = None
        self.finish(trainer)
        if self._files is not None and self._checkpoint is None and trainer.is_global_zero:
            say(f"{self.url} lacks the last checkpoint, see the warning above; it is in {checkpoint_folder(trainer)}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Copy what was saved before, and why it ended."""
        self._checkpoint = None
        self.finish(trainer)

    def finish(self, trainer: Trainer) -> None:
        """Copy a checkpoint that has not been copied, and wait for it."""
        self._wait()
        self._begin(trainer)
        self._wait()

    def _begin(self, trainer: Trainer) -> None:
        if self._files is None or not trainer.is_global_zero:
            return
        checkpoint = checkpoint_folder(trainer) / "last.ckpt"
        if not checkpoint.is_file() or _state(checkpoint) == self._checkpoint:
            return
        self._wait()
        self._checkpoint = _state(checkpoint)
        self._thread = self._thread or ThreadPoolExecutor(1, "mirror")
        self._work = self._thread.submit(self._copy, Path(trainer.default_root_dir), checkpoint)

    def _wait(self) -> None:
        if self._work is None:
            return
        error, self._work = self._work.exception(), None
        if error is not None:  # whatever a service raises
            self._checkpoint = None
            rank_zero_warn(f"the last checkpoint was not copied to {self.url}, the training goes on: {error}")

    def _copy(self, folder: Path, checkpoint: Path) -> None:
        images = _images(checkpoint)  # before it is copied: what is copied may be newer, never older
        names = {
            name: file
            for file in folder.rglob("*")
            if file.is_file() and (name := file.relative_to(folder).as_posix())
            if not name.startswith(".") and name.split("/")[0] not in LEFT_OUT and not name.endswith((PART, ".tmp"))
        }
        # checkpoints last: what they need is there by then
        for name in sorted(names, key=lambda name: name.endswith(".ckpt")):
            try:
                state = _state(names[name])
                if state != self._copied.get(name):
                    self._put(name, names[name])
                    self._copied[name] = state
            except FileNotFoundError:  # a checkpoint that a better one has replaced meanwhile
                if names[name].exists():
                    raise
        self._files.pipe_file(f"{self._root}/{STAMP}", json.dumps({"images": images}).encode())
        for name in self._names() - names.keys():
            self._files.rm(f"{self._root}/{name}")
            self._copied.pop(name, None)

    def _put(self, name: str, file: Path) -> None:
        target = f"{self._root}/{name}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), target + PART)
        self._files.mv(target + PART, target)

    def _names(self) -> set[str]:
        """Files of the copy, by their paths in the run folder."""
        found = {file.removeprefix(self._root).lstrip("/") for file in self._files.find(self._root)}
        return {name for name in found if name != STAMP and not name.endswith(PART)}


def _place(folder: Path) -> str:
    """A run folder's path in a mirror: as it is seen from the working directory, or from the disk's root."""
    whole = folder.resolve()
    inner = whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole.relative_to(whole.anchor)
    return inner.as_posix()


def _images(checkpoint: Path) -> int:
    """Images seen by a checkpoint; -1 where there is none."""
    if not checkpoint.is_file():
        return -1
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("images_seen", 0))


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
