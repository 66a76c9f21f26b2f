"""Batches of (photo, edit) pairs from litdata chunks, local or in object storage."""

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from datamodules.pair_batches import PairBatches, PairDataset, scaled_square
from pocketgan.pair_chunks import PairChunks, is_address
from pocketgan.pair_files import PairFile, pair_files


class ChunkedPairDataset(PairDataset):
    """Pairs of one split, decoded from chunks whenever they are wanted.

    Args:
        chunks: The set.
        pairs: Those of the split.
        places: Of the pairs in the chunks.
        size: Side in pixels to which they are scaled.
    """

    def __init__(self, chunks: PairChunks, pairs: list[PairFile], places: list[int], size: int) -> None:
        super().__init__(pairs)
        self.chunks, self.places, self.size = chunks, places, size

    def pictures(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Read, decode and scale."""
        photos = torch.empty(len(indices), self.size, self.size, 3, dtype=torch.uint8)
        edits = torch.empty_like(photos)
        # chunk by chunk, since a change of chunk costs as much as several pairs of one
        for row, index in sorted(enumerate(indices), key=lambda each: self.places[each[1]]):
            pair, contents = self.pairs[index], self.chunks.read(self.places[index])
            for content, name, into in zip(contents, (pair.photo, pair.edit), (photos, edits), strict=True):
                image = Image.open(io.BytesIO(content)).convert("RGB")
                into[row] = torch.from_numpy(scaled_square(image, name, self.size).copy())
        return photos, edits


class StreamedPairs(PairBatches):
    """The batches of ``PairedImages``, from a pair set that ``pocketgan pairs convert --to litdata`` wrote.

    Split, order, crops and flips are those of ``PairedImages`` on the pair set: for the same arguments the batches are
    the same to the last bit, on any number of ranks and after a resume. Only where the pictures come from differs:
    nothing is decoded in advance, so that a set needs no room for its decoded pictures, at the price of decoding PNG in
    every pass; give ``num_workers`` the processors that the training leaves.

    Chunks in object storage are fetched whole when their first pair comes, by whichever rank of a machine comes first,
    and kept in ``cache``. The order is that of single pairs, so the first batches touch most chunks: a run begins with
    the download of its concepts' chunks, and the cache needs room for them. A photo is stored with each of its edits.

    Args:
        root: Folder of the chunks, or its address: s3://, gs://, azure:// or r2://.
        concepts: The concepts to use, or a file that names them (``pocketgan select concepts``); all if None.
        size: Side of the training pictures in pixels; at most the pair set's own.
        crop_from: As that of ``PairedImages``.
        flip: Mirror half of the training pairs.
        batch_size: Pairs in a batch over all ranks together.
        split: Fractions of the photos for train, val and test.
        seed: Deals the split, the order and the augmentation.
        num_workers: Loader processes of a rank.
        cache: Local folder for fetched chunks and the features of the teacher's edits; ``ROOT/.cache`` if None, which
            object storage cannot hold.
        training_photos: A file that names the photos to train on (``pocketgan select photos``); all of the training
            side if None. Validation and test stay whole.

    Raises:
        ValueError: A fraction or size makes no sense, or object storage is given without a cache.
    """

    @override
    def default_cache(self) -> Path:
        if is_address(str(self.root)):
            raise ValueError(
                f"{self.root} is in object storage; give --data.cache a folder on a local disk with room for the chunks"
            )
        return super().default_cache()

    def photo_name(self, pair: PairFile) -> str:
        """A photo's name in a selection file: that of the pair set."""
        return pair.photo.as_posix()

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Read what the chunks hold.

        Raises:
            FileNotFoundError: There is no converted pair set, or a selection file is missing.
            ModuleNotFoundError: litdata is not installed.
            ValueError: An unknown concept or training photo, a training photo that is held out, too few photos.
        """
        if self.datasets:
            return
        chunks = PairChunks(str(self.root), self.cache)
        pairs = pair_files(chunks.conversion.pairs, Path())
        self.set_hash = chunks.conversion.hash
        for side, places in self.places_of_splits(pairs).items():
            self.datasets[side] = ChunkedPairDataset(
                chunks, [pairs[place] for place in places], places, self.stored_size
            )

    def training_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """As of ``ImageClockData``; processes that fetch from object storage begin anew, not as forks.

        litdata's client runs threads, which a fork would leave behind.
        """
        if is_address(str(self.root)) and self.num_workers:
            options["multiprocessing_context"] = "spawn"
        return super().training_loader(dataset, **options)
