"""What datamodules of (photo, edit) pairs share: the choice and split of pairs, loaders, crops and flips."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms.functional import center_crop

from datamodules.image_clock_data import ImageClockData
from pocketgan.metrics import FeatureExtractor, reference_features
from pocketgan.pair_files import SPLITS, PairFile, Split, check_fractions, split_of_groups
from pocketgan.selection import read_selection


class PairDataset(Dataset[dict[str, Any]], ABC):
    """Pairs of one split.

    A loader over it needs ``collate_fn=as_it_is``: DataLoader and Subset fetch whole batches (``__getitems__``).

    Args:
        pairs: Those of the split.
    """

    def __init__(self, pairs: list[PairFile]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @abstractmethod
    def pictures(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Photos and edits (B, S, S, 3) uint8 of some pairs."""

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """One batch: ``photo`` and ``edit`` (B, S, S, 3) uint8, ``concept`` and ``prompt`` (lists of B)."""
        photos, edits = self.pictures(indices)
        pairs = [self.pairs[index] for index in indices]
        return {
            "photo": photos,
            "edit": edits,
            "concept": [pair.concept for pair in pairs],
            "prompt": [pair.prompt for pair in pairs],
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair: ``photo`` and ``edit`` (S, S, 3) uint8, ``concept``, ``prompt``."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}


def as_it_is(batch: Any) -> Any:
    """Take a batch that is one already."""
    return batch


class PairBatches(ImageClockData):
    """Batches of pairs, split by photo: ``photo`` and ``edit`` (B, 3, size, size) in [-1, 1], ``concept``, ``prompt``.

    Attributes:
        prompts: Text of each concept in use, after ``setup``.
        datasets: The splits, after ``setup``.
        set_hash: Name of the set's exact content, after ``setup``.

    Args:
        root: The source.
        concepts: The concepts to use, or a file that names them; all if None.
        size: Side of the training pictures in pixels.
        crop_from: Side to which pictures are scaled before a random crop; no cropping if None.
        flip: Mirror half of the training pairs.
        batch_size: Pairs in a batch over all ranks together.
        split: Fractions of the photos for train, val and test.
        seed: Deals the split, the order and the augmentation.
        num_workers: Loader processes of a rank.
        cache: Folder of what is computed once; ``default_cache`` if None.
        training_photos: A file that names the photos to train on; all of the training side if None.

    Raises:
        ValueError: A fraction or size makes no sense.
    """

    set_hash: str

    def __init__(
        self,
        root: str | Path,
        concepts: list[str] | Path | None = None,
        size: int = 256,
        crop_from: int | None = None,
        flip: bool = True,
        batch_size: int = 8,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        num_workers: int = 0,
        cache: Path | None = None,
        training_photos: Path | None = None,
    ) -> None:
        super().__init__()
        check_fractions(split)
        if crop_from is not None and crop_from < size:
            raise ValueError(f"crop_from {crop_from} is below size {size}; crops of {size} need at least as much")
        self.root = root
        self.cache = cache or self.default_cache()
        self.selected, self.training_photos = concepts, training_photos
        self.size, self.stored_size, self.flip = size, crop_from or size, flip
        self.batch_size, self.num_workers = batch_size, num_workers
        self.fractions, self.seed = split, seed
        self.prompts: dict[str, str] = {}
        self.datasets: dict[Split, PairDataset] = {}

    def photo_name(self, pair: PairFile) -> str:
        """A photo's name in a selection file: its file relative to the root, with forward slashes."""
        return pair.photo.relative_to(self.root).as_posix()

    def default_cache(self) -> Path:
        """The cache's folder where none is given."""
        return Path(self.root) / ".cache"

    def places_of_splits(self, pairs: list[PairFile]) -> dict[Split, list[int]]:
        """Choose and deal a source's pairs: their places by split. ``prompts`` are those of the chosen concepts.

        Raises:
            FileNotFoundError: A selection file is missing.
            ValueError: An unknown concept or training photo, a training photo that is held out, too few photos.
        """
        undealt = {pair.group for pair in pairs if pair.split is None}
        dealt = split_of_groups(undealt, self.fractions, self.seed) if undealt else {}
        sides = [pair.split or dealt[pair.group] for pair in pairs]
        training_photos = self._read_training_photos(pairs, sides)
        known = {pair.concept: pair.prompt for pair in pairs}
        selected = read_selection(self.selected) if isinstance(self.selected, Path) else self.selected
        unknown = sorted(set(selected or ()) - set(known))
        if unknown:
            raise ValueError(f"unknown concept {', '.join(unknown)}; {self.root} holds {', '.join(sorted(known))}")
        self.prompts = {name: known[name] for name in sorted(selected or known)}
        return {
            split: [
                place
                for place, pair in enumerate(pairs)
                if sides[place] == split
                and pair.concept in self.prompts
                and (split != "train" or training_photos is None or self.photo_name(pair) in training_photos)
            ]
            for split in SPLITS
        }

    def _read_training_photos(self, pairs: list[PairFile], sides: list[Split]) -> set[str] | None:
        if self.training_photos is None:
            return None
        names = read_selection(self.training_photos)
        side_of = {self.photo_name(pair): side for pair, side in zip(pairs, sides, strict=True)}
        unknown = [name for name in names if name not in side_of]
        if unknown:
            raise ValueError(
                f"{self.training_photos} names {_some(unknown)}, which {self.root} does not hold; choose from this "
                "set with `pocketgan select photos`"
            )
        held_out = [f"{name} ({side_of[name]})" for name in names if side_of[name] != "train"]
        if held_out:
            raise ValueError(
                f"{self.training_photos} names {_some(held_out)}, held out here: training on it would leak; "
                f"choose again with data.split and data.seed of this run, {list(self.fractions)} and {self.seed}"
            )
        return set(names)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled batches; the order depends on seed and epoch alone, not on the number of ranks.

        Raises:
            ValueError: The batch does not divide over the ranks, or is larger than the training split.
        """
        dataset = self.datasets["train"]
        self.check_batch(len(dataset), "pairs", "photos")
        return self.training_loader(
            dataset,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _evaluation_dataloader(self, split: Split) -> DataLoader[dict[str, Any]]:
        _, ranks = self.rank_and_ranks
        dataset = self.datasets[split]
        if not len(dataset):
            raise ValueError(f"the {split} split is empty; give it a fraction above 0 in data.split")
        if len(dataset) < ranks:
            raise ValueError(f"the {split} split has {len(dataset)} pairs for {ranks} ranks; each rank needs one")
        return self.evaluation_loader(dataset, collate_fn=as_it_is)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every validation pair once, over all ranks together."""
        return self._evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every test pair once, over all ranks together."""
        return self._evaluation_dataloader("test")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Turn bytes into floats on the device and, in training, crop and flip photo and edit alike."""
        if self.trainer and self.trainer.training:
            batch["photo"], batch["edit"] = self._augmented(batch["photo"], batch["edit"])
        else:
            batch["photo"], batch["edit"] = self._to_float(batch["photo"]), self._to_float(batch["edit"])
        return batch

    def _to_float(self, pictures: Tensor) -> Tensor:
        """(B, S, S, 3) bytes to the centre (B, 3, size, size) in [-1, 1]."""
        # in place: a further array of this size would be new memory from the system each time
        return center_crop(pictures.permute(0, 3, 1, 2), [self.size, self.size]).float().div_(127.5).sub_(1)

    def _augmented(self, *sides: Tensor) -> tuple[Tensor, ...]:
        """Crop and flip photos and edits (B, S, S, 3) alike and make floats of them, as ``_to_float`` does.

        The draws depend on seed and images seen alone, for the whole global batch, so that a resumed run, and a run on
        another number of ranks, see the same pictures.
        """
        rank, ranks = self.rank_and_ranks
        draws = torch.rand(len(sides[0]) * ranks, 3, generator=self.generator())[rank::ranks]
        room = self.stored_size - self.size
        augmented = []
        for pictures in sides:
            floats = torch.empty(len(pictures), self.size, self.size, 3, device=pictures.device)
            for picture, into, (flip, *corner) in zip(pictures, floats, draws.tolist(), strict=True):
                top, left = (int(place * (room + 1)) for place in corner)
                cropped = picture[top : top + self.size, left : left + self.size]
                into.copy_(cropped.flip(1) if self.flip and flip < 0.5 else cropped)
            augmented.append(floats.div_(127.5).sub_(1).permute(0, 3, 1, 2))
        return tuple(augmented)

    def batches(self, split: Split, batch_size: int = 16, count: int | None = None) -> Iterator[dict[str, Any]]:
        """All pairs of a split in order, as validation sees them, on the CPU.

        Args:
            split: Which.
            batch_size: Pairs in a batch.
            count: How many pairs at most, evenly over the split, whose neighbours are of one concept; all if None.
        """
        dataset: Dataset[dict[str, Any]] = self.datasets[split]
        length = len(self.datasets[split])
        if count is not None and count < length:
            dataset = Subset(dataset, [number * length // count for number in range(count)])
        loader: DataLoader[dict[str, Any]] = DataLoader(
            dataset, batch_size, collate_fn=as_it_is, generator=torch.Generator()
        )
        for batch in loader:
            yield {**batch, "photo": self._to_float(batch["photo"]), "edit": self._to_float(batch["edit"])}

    def edits(self, split: Split, batch_size: int = 16) -> Iterator[tuple[Tensor, list[str]]]:
        """The teacher's edits of a split: batches (B, 3, size, size) in [-1, 1] with their concepts."""
        for batch in self.batches(split, batch_size):
            yield batch["edit"], batch["concept"]

    def photos(self, split: Split, batch_size: int = 16) -> Iterator[tuple[Tensor, list[str]]]:
        """Each photo of a split once: batches (B, 3, size, size) in [-1, 1] with their names (``photo_name``)."""
        dataset = self.datasets[split]
        places: dict[str, int] = {}
        for place, pair in enumerate(dataset.pairs):
            places.setdefault(self.photo_name(pair), place)
        names, once = list(places), Subset(dataset, list(places.values()))
        loader: DataLoader[dict[str, Any]] = DataLoader(
            once, batch_size, collate_fn=as_it_is, generator=torch.Generator()
        )
        for number, batch in enumerate(loader):
            yield self._to_float(batch["photo"]), names[number * batch_size : (number + 1) * batch_size]

    def reference_features(self, split: Split, extractor: FeatureExtractor) -> dict[str, Tensor]:
        """Features (N, D) of the teacher's edits by concept; computed once for a set, split and size, then read."""
        sizes = f"{self.stored_size}-{self.size}"
        chosen = hashlib.sha256("/".join(self.prompts).encode()).hexdigest()[:8]
        dealt: list[Any] = [self.fractions, self.seed]
        if split == "train" and self.training_photos is not None:
            dealt.append(sorted({self.photo_name(pair) for pair in self.datasets[split].pairs}))
        split_key = hashlib.sha256(json.dumps(dealt).encode()).hexdigest()[:8]
        name = f"{self.set_hash[:16]}-{sizes}-{split}-{split_key}-{chosen}-{extractor.frechet_name}.safetensors"
        with FileLock(self.cache / "lock"):
            return reference_features(extractor, self.edits(split), self.cache / name)


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def scaled_square(image: Image.Image, name: str | Path, size: int) -> np.ndarray:
    """The centred square of a picture at a side of ``size`` pixels, (size, size, 3) uint8.

    Raises:
        ValueError: It is smaller than that; ``name`` is for the message.
    """
    if min(image.size) < size:
        raise ValueError(
            f"{name} is {image.width}x{image.height}, below the {size} px asked for; "
            f"set size to {min(image.size)} or less, or synthesize the pairs at a larger size"
        )
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
