"""Edits that show nothing."""

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from pocketgan.gates.gate import PairGate, Scores

_DARK, _BRIGHT = 8, 247  # of 255
_REC_601 = (0.299, 0.587, 0.114)


class ExposureGate(PairGate):
    """Refuses black, white and flat edits.

    What is not a number at all never reaches a gate: ``PairSynthesis`` stores it black and marks it.

    Args:
        largest_dark_share: Of pixels darker than 8 levels of 255.
        largest_bright_share: Of pixels brighter than 247 levels; a line drawing on white has many.
        least_spread_levels: Standard deviation of the red, green or blue, whichever is greatest.
    """

    score_names = ("exposure_dark_share", "exposure_bright_share", "exposure_spread_levels")

    def __init__(
        self, largest_dark_share: float = 0.95, largest_bright_share: float = 0.98, least_spread_levels: float = 6.0
    ) -> None:
        super().__init__()
        self.largest_dark_share, self.largest_bright_share = largest_dark_share, largest_bright_share
        self.least_spread_levels = least_spread_levels

    @override
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        levels = edit.detach().cpu().double().add(1).mul(127.5)
        brightness = (levels * levels.new_tensor(_REC_601)[:, None, None]).sum(0)
        return {
            "exposure_dark_share": float((brightness < _DARK).double().mean()),
            "exposure_bright_share": float((brightness > _BRIGHT).double().mean()),
            "exposure_spread_levels": float(levels.flatten(1).std(1, correction=0).max()),
        }

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        spread = scores["exposure_spread_levels"]
        return min(
            self.largest_dark_share - scores["exposure_dark_share"],
            self.largest_bright_share - scores["exposure_bright_share"],
            (spread - self.least_spread_levels) / max(spread, self.least_spread_levels, 1e-9),
        )

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        dark, bright = scores["exposure_dark_share"], scores["exposure_bright_share"]
        spread = scores["exposure_spread_levels"]
        if dark > self.largest_dark_share:
            return f"black: {dark:.0%} of it, at most {self.largest_dark_share:.0%}"
        if bright > self.largest_bright_share:
            return f"white: {bright:.0%} of it, at most {self.largest_bright_share:.0%}"
        if spread < self.least_spread_levels:
            return f"flat: a spread of {spread:.1f} levels, least {self.least_spread_levels:g}"
        return None
