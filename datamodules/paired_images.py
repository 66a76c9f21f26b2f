"""Batches of (photo, edit) pairs from a pair set or an aligned folder."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.progress import track
from torch import Tensor

from datamodules.array_files import allocate, built_once, mapped
from datamodules.pair_batches import PairBatches, PairDataset, scaled_square
from pocketgan.images import load_photo
from pocketgan.pair_files import (
    PairFile,
    checked_file,
    is_aligned_folder,
    pairs_of_aligned_folder,
    pairs_of_pair_set,
    side_by_side,
)
from pocketgan.pair_set import MANIFEST_FILE_NAME, is_unfinished, set_hash


class MappedPairDataset(PairDataset):
    """Pairs of one split as uint8 arrays from memory-mapped files.

    Args:
        cache: Folder of the files.
        pairs: Those of the split.
        rows: Of each pair's photo and edit in the files.
    """

    def __init__(self, cache: Path, pairs: list[PairFile], rows: list[tuple[int, int]]) -> None:
        super().__init__(pairs)
        self.photos, self.edits = mapped(cache / "photos.npy"), mapped(cache / "edits.npy")
        self.rows = torch.tensor(rows).reshape(-1, 2)

    def pictures(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Rows of the files."""
        rows = self.rows[indices]
        return self.photos.index_select(0, rows[:, 0]), self.edits.index_select(0, rows[:, 1])


class PairedImages(PairBatches):
    """Photos with their edits, split by photo, decoded once.

    The first use decodes each picture into a memory-mapped uint8 cache that is keyed by the set's hash and the size;
    a set that grew or changed gets a new one. Batches: ``photo`` and ``edit`` (B, 3, size, size) in [-1, 1],
    ``concept`` and ``prompt`` (lists of B).

    Args:
        root: A pair set (DESIGN.md), or an aligned folder of pytorch-CycleGAN-and-pix2pix.
        concepts: The concepts to use, or a file that names them (``pocketgan select concepts``); all if None.
        size: Side of the training pictures in pixels; at most the pair set's own.
        crop_from: Side to which pictures are scaled before a random crop of ``size`` is taken in training, as pix2pix's
            286 for 256; no cropping if None.
        flip: Mirror half of the training pairs.
        batch_size: Pairs in a batch over all ranks together.
        split: Fractions of the photos for train, val and test.
        seed: Deals the split, the order and the augmentation.
        num_workers: Loader processes of a rank; 0 is fastest on a few cores, since the cache leaves little to do.
        cache: Folder of the caches; ``ROOT/.cache`` if None.
        training_photos: A file that names the photos to train on (``pocketgan select photos``); all of the training
            side if None. Validation and test stay whole.

    Raises:
        ValueError: A fraction or size makes no sense.
    """

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Read the set and open or build its cache.

        Raises:
            FileNotFoundError: No set there, or a picture of it or a selection file is missing.
            ValueError: An unknown concept or training photo, a training photo that is held out, a picture that differs
                from its digest or is too small, too few photos.
        """
        if self.datasets:
            return
        pairs, digest = self._read()
        places = self.places_of_splits(pairs)
        self.set_hash = digest
        cache, rows = self._build_cache(pairs, digest), _rows(pairs)
        for split, chosen in places.items():
            self.datasets[split] = MappedPairDataset(cache, [pairs[i] for i in chosen], [rows[i] for i in chosen])

    def _read(self) -> tuple[list[PairFile], str]:
        root = Path(self.root)
        if (root / MANIFEST_FILE_NAME).is_file():
            pairs, digest = pairs_of_pair_set(root), set_hash(root)
            if is_unfinished(root):
                rank_zero_warn(f"the synthesis of {root} was broken off; `pocketgan predict` again makes the rest")
        elif is_aligned_folder(root):
            pairs = pairs_of_aligned_folder(root)
            stats = [(str(pair.photo.relative_to(root)), pair.photo.stat()) for pair in pairs]
            listing = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
            digest = hashlib.sha256(listing.encode()).hexdigest()
        else:
            raise FileNotFoundError(
                f"{root} holds neither a pair set (manifest.json) nor an aligned folder (train/); make a pair set "
                "with `pocketgan predict -c configs/synthesize/style_transfer.yaml`"
            )
        if not pairs:
            raise ValueError(f"{root} holds no pairs; finish its synthesis with `pocketgan predict`")
        return pairs, digest

    def _build_cache(self, pairs: list[PairFile], digest: str) -> Path:
        name = f"{digest[:16]}-{self.stored_size}"
        return built_once(self.cache, name, lambda folder: self._decode(pairs, folder))

    def _decode(self, pairs: list[PairFile], folder: Path) -> None:
        rows = _rows(pairs)
        shape = (self.stored_size, self.stored_size, 3)
        photos, edits = (
            allocate(folder / name, (count, *shape), np.uint8)
            for name, count in (
                ("photos.npy", 1 + max(row for row, _ in rows)),
                ("edits.npy", len(pairs)),
            )
        )
        decoded: dict[Path, tuple[int, int]] = {}
        photo: Image.Image | None
        for pair, (photo_row, edit_row) in track(
            list(zip(pairs, rows, strict=True)),
            description=f"Decoding {Path(self.root).name} at {self.stored_size} px",
        ):
            if pair.photo == pair.edit:
                photo, edit = side_by_side(pair.photo)
            else:
                photo_sha256, edit_sha256 = pair.sha256 or (None, None)
                edit = load_photo(checked_file(pair.edit, edit_sha256)).image
                photo = None
                if pair.photo not in decoded:
                    photo = load_photo(checked_file(pair.photo, photo_sha256)).image
            if photo is not None:
                decoded[pair.photo] = photo.size
                photos[photo_row] = scaled_square(photo, pair.photo, self.stored_size)
            if edit.size != decoded[pair.photo]:
                raise ValueError(
                    f"{pair.edit} is {edit.size[0]}x{edit.size[1]}, its photo {decoded[pair.photo][0]}x"
                    f"{decoded[pair.photo][1]}; both sides of a pair must have one size: make the edit again"
                )
            edits[edit_row] = scaled_square(edit, pair.edit, self.stored_size)
        photos.flush()
        edits.flush()


def _rows(pairs: list[PairFile]) -> list[tuple[int, int]]:
    """Rows of each pair's photo and edit in the cache; a photo of several concepts is stored once."""
    photo_rows: dict[Path, int] = {}
    return [(photo_rows.setdefault(pair.photo, len(photo_rows)), row) for row, pair in enumerate(pairs)]
