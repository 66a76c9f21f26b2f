"""As wide as the device's milliseconds allow."""

import warnings
from collections.abc import Callable

from torch import Tensor

from pocketgan.compression.channel_graph import ChannelGroup, Kept
from pocketgan.compression.pruning_rule import PruningRule, thresholds


class LatencyBudget(PruningRule):
    """The smallest threshold on effective scales whose network meets a latency, found by bisection.

    A unit goes if its scale is below the threshold times the largest of its layer, so that no layer dies. Every
    candidate is built, exported and timed: operations do not tell milliseconds. The chosen one is timed once more, and
    gives way to the next narrower one if it does not meet the budget twice; the narrowest of all is taken as it is.

    Args:
        budget_ms: Largest median latency in milliseconds; 33 is 30 frames a second.
        multiple: Kept widths are multiples of this many channels.

    Attributes:
        measured: (threshold, median milliseconds) of each candidate that was timed, in that order.

    Raises:
        ValueError: The budget is not above 0.
    """

    def __init__(self, budget_ms: float, multiple: int = 8) -> None:
        super().__init__(multiple)
        if not budget_ms > 0:
            raise ValueError(f"budget_ms is {budget_ms}; give milliseconds above 0")
        self.budget_ms = budget_ms
        self.measured: list[tuple[float, float]] = []

    def check(self, groups: dict[str, ChannelGroup], latency_ms: Callable[[Kept], float]) -> None:
        """Time the narrowest network and the whole one; see ``PruningRule.check``."""
        whole_ms = latency_ms(self.whole(groups))
        self._refuse_above_budget(latency_ms(self.narrowest(groups)), f", the whole one {whole_ms:.2f} ms")
        if whole_ms <= self.budget_ms:
            warnings.warn(
                f"the network takes {whole_ms:.2f} ms as it is, within the budget of {self.budget_ms:g} ms: it will "
                "stay whole unless that changes; give a smaller budget_ms, or the target.size and threads of use",
                stacklevel=2,
            )

    def _refuse_above_budget(self, least_ms: float, beside: str = "") -> None:
        if least_ms > self.budget_ms:
            raise ValueError(
                f"the narrowest network that is allowed takes {least_ms:.2f} ms{beside}; the budget is "
                f"{self.budget_ms:g} ms. Leave the machine alone while it is timed, or give a larger budget_ms, a "
                f"smaller multiple than {self.multiple}, or a smaller target.size"
            )

    def choose(
        self,
        scales: dict[str, Tensor],
        groups: dict[str, ChannelGroup],
        latency_ms: Callable[[Kept], float],
        macs: Callable[[Kept], int],  # noqa: ARG002
    ) -> Kept:
        """Choose units; see ``PruningRule.choose``.

        Raises:
            ValueError: Even the narrowest network is slower than the budget, or a scale is not finite.
        """
        steps = thresholds(scales)
        known: dict[tuple[int, ...], float] = {}

        def fits(place: int) -> bool:
            kept = self.above(scales, groups, steps[place])
            widths = _widths(kept)  # milliseconds do not depend on which units
            if widths not in known:
                known[widths] = latency_ms(kept)
                self.measured.append((steps[place], known[widths]))
            return known[widths] <= self.budget_ms

        too_slow, fast_enough = -1, len(steps) - 1
        if not fits(fast_enough):
            self._refuse_above_budget(self.measured[-1][1])
        while fast_enough - too_slow > 1:
            middle = (too_slow + fast_enough) // 2
            if fits(middle):
                fast_enough = middle
            else:
                too_slow = middle
        # the clock is noisy where it is nearest to the budget: what is chosen has met it twice
        kept = self.above(scales, groups, steps[fast_enough])
        while latency_ms(kept) > self.budget_ms:
            timed = _widths(kept)
            narrower = (self.above(scales, groups, step) for step in steps[fast_enough:])
            kept = next((each for each in narrower if sum(_widths(each)) < sum(timed)), kept)
            if _widths(kept) == timed:  # the narrowest, which has met it once
                break
        return kept


def _widths(kept: Kept) -> tuple[int, ...]:
    return tuple(len(units) for units in kept.values())
