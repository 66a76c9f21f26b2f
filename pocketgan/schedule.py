"""Learning rates and averages over a run, counted in images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@dataclass(frozen=True)
class LinearDecay:
    """Full learning rate up to ``start_images``, then in a straight line to zero at ``end_images``, as in pix2pix.

    Args:
        start_images: Images seen when the decay begins.
        end_images: Images seen when the rate reaches zero; usually the image budget.

    Raises:
        ValueError: The decay ends before it starts.
    """

    start_images: int
    end_images: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_images < self.end_images:
            raise ValueError(f"decay from {self.start_images} to {self.end_images} images; the end must come later")

    def __call__(self, images: int) -> float:
        """The factor on the learning rate after so many images, 1 to 0."""
        remaining = (self.end_images - images) / (self.end_images - self.start_images)
        return min(max(remaining, 0.0), 1.0)


@dataclass(frozen=True)
class MovingAverage:
    """average ← d · average + (1 - d) · weight with d = 2^(-images of a step / half-life).

    Args:
        halflife_images: Images after which a weight counts half (EDM2's convention).
        rampup_ratio: The half-life is at most this share of the images seen (StyleGAN2-ADA's convention), so that the
            first weights are soon forgotten.

    Raises:
        ValueError: A number is not above 0.
    """

    halflife_images: float
    rampup_ratio: float

    def __post_init__(self) -> None:
        if self.halflife_images <= 0:
            raise ValueError(f"ema_halflife_images is {self.halflife_images}; it must be above 0")
        if self.rampup_ratio <= 0:
            raise ValueError(f"ema_rampup_ratio is {self.rampup_ratio}; it must be above 0, infinity for no ramp-up")

    def update(self, averages: list[Tensor], weights: list[Tensor], images: int, images_seen: int) -> None:
        """Move averages in place.

        Args:
            averages: One for each weight, without gradient.
            weights: After their step.
            images: Of that step.
            images_seen: With that step's.
        """
        halflife = min(self.halflife_images, self.rampup_ratio * images_seen)
        get_ema_multi_avg_fn(0.5 ** (images / halflife))(averages, weights, 0)

    @torch.no_grad()
    def update_networks(self, networks: Iterable[tuple[nn.Module, nn.Module]], images: int, images_seen: int) -> None:
        """Move averaged copies of networks in place.

        Parameters that do not train stay as they are; buffers, such as batch norm's statistics, are copied.

        Args:
            networks: Each with its averaged copy.
            images: Of the step that the networks have just made.
            images_seen: With that step's.
        """
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for network, averaged in networks:
            for parameter, average in zip(network.parameters(), averaged.parameters(), strict=True):
                if parameter.requires_grad:
                    averages.append(average)
                    weights.append(parameter)
            for buffer, copied in zip(network.buffers(), averaged.buffers(), strict=True):
                copied.copy_(buffer)
        self.update(averages, weights, images, images_seen)
