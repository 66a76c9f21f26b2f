"""Photos for a teacher to edit."""

import hashlib
import importlib.util
import random
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from pocketgan.images import UnreadableImageError, centred_square, find_images, load_photo, to_tensor
from pocketgan.pair_set import as_name

# Photographs of everyday things; the packages' star field, retina and tissue slice are left out: an edit learned on
# photographs does not carry over to them.
BUNDLED_PHOTOS = {
    "skimage": (
        "data",
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "sklearn": ("datasets/images", "china.jpg", "flower.jpg"),
}
BUNDLED_COUNT = sum(len(names) for _, *names in BUNDLED_PHOTOS.values())
BUNDLED_CROPS_PER_PHOTO = 24
SMALLEST_CROP = 0.4

_NAMES_IN_WARNING = 20
_LONGEST_WAIT = timedelta(days=30)


class PhotoBatch(TypedDict):
    """What `PairSynthesis` gets.

    Keys:
        photo: (B, 3, S, S) in [-1, 1]; B is smaller where photos were unreadable, at worst 0.
        id: B names, unique in the pair set.
        source: B names of the files that they are crops of.
        skipped: Unreadable files of this batch: name to reason.
        converted: Files of this batch that needed converting: name to what.
    """

    photo: Tensor
    id: list[str]
    source: list[str]
    skipped: dict[str, str]
    converted: dict[str, str]


class _Crop(NamedTuple):
    id: str
    source: str
    path: Path
    random: bool


class _Item(NamedTuple):
    crop: _Crop
    photo: Tensor | None
    conversions: tuple[str, ...]
    reason: str


class SourcePhotos(LightningDataModule):
    """Square photos out of a folder, or out of installed packages, each with a name that stays the same.

    A photo's name and pixels depend on its path below `root`, on `size`, on `seed` where crops are random,
    and on nothing else: not on `limit`, the batch or the number of processes. So a set can be made in parts,
    and grow. The photos are divided among the processes without gaps or repeats.

    Args:
        root: A folder, searched with the folders below it; None for the 8 photos that scikit-image and
            scikit-learn bring along.
        size: Side of the photos handed out, in pixels; crops are scaled down or up to it.
        crops_per_photo: 1 for the centred square; more for random squares of 40 to 100 % of the shorter side;
            None for 1 from a folder and 24 from the bundled photos.
        limit: Take only this many crops, the same ones each time, picked by `seed`; None for all.
        batch_size: Photos per batch. A synthesis that is killed loses the batch it is at.
        seed: Seeds the choice of crops, and the order.
        minimum_side: Photos with a shorter side than this many pixels are skipped.
        workers: Loader processes; 0 loads in the main process, which is enough unless the teacher is very
            fast.

    Attributes:
        skipped: Unreadable photos: name to reason. Complete after `teardown`.
        converted: Photos that needed converting: name to what. Likewise.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        root: Path | None = None,
        size: int = 512,
        crops_per_photo: int | None = None,
        limit: int | None = None,
        batch_size: int = 4,
        seed: int = 0,
        minimum_side: int = 64,
        workers: int = 0,
    ) -> None:
        super().__init__()
        # With fewer photos left than processes, some have nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        least = {"size": (size, 32), "batch_size": (batch_size, 1), "minimum_side": (minimum_side, 1)}
        least |= {"crops_per_photo": (crops_per_photo or 1, 1), "limit": (1 if limit is None else limit, 1)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"{name} is {value}; it must be at least {minimum}")
        self._root = root
        self._size = size
        self._crops_per_photo = crops_per_photo or (BUNDLED_CROPS_PER_PHOTO if root is None else 1)
        self._limit = limit
        self._batch_size = batch_size
        self._seed = seed
        self._minimum_side = minimum_side
        self._workers = workers
        self._crops: list[_Crop] = []
        self._excluded: set[str] = set()
        self._patient_group: Any = None
        self.skipped: dict[str, str] = {}
        self.converted: dict[str, str] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What changes a photo's pixels, as plain JSON values; no paths."""
        if self._crops_per_photo == 1:
            return {"size": self._size, "crop": "centred square"}
        crop = f"random square of {SMALLEST_CROP:.0%} to 100% of the shorter side"
        return {"size": self._size, "crop": crop, "seed": self._seed}

    @property
    def ids(self) -> list[str]:
        """Names of the photos to come, in their order, after `setup`; some may prove unreadable."""
        return [crop.id for crop in self._crops if crop.id not in self._excluded]

    @override
    def setup(self, stage: str) -> None:
        """List the photos.

        Raises:
            FileNotFoundError: If `root` does not exist.
            ModuleNotFoundError: If the bundled photos are wanted and scikit-image is not installed.
            ValueError: If `root` holds no images, or not one that can be read.
        """
        if self._patient_group is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            # processes end hours apart, and the default group gives up after half an hour
            self._patient_group = torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        self._excluded = set()
        self.skipped = {}
        self.converted = {}
        files = bundled_files() if self._root is None else _files_below(self._root)
        self._check_any_readable(files)
        crops = [crop for name, path in files.items() for crop in self._crops_of(name, path)]
        random.Random(self._seed).shuffle(crops)
        self._crops = crops[: self._limit]

    def _check_any_readable(self, files: dict[str, Path]) -> None:
        reasons = []
        for path in files.values():
            try:
                load_photo(path, self._minimum_side)
            except UnreadableImageError as error:
                reasons.append(str(error))
            else:
                return
        listed = "\n  ".join(reasons[:_NAMES_IN_WARNING])
        raise ValueError(
            f"none of the {len(reasons)} images in {self._root} can be used:\n  {listed}\n"
            f"give a folder with whole photos, or lower minimum_side (now {self._minimum_side})"
        )

    def _crops_of(self, name: str, path: Path) -> list[_Crop]:
        stem = as_name(path.stem)[:40]
        # The hash keeps apart files of one name in different folders, and names that differ in odd characters
        # only.
        photo_id = f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
        if self._crops_per_photo == 1:
            return [_Crop(photo_id, name, path, random=False)]
        return [_Crop(f"{photo_id}-{number:03d}", name, path, random=True) for number in range(self._crops_per_photo)]

    def exclude(self, ids: set[str]) -> None:
        """Leave photos out, because they are finished; between `setup` and `predict_dataloader`."""
        self._excluded = ids

    @override
    def predict_dataloader(self) -> "DataLoader[_Item]":
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        crops = [crop for crop in self._crops if crop.id not in self._excluded]
        if not crops:
            # Lightning warns of an empty loader, but a set that is complete needs no attention.
            warnings.filterwarnings("ignore", "Total length of .* across ranks is zero")
        dataset = _Crops(crops[rank::world_size], self._size, self._seed, self._minimum_side)
        # Already this process's share. The sampler is there to say so: Lightning would divide it once more.
        # Its own UnrepeatedDistributedSampler refuses fewer photos than processes, which happens when the
        # rest is resumed.
        sampler: DistributedSampler[_Item] = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False)
        return DataLoader(
            dataset,
            batch_size=self._batch_size,
            sampler=sampler,
            num_workers=self._workers,
            collate_fn=_collated,
        )

    @override
    def on_before_batch_transfer(self, batch: PhotoBatch, dataloader_idx: int) -> PhotoBatch:
        self.skipped.update(batch["skipped"])
        self.converted.update(batch["converted"])
        return batch

    @override
    def teardown(self, stage: str) -> None:
        """Gather what was skipped and converted from all processes, and warn of it once."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, (self.skipped, self.converted), group=self._patient_group)
            for skipped, converted in parts:
                self.skipped.update(skipped)
                self.converted.update(converted)
        if self.skipped:
            rank_zero_warn(f"{len(self.skipped)} photos skipped, because they cannot be read:{_listed(self.skipped)}")
        if self.converted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(self.converted.values()).items()))
            rank_zero_warn(f"{len(self.converted)} photos converted ({kinds}):{_listed(self.converted)}")


class _Crops(Dataset[_Item]):
    def __init__(self, crops: list[_Crop], size: int, seed: int, minimum_side: int) -> None:
        self._crops = crops
        self._size = size
        self._seed = seed
        self._minimum_side = minimum_side

    def __len__(self) -> int:
        return len(self._crops)

    @override
    def __getitem__(self, index: int) -> _Item:
        crop = self._crops[index]
        try:
            image, conversions = load_photo(crop.path, self._minimum_side)
        except UnreadableImageError as error:
            return _Item(crop, None, (), error.reason)
        if crop.random:
            # Seeded by name, so that a crop does not depend on which others are made.
            generator = random.Random(f"{self._seed}/{crop.id}")
            side = round(min(image.size) * generator.uniform(SMALLEST_CROP, 1))
            left = generator.randint(0, image.width - side)
            top = generator.randint(0, image.height - side)
            box = (left, top, left + side, top + side)
            square = image.resize((self._size, self._size), Image.Resampling.LANCZOS, box)
        else:
            square = centred_square(image, self._size)
        return _Item(crop, to_tensor(square), conversions, "")


def _collated(items: list[_Item]) -> PhotoBatch:
    photos = [item.photo for item in items if item.photo is not None]
    readable = [item.crop for item in items if item.photo is not None]
    return PhotoBatch(
        photo=torch.stack(photos) if photos else torch.empty(0, 3, 0, 0),
        id=[crop.id for crop in readable],
        source=[crop.source for crop in readable],
        skipped={item.crop.source: item.reason for item in items if item.photo is None},
        converted={item.crop.source: ", ".join(item.conversions) for item in items if item.conversions},
    )


def _files_below(root: Path) -> dict[str, Path]:
    return {path.relative_to(root).as_posix(): path for path in find_images(root)}


def bundled_files() -> dict[str, Path]:
    """The bundled photos' files by name.

    Raises:
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    files = {}
    for package, (folder, *names) in BUNDLED_PHOTOS.items():
        # Found without importing the package, which takes a second and is not needed for a file.
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"the bundled photos need {package}, which is not installed; run: "
                f"pip install 'pocketgan[demo]', or give a folder of your own photos as root"
            )
        files.update({name: Path(spec.origin).parent / folder / name for name in names})
    return files


def _listed(reasons: dict[str, str]) -> str:
    names = sorted(reasons)
    lines = [f"\n  {name}: {reasons[name]}" for name in names[:_NAMES_IN_WARNING]]
    rest = len(names) - len(lines)
    return "".join(lines) + (f"\n  and {rest} more" if rest else "")
