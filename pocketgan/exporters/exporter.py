"""The slot for formats that run on a device."""

import copy
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn


class ExportedModel(ABC):
    """A device model in its runtime: photos in, edits out.

    Attributes:
        metadata: What the file says of itself: the entries given to ``Exporter.export``, "pocketgan_version",
            "size" (pixels a side in training) and "size_divisor".
        size_divisor: Height and width must be multiples of this many pixels.
        threads: How many threads the runtime computes with.
    """

    metadata: dict[str, str]
    size_divisor: int
    threads: int

    def __call__(self, photos: Tensor) -> Tensor:
        """Edit photos.

        Args:
            photos: (B, 3, H, W) float32 in [-1, 1].

        Returns:
            (B, 3, H, W) float32 in [-1, 1], on the CPU.

        Raises:
            ValueError: H or W is not a multiple of ``size_divisor``.
        """
        if any(side % self.size_divisor for side in photos.shape[-2:]):
            height, width = photos.shape[-2:]
            raise ValueError(
                f"the photos are {width}×{height} pixels, but both must be multiples of {self.size_divisor}; "
                "pad them, or let Editor do it"
            )
        return self._run(photos)

    @abstractmethod
    def _run(self, photos: Tensor) -> Tensor:
        """Edit photos of an accepted size."""


class Exporter(ABC):
    """Writes networks for one runtime and runs what it wrote.

    Attributes:
        suffix: How its files end.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def export(self, network: nn.Module, path: Path, metadata: dict[str, str], size: int, size_divisor: int) -> None:
        """Write a device model, whole or not at all, with its weights inside.

        Args:
            network: (B, 3, H, W) in [-1, 1] to the same; for a generator, what ``fold_prompt`` returns. It is
                left as it is: what is exported is a float32 copy in eval mode.
            path: The file; its folder is made, an existing file is replaced.
            metadata: What the file is to say of itself: concept, base, …
            size: Pixels a side that the network was trained at.
            size_divisor: Height and width must be multiples of this many pixels.

        Raises:
            ImportError: A package that the format needs is not installed.
            ValueError: ``size`` is not a multiple of ``size_divisor``.
        """

    @abstractmethod
    def load(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open a file that ``export`` wrote.

        Args:
            path: The file.
            threads: How many threads to compute with; as many as PyTorch uses if None.

        Raises:
            FileNotFoundError: There is no such file.
            ImportError: A package that the runtime needs is not installed.
            ValueError: The file is of another format, or pocketgan did not write it.
        """


def deployable(network: nn.Module) -> nn.Module:
    """Copy a network to float32 on the CPU, in eval mode."""
    return copy.deepcopy(network).cpu().float().eval()


def file_metadata(metadata: dict[str, str], size: int, size_divisor: int) -> dict[str, str]:
    """Complete what a file says of itself; see ``ExportedModel.metadata``.

    Raises:
        ValueError: ``size`` is not a multiple of ``size_divisor``.
    """
    if size < size_divisor or size % size_divisor:
        raise ValueError(f"size {size} is not a multiple of size_divisor {size_divisor}")
    try:
        pocketgan_version = version("pocketgan")
    except PackageNotFoundError:  # run from a checkout that is not installed
        pocketgan_version = "unknown"
    own = {"pocketgan_version": pocketgan_version, "size": str(size), "size_divisor": str(size_divisor)}
    return {**metadata, **own}
