"""Sparsity that grows with the images seen."""

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.console import say
from callbacks.sparsity_callback import SparsityCallback
from pocketgan.compression import (
    CubicSparsity,
    FixedMask,
    WeightMask,
    clear_momentum,
    find_masks,
    global_magnitude_masks,
    kept_count,
    weight_layers,
)


class ProgressiveSparsity(SparsityCallback):
    """Prunes single weights by their magnitude, more and more of them (FedSparsify, arXiv 2204.12430).

    One threshold over all masked layers; how many are kept is reckoned from all of them each time, ⌊(1 - s) · n⌋. A
    weight that is pruned stays pruned; its gradient is 0, and what the optimizer remembers of it is cleared. (Of an
    adapter's delta no part belongs to one weight: there is nothing to clear.) The moving average has the same masks.

    Deviations: norms and biases are never pruned, which FedSparsify's threshold over all trainables does; progress is
    images, not federation rounds. ``initial_sparsity`` equal to ``final_sparsity`` is pruning at once, its one-shot.

    The zeros save memory where a format leaves them out. On CPUs and phones they save no time.

    Args:
        final_sparsity: Share of the weights of masked layers that is zero in the end.
        start_images: Images before the first pruning.
        end_images: Images at which the final sparsity is reached; leave the run enough after it to recover.
        every_images: Images between two prunings.
        initial_sparsity: Share that is zero from the first pruning on.
        dense_layers: Parts that stay dense, see ``SparsityCallback``.

    Raises:
        ValueError: See ``CubicSparsity``.
    """

    def __init__(
        self,
        final_sparsity: float,
        start_images: int,
        end_images: int,
        every_images: int,
        initial_sparsity: float = 0.0,
        dense_layers: list[str] | None = None,
    ) -> None:
        super().__init__(dense_layers)
        self.schedule = CubicSparsity(initial_sparsity, final_sparsity, start_images, end_images, every_images)
        self._kept: int | None = None

    @property
    def last_images(self) -> int:
        """Where the schedule ends."""
        return self.schedule.end_images

    def make_mask(self, weight: Tensor) -> WeightMask:
        """A mask of ones."""
        return FixedMask(weight)

    def update(self, trainer: Trainer, module: LightningModule) -> float:
        """Prune, if more is due than is pruned."""
        current, *averages = self.networks(module)
        layers = [weight_layers(current)[name].layer for name in find_masks(current)]
        masks = _masks(find_masks(current))
        total = sum(mask.numel() for mask in masks)
        if self._kept is None:
            self._kept = sum(int(mask.sum()) for mask in masks)
        kept = kept_count(total, self.schedule(module.images_seen))  # type: ignore[arg-type]  # of every module served
        if kept < self._kept:
            pruned = global_magnitude_masks([layer.weight for layer in layers], masks, kept)
            for network in (current, *averages):
                for mask, new in zip(_masks(find_masks(network)), pruned, strict=True):
                    mask.copy_(new)
            for layer, new in zip(layers, pruned, strict=True):
                original: Tensor = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
                for optimizer in trainer.optimizers:
                    clear_momentum(optimizer, original, new)
            self._kept = kept
            empty = [name for name, mask in zip(find_masks(current), pruned, strict=True) if not mask.any()]
            if empty and trainer.is_global_zero:
                say(f"sparsity: no weight is left of {', '.join(empty)}; lower final_sparsity or keep it dense")
        return 1 - self._kept / total


def _masks(found: dict[str, WeightMask]) -> list[Tensor]:
    return [mask.mask for mask in found.values() if isinstance(mask, FixedMask)]
