"""Features of images, gathered over ranks, and the distances that are computed on them."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pocketgan.metrics.distance import frechet_distance, kernel_distance, kernel_distance_interval
from pocketgan.metrics.feature_extractor import FeatureExtractor


class GatheredFeatures(Metric):
    """Features of all images of all ranks, each with a number, such as its concept's.

    Args:
        feature_size: D.
    """

    full_state_update = False
    features: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.add_state("numbers", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, numbers: Tensor) -> None:
        """Take in (B, D) features and B numbers."""
        self.features.append(features.float())
        self.numbers.append(numbers)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return (N, D) features and N numbers of all ranks."""
        return dim_zero_cat(self.features), dim_zero_cat(self.numbers)

    def gathered(self) -> tuple[Tensor, Tensor]:
        """``compute`` on the CPU, also where a rank has no images; call it on every rank."""
        # an empty batch, so that such a rank has something of the right shape to gather
        empty = torch.empty(0, self.feature_size, device=self.device)
        self.update(empty, torch.empty(0, dtype=torch.long, device=self.device))
        # float64 is not to be had on every accelerator, and an SVD is no slower on the CPU
        features, numbers = self.compute()
        # torchmetrics makes a scalar of what has one element
        return features.cpu().reshape(-1, self.feature_size), numbers.cpu().reshape(-1)


def set_distances(
    extractor: FeatureExtractor, pairs: list[tuple[Tensor, Tensor]], kernel_images: int | None = None
) -> dict[str, Tensor]:
    """Fréchet and kernel distance between sets of features, as means over pairs of sets.

    Args:
        extractor: Whose names they bear.
        pairs: Features (N, D) and (M, D) each.
        kernel_images: Images of each set, evenly taken, that the kernel distance looks at, since it compares each with
            each; all if None.

    Returns:
        Under the extractor's names the Fréchet and the kernel distance; under the latter's with ``_low`` and ``_high``
        the bounds of its 95 % bootstrap interval. The distances are left out where a set has fewer than 2 images, the
        bounds below 3.
    """
    fewest = min((min(len(one), len(other)) for one, other in pairs), default=0)
    values: dict[str, Tensor] = {}
    if fewest >= 2:
        values[extractor.frechet_name] = torch.stack([frechet_distance(*pair) for pair in pairs]).mean()
        pairs = [(_some(one, kernel_images), _some(other, kernel_images)) for one, other in pairs]
        values[extractor.kernel_name] = torch.stack([kernel_distance(*pair) for pair in pairs]).mean()
    if fewest >= 3:
        lows, highs = zip(*(kernel_distance_interval(*pair) for pair in pairs), strict=True)
        values[f"{extractor.kernel_name}_low"] = torch.stack(lows).mean()
        values[f"{extractor.kernel_name}_high"] = torch.stack(highs).mean()
    return values


def _some(features: Tensor, count: int | None) -> Tensor:
    if count is None or len(features) <= count:
        return features
    return features[torch.arange(count) * len(features) // count]
