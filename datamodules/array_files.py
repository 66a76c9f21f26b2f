"""Arrays on disk that datamodules decode once and map into memory."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import DTypeLike
from torch import Tensor

from pocketgan.files import explained_write_error


def built_once(cache: Path, name: str, build: Callable[[Path], None]) -> Path:
    """A folder of the cache, whole or not there; several processes build it once.

    Args:
        cache: Is made if need be.
        name: Of the folder, telling all that its content depends on.
        build: Fills an empty folder.

    Returns:
        The folder.
    """
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # a second process waits here, then finds the folder whole
        if folder.is_dir():
            return folder
        building = cache / f"{name}.building"
        shutil.rmtree(building, ignore_errors=True)  # left by a killed process
        building.mkdir()
        try:
            build(building)
        except BaseException:
            shutil.rmtree(building)
            raise
        building.rename(folder)
    return folder


def allocate(file: Path, shape: tuple[int, ...], dtype: DTypeLike) -> "np.memmap[Any, np.dtype[Any]]":
    """A new ``.npy`` file to write to, with all its space taken.

    Raises:
        OSError: The disk is full; without the space, writing would end the process with a bus error.
    """
    array: np.memmap[Any, np.dtype[Any]] = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with explained_write_error(file), file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def mapped(file: Path) -> Tensor:
    """A ``.npy`` file as a tensor; rows are read from disk when they are looked at."""
    # mode "c" can be written to in memory, never on disk; torch warns of arrays that cannot be written to
    return torch.from_numpy(np.load(file, mmap_mode="c"))
