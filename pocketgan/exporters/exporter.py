"""The slot for formats that run on a device."""

import copy
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pocketgan.exporters.rewrites import fold_batch_norms

Precision = Literal["fp32", "fp16", "int8"]
Pixels = Literal["float32", "uint8"]


@dataclass(frozen=True)
class ExportOptions:
    """What a device model is to be like.

    Attributes:
        precision: Of weights and activations. int8 is static: int8 weights per output channel, activations in ranges
            that ``calibration`` shows.
        pixels: "float32" models take and give (B, 3, H, W) in [-1, 1]; "uint8" models (B, H, W, 3) in [0, 255], as
            Pillow, cameras and canvases hold a picture: the conversion is in the graph.
        dynamic_size: Any height and width that ``size_divisor`` divides, where the format can; else a square of the
            training's size alone.
        calibration: Photos (1, 3, size, size) in [-1, 1]; int8 needs them where activations are rounded, too
            (``Exporter.scheme``).
        excluded: Names of the network's modules that int8 leaves in float32.
    """

    precision: Precision = "fp32"
    pixels: Pixels = "float32"
    dynamic_size: bool = True
    calibration: tuple[Tensor, ...] = ()
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be calibrated on.

        Raises:
            ValueError: Calibration photos of another kind.
        """
        for photo in self.calibration:
            if photo.ndim != 4 or photo.shape[:2] != (1, 3) or not photo.is_floating_point():
                raise ValueError(
                    f"a calibration photo is {tuple(photo.shape)} {photo.dtype}, but (1, 3, H, W) floats are needed"
                )
            if not -1 <= photo.min() <= photo.max() <= 1:
                raise ValueError(
                    f"a calibration photo has values from {photo.min():g} to {photo.max():g}, but photos are in [-1, 1]"
                )


class LintFinding(NamedTuple):
    """Operations that do not stay on a target's accelerator, or did not.

    Attributes:
        operation: The target's own name for it.
        number: How many are in the model; for one that was replaced, how many were.
        why: What becomes of it on the device.
        remedy: The rewrite that was applied, or is advised.
        applied: The exporter applied it.
    """

    operation: str
    number: int
    why: str
    remedy: str
    applied: bool


class PackedConcept(NamedTuple):
    """A concept of a device model.

    Attributes:
        name: What it is asked for by.
        prompt: Its text.
    """

    name: str
    prompt: str


class Int8Scheme(NamedTuple):
    """What a target's int8 rounds.

    Attributes:
        weight_bits: Of weights, symmetric, a scale for each output channel.
        activations: What lies between layers is rounded, too, in ranges that calibration photos show.
    """

    weight_bits: int = 8
    activations: bool = True


class ExportedModel(ABC):
    """A device model in its runtime: photos in, edits out.

    Attributes:
        metadata: What the file says of itself: the entries given to ``Exporter.export``, "pocketgan_version",
            "size" (pixels a side that it is meant for), "size_divisor", "precision", "pixels" and "dynamic_size".
        threads: How many threads the runtime computes with.
    """

    metadata: dict[str, str]
    threads: int

    @property
    def size_divisor(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return int(self.metadata["size_divisor"])

    @property
    def fixed_size(self) -> int | None:
        """The one height and width that it takes, in pixels; None if it takes any that ``size_divisor`` divides."""
        return None if self.metadata["dynamic_size"] == "true" else int(self.metadata["size"])

    def __call__(self, photos: Tensor) -> Tensor:
        """Edit photos.

        Args:
            photos: (B, 3, H, W) float32 in [-1, 1]. A model with uint8 pixels rounds them to 256 levels.

        Returns:
            (B, 3, H, W) float32 in [-1, 1], on the CPU.

        Raises:
            ValueError: It does not take this height or width.
        """
        height, width = photos.shape[-2:]
        if self.fixed_size is not None and (height, width) != (self.fixed_size, self.fixed_size):
            raise ValueError(
                f"the photos are {width}×{height} pixels, but the model takes {self.fixed_size}×{self.fixed_size} "
                "alone; cut or pad them, or let Editor do it"
            )
        if any(side % self.size_divisor for side in (height, width)):
            raise ValueError(
                f"the photos are {width}×{height} pixels, but both must be multiples of {self.size_divisor}; "
                "pad them, or let Editor do it"
            )
        edits = self.run(self.pictures(photos))
        if self.metadata["pixels"] == "float32":
            return edits
        # by NumPy, since PyTorch's threads would wait in the way of the runtime's
        return torch.from_numpy(edits.permute(0, 3, 1, 2).numpy().astype(np.float32) / 127.5 - 1)

    def pictures(self, photos: Tensor) -> Tensor:
        """Photos (B, 3, H, W) in [-1, 1] as ``run`` takes them."""
        return as_pixels(photos.detach().cpu().float(), "uint8" if self.metadata["pixels"] == "uint8" else "float32")

    @abstractmethod
    def run(self, pictures: Tensor) -> Tensor:
        """Edit pictures of an accepted size: (B, 3, H, W) float32, or (B, H, W, 3) uint8, as ``pixels`` says.

        Several threads may call it.
        """


class Exporter(ABC):
    """Writes networks for one runtime and runs what it wrote.

    Attributes:
        suffix: How its files end.
        any_size: Its models may take any size that ``size_divisor`` divides.
        own_pixels: What its models take and give where nothing else is asked for.
        scheme: What its int8 rounds.
    """

    suffix: ClassVar[str]
    any_size: ClassVar[bool] = False
    own_pixels: ClassVar[Pixels] = "float32"
    scheme: ClassVar[Int8Scheme] = Int8Scheme()

    @abstractmethod
    def export(
        self,
        network: nn.Module,
        path: Path,
        metadata: dict[str, str],
        size: int,
        size_divisor: int,
        options: ExportOptions | None = None,
    ) -> list[LintFinding]:
        """Write a device model, whole or not at all, with its weights inside.

        Args:
            network: (B, 3, H, W) in [-1, 1] to the same; for a generator, what ``fold_prompt`` returns. It is
                left as it is: what is exported is a copy in eval mode.
            path: The file; its folder is made, an existing file is replaced.
            metadata: What the file is to say of itself: concept, base, …
            size: Pixels a side that it is meant for; the only ones of a model of one size.
            size_divisor: Height and width must be multiples of this many pixels.
            options: Precision and the like; those of ``ExportOptions`` if None.

        Returns:
            The operations that leave the target's accelerator, or would have.

        Raises:
            ImportError: A package that the format needs is not installed.
            ValueError: ``size`` is not a multiple of ``size_divisor``, the format lacks an operation of the network, or
                int8 has no photos to be calibrated on.
        """

    def check_tools(self) -> None:  # noqa: B027  most need none
        """Refuse before the work what an export would lack besides Python packages.

        Raises:
            FileNotFoundError: A tool or file is missing.
        """

    def accompany(self, file: Path, concept: PackedConcept) -> None:  # noqa: B027  most stand alone
        """Write into a model's folder what is needed beside it.

        Args:
            file: What ``export`` wrote.
            concept: What it does.
        """

    @abstractmethod
    def import_runtime(self) -> None:
        """Import the packages that ``load`` needs.

        Raises:
            ImportError: One is not installed.
        """

    def runs_here(self) -> bool:
        """Whether ``load`` can run its files on this system."""
        return True

    @abstractmethod
    def load(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open a file that ``export`` wrote.

        Args:
            path: The file.
            threads: How many threads to compute with, 1 or more; as many as PyTorch uses if None.

        Raises:
            FileNotFoundError: There is no such file.
            ImportError: A package that the runtime needs is not installed.
            RuntimeError: The format does not run on this machine.
            ValueError: The file is of another format, pocketgan did not write it, or ``threads`` is below 1.
        """


class _InHalf(nn.Module):
    """A network that computes in float16 between float32 photos and edits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, photo: Tensor) -> Tensor:
        edit: Tensor = self.network(photo.half())
        return edit.float()


class _OnPixels(nn.Module):
    """A network between 8-bit pictures (B, H, W, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        photo = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        edit: Tensor = (self.network(photo).clamp(-1, 1) + 1) * 127.5
        # the conversion cuts off: half a level more rounds, without an operation that accelerators lack
        return (edit + 0.5).permute(0, 2, 3, 1).to(torch.uint8)


def deployable(network: nn.Module) -> nn.Module:
    """Copy a network to float32 on the CPU, in eval mode, with its batch norms folded into the convolutions before."""
    copied = copy.deepcopy(network).cpu().float().eval()
    fold_batch_norms(copied)
    return copied


def in_half(network: nn.Module) -> nn.Module:
    """Have a network compute in float16, in place, between float32 photos and edits."""
    return _InHalf(network).eval()


def with_pixels(network: nn.Module, pixels: Pixels) -> nn.Module:
    """Put the conversion from and to 8-bit pictures around a network where it is asked for."""
    if pixels == "float32":
        return network
    wrapped = _OnPixels(network)
    wrapped.training = False  # eval() would call the network's, which an exported one refuses
    return wrapped


def as_pixels(photos: Tensor, pixels: Pixels) -> Tensor:
    """Photos (B, 3, H, W) float32 in [-1, 1], on the CPU, as a model takes them."""
    if pixels == "float32":
        return photos
    levels = np.rint((photos.numpy().clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 2, 3, 1)))


def example_photos(pixels: Pixels, batch: int, size: int) -> Tensor:
    """A black picture of the shape and type that a model takes, for tracing."""
    if pixels == "uint8":
        return torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    return torch.zeros(batch, 3, size, size)


def file_metadata(metadata: dict[str, str], size: int, size_divisor: int, options: ExportOptions) -> dict[str, str]:
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
    own = {
        "pocketgan_version": pocketgan_version,
        "size": str(size),
        "size_divisor": str(size_divisor),
        "precision": options.precision,
        "pixels": options.pixels,
        "dynamic_size": str(options.dynamic_size).lower(),
    }
    return {**metadata, **own}


def calibration_photos(options: ExportOptions) -> list[Tensor]:
    """Photos to calibrate int8 on, as a model takes them.

    Raises:
        ValueError: There are none.
    """
    if not options.calibration:
        raise ValueError("int8 needs calibration photos; give some, 20 or more")
    return [as_pixels(photo.detach().cpu().float(), options.pixels).contiguous() for photo in options.calibration]


def thread_count(threads: int | None) -> int:
    """Threads to compute with: as many as PyTorch uses if None.

    Raises:
        ValueError: Less than one.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; give 1 or more")
    return threads or torch.get_num_threads()


def require(module: str, target: str, extra: str) -> ModuleType:
    """Import a module of a target's packages.

    Args:
        module: Its name.
        target: What needs it, for the message.
        extra: The extra of pyproject.toml that brings it.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{target} needs the package {error.name}; get it with: pip install 'pocketgan[{extra}]'",
            name=error.name,
        ) from error
