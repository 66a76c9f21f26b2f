"""Loaders that follow the images seen, over any number of ranks."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler, Subset

from datamodules.image_clock_sampler import ImageClockSampler


class ImageClockData(LightningDataModule):
    """A datamodule whose order depends on seed and images seen alone, not on the number of ranks.

    Attributes:
        batch_size: Examples in a batch over all ranks together.
        seed: Of the order and of what is drawn.
    """

    batch_size: int
    seed: int

    @property
    def rank_and_ranks(self) -> tuple[int, int]:
        """This process and their number; 0 and 1 without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def images_seen(self) -> int:
        """Images of the data that the run has had; the module's clock where it says nothing else, 0 without a trainer.

        A GAN whose discriminator makes several steps in one of the generator's counts them as ``data_images_seen``.
        """
        if not self.trainer:
            return 0
        module = self.trainer.lightning_module
        return getattr(module, "data_images_seen", getattr(module, "images_seen", 0))

    def generator(self) -> torch.Generator:
        """Of the whole global batch at this point of the run: the same on every rank and after a resume."""
        return torch.Generator().manual_seed(hash((self.seed, self.images_seen)))

    def check_batch(self, examples: int, what: str, more: str) -> None:
        """Refuse a batch that the ranks or the training split cannot make.

        Args:
            examples: In the training split.
            what: Their name.
            more: What to give more of.

        Raises:
            ValueError: The batch does not divide over the ranks, or is larger than the training split.
        """
        _, ranks = self.rank_and_ranks
        if self.batch_size % ranks:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide over {ranks} ranks; use a multiple of {ranks}"
            )
        if examples < self.batch_size:
            raise ValueError(
                f"the training split has {examples} {what}, batch_size is {self.batch_size}; "
                f"give more {more} or a smaller batch"
            )

    def training_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """Shuffled batches of this rank, from the images seen on; ``options`` are DataLoader's."""
        rank, ranks = self.rank_and_ranks
        sampler = ImageClockSampler(len(dataset), self.batch_size, lambda: self.images_seen, rank, ranks, self.seed)
        return DataLoader(
            dataset,
            batch_size=self.batch_size // ranks,
            sampler=sampler,
            drop_last=True,
            generator=torch.Generator(),  # a loader's own draw must not move the training's random numbers
            **options,
        )

    def evaluation_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """Every example once over all ranks together, in order; ``options`` are DataLoader's."""
        rank, ranks = self.rank_and_ranks
        share = Subset(dataset, range(rank, len(dataset), ranks))
        # the sampler is there so that Lightning does not divide the share once more and repeat examples to fill it
        sampler: DistributedSampler[Any] = DistributedSampler(share, 1, 0, shuffle=False)
        return DataLoader(
            share,
            batch_size=max(self.batch_size // ranks, 1),
            sampler=sampler,
            generator=torch.Generator(),
            **options,
        )
