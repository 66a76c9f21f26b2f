"""Images in folders, as several datamodules find, deal and open them."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from datamodules.image_clock_data import ImageClockData
from pocketgan.images import IMAGE_SUFFIXES, UnreadableImageError, centred_square, load_photo
from pocketgan.pair_files import Split, check_fractions

Fractions = tuple[float, float, float]


class ClassFolders(ImageFolder):
    """torchvision's, without hidden files and folders: the cache is one.

    Attributes:
        classes: Sorted names of the folders.
        samples: Paths, each with the place of its class.
        targets: These places.

    Args:
        root: ``ROOT/CLASS/image``; folders below a class belong to it.

    Raises:
        FileNotFoundError: There is no such folder, it holds none, or a class has no image.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; give one that holds a folder of images for each class")
        if not any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir()):
            raise FileNotFoundError(f"{root} holds no folders; put each class's images into a folder of its name")
        try:
            super().__init__(str(root), is_valid_file=_is_image)
        except FileNotFoundError as error:
            accepted = ", ".join(sorted(IMAGE_SUFFIXES))
            raise FileNotFoundError(
                f"a class folder of {root} holds no image ({error}); put images ({accepted}) there or delete it"
            ) from error

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Folders whose name does not begin with a dot."""
        names = sorted(
            path.name for path in Path(directory).iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        return names, {name: place for place, name in enumerate(names)}


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES and not Path(path).name.startswith(".")


class ImageFolderData(ImageClockData):
    """What datamodules of images in folders take alike.

    Args:
        root: The folder.
        size: Side of the images in pixels.
        flip: Mirror half of the training images.
        batch_size: Images in a batch over all ranks together.
        split: Fractions for train, val and test, of each class.
        seed: Deals the split and all that is drawn.
        cache: Folder of what is computed once; ``ROOT/.cache`` if None.

    Attributes:
        classes: Names by label, after ``setup``.

    Raises:
        ValueError: A fraction is below 0, the first is 0, or they do not add up to 1; or a number is below 1.
    """

    def __init__(
        self, root: Path, size: int, flip: bool, batch_size: int, split: Fractions, seed: int, cache: Path | None
    ) -> None:
        super().__init__()
        check_fractions(split)
        if size < 1 or batch_size < 1:
            raise ValueError(f"size is {size}, batch_size {batch_size}; give 1 or more")
        self.root, self.size, self.flip = root, size, flip
        self.batch_size, self.fractions, self.seed = batch_size, split, seed
        self.cache = cache or root / ".cache"
        self.classes: list[str] = []


def deal(labels: Sequence[int], fractions: Fractions, seed: int) -> dict[Split, list[int]]:
    """Deal images to the splits, each class in the same shares.

    Args:
        labels: The class of each image.
        fractions: For train, val and test.
        seed: Of the order within a class.

    Returns:
        Places in ``labels`` by split.
    """
    dealt: dict[Split, list[int]] = {"train": [], "val": [], "test": []}
    generator = torch.Generator().manual_seed(seed)
    places_of: defaultdict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places_of[label].append(place)
    for _, places in sorted(places_of.items()):
        order = torch.randperm(len(places), generator=generator).tolist()
        ends = [round(sum(fractions[: number + 1]) * len(places)) for number in range(3)]
        for split, start, end in zip(dealt, [0, *ends], ends, strict=False):
            dealt[split] += [places[place] for place in order[start:end]]
    return dealt


def content_of(paths: Sequence[Path], root: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of each file: what a cache of them is keyed by."""
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def square_picture(file: Path, size: int) -> Image.Image:
    """The centred square of an image file at a side of ``size`` pixels.

    Raises:
        UnreadableImageError: It is smaller than that, or unreadable.
    """
    image = load_photo(file, minimum_side=1).image
    side = min(image.size)
    if side < size:
        raise UnreadableImageError(
            file,
            f"{image.width}x{image.height} is below the {size} px asked for; set size to {side} or less, or "
            "give larger images",
        )
    return centred_square(image, size)
