"""How close a set of generated images is to a set of real ones."""

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from pocketgan.metrics.feature_extractor import FeatureExtractor
from pocketgan.metrics.frozen_module import FrozenModule
from pocketgan.metrics.gathered_features import GatheredFeatures, set_distances

_KERNEL_IMAGES = 5_000  # 200 MB for each table of pairs


class ImageSetQuality(FrozenModule):
    """Distances between generated and real images, for GANs that edit nothing.

    In a distributed run every rank updates with its own images, and ``compute`` is called on every rank: it
    synchronises, and returns the same values everywhere.

    The kernel distance, which compares each image with each, looks at no more than 5,000 of each set; the Fréchet
    distance at all.

    Args:
        feature_extractor: Network for the distances, which bear its two names. None: nothing is measured.
    """

    def __init__(self, feature_extractor: FeatureExtractor | None = None) -> None:
        super().__init__()
        self.feature_extractor = feature_extractor
        self.generated = GatheredFeatures(feature_extractor.feature_size if feature_extractor else 0)
        self.reference: Tensor | None = None
        self._has_warned = False
        self.eval()

    def set_reference(self, features: Tensor) -> None:
        """Set what the distances are measured from; images seen so far are forgotten.

        Args:
            features: (N, D) of real images.

        Raises:
            ValueError: There is no feature extractor, or D is not its.
        """
        if self.feature_extractor is None:
            raise ValueError("a reference needs a feature extractor: give ImageSetQuality a `feature_extractor`")
        if features.ndim != 2 or features.shape[1] != self.feature_extractor.feature_size:
            raise ValueError(
                f"the features are {tuple(features.shape)}, those of {type(self.feature_extractor).__name__} are "
                f"(N, {self.feature_extractor.feature_size}); compute them with the latter"
            )
        self.reference = features.cpu()
        self.reset()

    @torch.no_grad()
    def update(self, fake: Tensor, numbers: Tensor) -> None:
        """Take in generated images.

        Args:
            fake: (B, 3, H, W), clamped to [-1, 1], as writing a picture does.
            numbers: (B,), no two images of all ranks alike: the result does not depend on who made which.

        Raises:
            RuntimeError: There is no reference.
        """
        if self.feature_extractor is None:
            return
        if self.reference is None:
            raise RuntimeError("ImageSetQuality has no reference for its distances; call set_reference first")
        with torch.autocast(fake.device.type, enabled=False):
            self.generated.update(self.feature_extractor(fake.float().clamp(-1, 1)), numbers)

    def compute(self) -> dict[str, Tensor]:
        """Compute the distances over all images of all ranks.

        Returns:
            Float32 scalars: ``generated_images`` and ``real_images``, the N of both sets; under the extractor's names
            the Fréchet and the kernel distance, and under the latter's with ``_low`` and ``_high`` its 95 % bootstrap
            interval. Distances are left out, with one warning, where a set has fewer than 2 images, the interval below
            3. Nothing without a feature extractor.
        """
        if self.feature_extractor is None or self.reference is None:
            return {}
        features, numbers = self.generated.gathered()
        generated = features[numbers.argsort()]
        values = {
            "generated_images": torch.tensor(len(generated)),
            "real_images": torch.tensor(len(self.reference)),
            **set_distances(self.feature_extractor, [(generated, self.reference)], _KERNEL_IMAGES),
        }
        if self.feature_extractor.frechet_name not in values and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{self.feature_extractor.frechet_name} and {self.feature_extractor.kernel_name} are left out: there "
                f"are {len(generated)} generated and {len(self.reference)} real images and a distance needs 2 of each"
            )
        device = self.generated.device
        return {name: value.to(device, torch.float32) for name, value in values.items()}

    def reset(self) -> None:
        """Forget the images seen so far; the reference stays."""
        self.generated.reset()
