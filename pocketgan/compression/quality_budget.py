"""As narrow as the metric allows."""

from collections.abc import Callable

from torch import Tensor

from pocketgan.compression.channel_graph import ChannelGroup, Kept
from pocketgan.compression.pruning_rule import PruningRule, thresholds


class QualityBudget(PruningRule):
    """Shrinks notch by notch, fine-tuning in between, until the metric passes its limit, then steps back one notch.

    Args:
        max_quality_loss: Largest increase of the validation L1, as a share of the L1 of the network at the start.
        notch_images: Images of fine-tuning before a notch is judged.
        shrink_factor: A notch has at most this share of the operations of the one before.
        multiple: Kept widths are multiples of this many channels.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, max_quality_loss: float, notch_images: int, shrink_factor: float = 0.75, multiple: int = 8
    ) -> None:
        super().__init__(multiple)
        if max_quality_loss < 0 or notch_images < 1 or not 0 < shrink_factor < 1:
            raise ValueError(
                f"max_quality_loss {max_quality_loss} must be 0 or more, notch_images {notch_images} 1 or more, "
                f"shrink_factor {shrink_factor} between 0 and 1"
            )
        self.max_quality_loss, self.notch_images, self.shrink_factor = max_quality_loss, notch_images, shrink_factor

    def choose(
        self,
        scales: dict[str, Tensor],
        groups: dict[str, ChannelGroup],
        latency_ms: Callable[[Kept], float],  # noqa: ARG002
        macs: Callable[[Kept], int],
    ) -> Kept:
        """Choose the next notch's units; all of them if the network cannot shrink any more."""
        steps = thresholds(scales)
        allowed = self.shrink_factor * macs(self.above(scales, groups, 0.0))
        too_wide, narrow_enough = 0, len(steps) - 1
        if macs(self.above(scales, groups, steps[narrow_enough])) > allowed:
            return self.above(scales, groups, 0.0)
        while narrow_enough - too_wide > 1:
            middle = (too_wide + narrow_enough) // 2
            if macs(self.above(scales, groups, steps[middle])) <= allowed:
                narrow_enough = middle
            else:
                too_wide = middle
        return self.above(scales, groups, steps[narrow_enough])
