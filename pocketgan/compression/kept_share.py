"""The same share of every layer."""

from collections.abc import Callable

from torch import Tensor

from pocketgan.compression.channel_graph import ChannelGroup, Kept
from pocketgan.compression.pruning_rule import PruningRule


class KeptShare(PruningRule):
    """Keeps the strongest channels of each layer, a share of its width: for comparisons at equal widths.

    Args:
        share: Of the channels, above 0 and at most 1.
        multiple: Kept widths are multiples of this many channels.

    Raises:
        ValueError: The share is out of range.
    """

    def __init__(self, share: float, multiple: int = 8) -> None:
        super().__init__(multiple)
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; give a share of the channels above 0 and at most 1")
        self.share = share

    def choose(
        self,
        scales: dict[str, Tensor],
        groups: dict[str, ChannelGroup],
        latency_ms: Callable[[Kept], float],  # noqa: ARG002
        macs: Callable[[Kept], int],  # noqa: ARG002
    ) -> Kept:
        """Choose units; see ``PruningRule.choose``."""
        return {
            name: self.strongest(scale, groups[name], self.share * groups[name].units) for name, scale in scales.items()
        }
