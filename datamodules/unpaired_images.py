"""Batches of single images from a folder, with labels on request."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.array_files import allocate, built_once, mapped
from datamodules.image_folder import ClassFolders, ImageFolderData, content_of, deal, square_picture
from datamodules.pair_batches import as_it_is
from pocketgan.images import find_images
from pocketgan.metrics import FeatureExtractor, reference_features
from pocketgan.pair_files import Split


class ImageDataset(Dataset[dict[str, Tensor]]):
    """Images of one split from a memory-mapped file.

    A loader over it needs ``collate_fn=as_it_is``: DataLoader and Subset fetch whole batches (``__getitems__``).

    Args:
        images: (N, S, S, 3) uint8 of all splits.
        labels: (N,).
        places: Those of this split.
    """

    def __init__(self, images: Tensor, labels: Tensor, places: list[int]) -> None:
        self.images, self.labels, self.places = images, labels, torch.tensor(places, dtype=torch.long)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """One batch: ``image`` (B, S, S, 3) uint8, ``label`` (B,), ``place`` (B,), the number in the split."""
        places = self.places[indices]
        return {
            "image": self.images.index_select(0, places),
            "label": self.labels[places],
            "place": torch.tensor(indices, dtype=torch.long),
        }

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}


class UnpairedImages(ImageFolderData):
    """Images in a folder, for GANs that make images of noise; decoded once.

    The first use writes each image's centred square into a memory-mapped uint8 cache that is keyed by the files and the
    size; a folder that grew or changed gets a new one. Batches: ``image`` (B, 3, size, size) in [-1, 1], ``label``
    (B,), 0 without labels, and ``place`` (B,), the image's number in its split.

    Args:
        root: Folder of images, searched recursively; with labels ``ROOT/CLASS/image``.
        labels: Take the class from the folder that an image is in: the place of its name among the sorted ones.
        size: Side of the images in pixels.
        flip: Mirror half of the training images.
        batch_size: Images in a batch over all ranks together.
        split: Fractions for train, val and test, of each class.
        seed: Deals the split, the order and mirror images.
        cache: Folder of the cache; ``ROOT/.cache`` if None.

    Attributes:
        classes: Names by label, after ``setup``; empty without labels.

    Raises:
        ValueError: A number makes no sense.
    """

    def __init__(
        self,
        root: Path,
        labels: bool = False,
        size: int = 256,
        flip: bool = True,
        batch_size: int = 32,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        super().__init__(root, size, flip, batch_size, split, seed, cache)
        self.labels = labels
        self.datasets: dict[Split, ImageDataset] = {}

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Find the images; open their cache or build it.

        Raises:
            FileNotFoundError: There is no such folder, or, with labels, a class without an image.
            ValueError: There is no image, or one is too small or unreadable.
        """
        if self.datasets:
            return
        if self.labels:
            folders = ClassFolders(self.root)
            paths, labels = [Path(path) for path, _ in folders.samples], folders.targets
            self.classes = folders.classes
        else:
            paths = find_images(self.root)
            labels = [0] * len(paths)
        about = {"files": content_of(paths, self.root), "size": self.size}
        self._digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        folder = built_once(self.cache, f"images-{self._digest}", lambda building: self._decode(paths, building))
        images = mapped(folder / "images.npy")
        self.datasets = {
            split: ImageDataset(images, torch.tensor(labels), places)
            for split, places in deal(labels, self.fractions, self.seed).items()
        }

    def _decode(self, paths: list[Path], folder: Path) -> None:
        images = allocate(folder / "images.npy", (len(paths), self.size, self.size, 3), np.uint8)
        for row, path in enumerate(track(paths, description=f"Decoding {self.root.name} at {self.size} px")):
            images[row] = np.asarray(square_picture(path, self.size))
        images.flush()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches; the order depends on seed and images seen alone.

        Raises:
            ValueError: The batch does not divide over the ranks, or is larger than the training split.
        """
        dataset = self.datasets["train"]
        self.check_batch(len(dataset), "images", "images")
        return self.training_loader(dataset, collate_fn=as_it_is)

    def _evaluation_dataloader(self, split: Split) -> DataLoader[dict[str, Tensor]]:
        _, ranks = self.rank_and_ranks
        dataset = self.datasets[split]
        if len(dataset) < ranks:
            raise ValueError(
                f"the {split} split has {len(dataset)} images for {ranks} rank(s); each needs one: give it a larger "
                "fraction in data.split, or more images"
            )
        return self.evaluation_loader(dataset, collate_fn=as_it_is)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every validation image once, over all ranks together."""
        return self._evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every test image once, over all ranks together."""
        return self._evaluation_dataloader("test")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Turn bytes into floats on the device and, in training, mirror half of them.

        Which ones depends on seed and images seen alone, for the whole global batch.
        """
        images = _to_float(batch["image"])
        if self.flip and self.trainer and self.trainer.training:
            rank, ranks = self.rank_and_ranks
            mirrored = (torch.rand(len(images) * ranks, generator=self.generator()) < 0.5)[rank::ranks]
            images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
        return {**batch, "image": images}

    def reference_features(self, split: Split, extractor: FeatureExtractor) -> Tensor:
        """Features (N, D) of a split's images in their order; computed once for a folder, split and size, then read."""
        dealt = json.dumps([self.fractions, self.seed, self.labels])
        key = hashlib.sha256(dealt.encode()).hexdigest()[:8]
        name = f"{self._digest}-{split}-{key}-{extractor.frechet_name}.safetensors"
        with FileLock(self.cache / "lock"):
            return reference_features(extractor, self._named_images(split), self.cache / name)["images"]

    def _named_images(self, split: Split) -> Iterator[tuple[Tensor, list[str]]]:
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            self.datasets[split], batch_size=16, collate_fn=as_it_is, generator=torch.Generator()
        )
        for batch in loader:
            yield _to_float(batch["image"]), ["images"] * len(batch["image"])


def _to_float(images: Tensor) -> Tensor:
    """(B, S, S, 3) bytes to (B, 3, S, S) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
