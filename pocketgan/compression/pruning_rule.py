"""The slot for rules that say how far a network is pruned."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pocketgan.compression.channel_graph import ChannelGroup, Kept


class PruningRule(ABC):
    """Chooses the channels that stay.

    Args:
        multiple: Kept widths are multiples of this many channels, which the device's kernels like; int8 kernels want 8.
            A group of fewer channels stays whole.

    Raises:
        ValueError: ``multiple`` is below 1.
    """

    def __init__(self, multiple: int = 8) -> None:
        if multiple < 1:
            raise ValueError(f"multiple is {multiple}; a layer keeps at least 1 channel, 8 suits most kernels")
        self.multiple = multiple

    def __repr__(self) -> str:
        """The rule as it would be written down; arguments stand in attributes of their names."""
        arguments = inspect.signature(type(self)).parameters
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in arguments)})"

    @abstractmethod
    def choose(
        self,
        scales: dict[str, Tensor],
        groups: dict[str, ChannelGroup],
        latency_ms: Callable[[Kept], float],
        macs: Callable[[Kept], int],
    ) -> Kept:
        """Choose units.

        Args:
            scales: Effective scale (U,) of each unit by group.
            groups: By name.
            latency_ms: Measures the network that these units would make on the device.
            macs: Counts its multiply-accumulate operations.

        Returns:
            Units that stay, ascending, of every group.

        Raises:
            ValueError: No choice fulfils the rule.
        """

    def check(self, groups: dict[str, ChannelGroup], latency_ms: Callable[[Kept], float]) -> None:  # noqa: B027
        """Refuse what no training could fulfil, before any; arguments as for ``choose``.

        Raises:
            ValueError: Not even the narrowest network that is allowed fulfils the rule.
        """

    def whole(self, groups: dict[str, ChannelGroup]) -> Kept:
        """All units of each group."""
        return {name: list(range(group.units)) for name, group in groups.items()}

    def narrowest(self, groups: dict[str, ChannelGroup]) -> Kept:
        """As few units of each group as the rule may leave."""
        return {name: self.strongest(torch.ones(group.units), group, 1) for name, group in groups.items()}

    def strongest(self, scale: Tensor, group: ChannelGroup, units: float) -> list[int]:
        """So many units of largest scale, and as many more as make every layer's width a whole multiple."""
        step = math.lcm(*(self.multiple // math.gcd(self.multiple, channels) for channels in group.unit_channels))
        wanted = max(math.ceil(units / step - 1e-9), 1) * step
        return sorted(torch.topk(scale, min(wanted, group.units)).indices.tolist())

    def above(self, scales: dict[str, Tensor], groups: dict[str, ChannelGroup], threshold: float) -> Kept:
        """The units of at least ``threshold`` times the largest scale of their own group."""
        kept = {}
        for name, scale in scales.items():
            kept[name] = self.strongest(scale, groups[name], float((scale >= threshold * scale.max()).sum()))
        return kept


def thresholds(scales: dict[str, Tensor]) -> list[float]:
    """Every threshold at which ``PruningRule.above`` can change, ascending; 0 keeps all, 1 the strongest units.

    Raises:
        ValueError: A scale is not finite.
    """
    for name, scale in scales.items():
        if not scale.isfinite().all():
            raise ValueError(f"the effective scales of layer {name} are not finite; the training has diverged")
    shares = torch.cat([scale / scale.max() for scale in scales.values()])
    return [0.0, *torch.unique(shares).tolist()]
