"""The slot for networks whose features a distance between image sets is computed on."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A frozen network that turns images into features.

    Attributes:
        frechet_name: Metric name of the Fréchet distance on these features, for example ``fd_lite0``. Only real
            Inception weights may call it ``fid``.
        kernel_name: Metric name of the kernel distance on these features, for example ``kid_lite0``. Its interval is
            reported under this name with ``_low`` and ``_high``.
        feature_size: D, the number of features per image.
    """

    frechet_name: str
    kernel_name: str
    feature_size: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: (B, 3, H, W) in [-1, 1], any H and W.

        Returns:
            (B, D) float32.
        """
