"""The order of training pairs, by seed and images seen."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DistributedSampler


class ImageClockSampler(DistributedSampler[int]):
    """A rank's share of shuffled pairs, starting where the run stands after so many images, as EDM2's loader does.

    A pass is a permutation that depends on seed and pass alone; its global batches are the same for any number of
    ranks. Pass and place come from the images seen: Lightning's own count of passes moves on when a run that stopped
    at the end of one is resumed. It is a DistributedSampler so that Lightning leaves it as it is.

    Args:
        pairs: Number of pairs.
        batch_size: Pairs of a batch over all ranks; a last, smaller batch of a pass is dropped.
        images_seen: Tells, whenever a pass begins, how many images the run has seen.
        rank: This rank.
        ranks: Number of ranks.
        seed: Seeds the permutations.
    """

    def __init__(
        self, pairs: int, batch_size: int, images_seen: Callable[[], int], rank: int, ranks: int, seed: int
    ) -> None:
        super().__init__(range(pairs), ranks, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.pass_images = pairs // batch_size * batch_size
        self.images_seen = images_seen

    def __iter__(self) -> Iterator[int]:
        """Yield the rest of a pass."""
        number, start = divmod(self.images_seen(), self.pass_images)
        generator = torch.Generator().manual_seed(hash((self.seed, number)))
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        yield from order[start + self.rank : self.pass_images : self.num_replicas].tolist()

    def __len__(self) -> int:
        """Pairs of a whole pass for this rank; Lightning counts the batches that a resumed pass has behind it."""
        return self.pass_images // self.num_replicas
