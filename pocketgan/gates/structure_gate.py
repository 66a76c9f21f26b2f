"""Edits that changed nothing, or kept nothing."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from typing_extensions import override

from pocketgan.gates.gate import PairGate, Scores, as_plane
from pocketgan.gates.registration import Plane, edge_agreement

_WINDOW_SIGMA_PX, _WINDOW_RADIUS_PX = 1.5, 5
_LUMINANCE_CONSTANT, _CONTRAST_CONSTANT = 0.01**2, 0.03**2


class StructureGate(PairGate):
    """Keeps what lies between the photo itself and a picture that has nothing of it.

    Args:
        largest_similarity: SSIM over the three colours (`similarity`) above which an edit counts as unchanged. An
            autoencoder's round trip alone is mostly below 0.98.
        least_agreement: Correlation of the edges (``registration.edge_agreement``) below which a picture counts as
            destroyed. Pictures that have nothing in common lie around 0, at most at 0.15.

    Raises:
        ValueError: A limit is outside what its score can be.
    """

    score_names = ("structure_similarity", "structure_agreement")

    def __init__(self, largest_similarity: float = 0.98, least_agreement: float = 0.18) -> None:
        super().__init__()
        if not -1 <= least_agreement < 1 or not 0 < largest_similarity <= 1:
            raise ValueError(
                f"least_agreement is {least_agreement}, it must be from -1 to below 1; largest_similarity is "
                f"{largest_similarity}, it must be above 0 and at most 1"
            )
        self.largest_similarity, self.least_agreement = largest_similarity, least_agreement

    @override
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        planes = as_plane(photo), as_plane(edit)
        return {"structure_similarity": similarity(*planes), "structure_agreement": edge_agreement(*planes)}

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        changed = self.largest_similarity - scores["structure_similarity"]
        agreement = scores["structure_agreement"] - self.least_agreement
        return min(changed / self.largest_similarity, agreement / (1 - self.least_agreement))

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        alike, agreement = scores["structure_similarity"], scores["structure_agreement"]
        if alike > self.largest_similarity:
            return f"unchanged: similarity {alike:.3f}, at most {self.largest_similarity:g}"
        if agreement < self.least_agreement:
            return f"destroyed: edges agree by {agreement:.2f}, least {self.least_agreement:g}"
        return None


def similarity(first: Plane, second: Plane) -> float:
    """SSIM (Wang et al., "Image quality assessment", 2004) over three colours: scikit-image's, with their settings.

    scikit-image is no dependency; torchmetrics' last digits depend on the threads, unless it is slowed to float64.

    Args:
        first: (3, H, W) in [0, 1], each side 11 px or more.
        second: Likewise.
    """

    def blurred(picture: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth = ndimage.gaussian_filter(picture, (0, *[_WINDOW_SIGMA_PX] * 2), radius=(0, *[_WINDOW_RADIUS_PX] * 2))
        inner = slice(_WINDOW_RADIUS_PX, -_WINDOW_RADIUS_PX)
        return smooth[:, inner, inner]

    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = blurred(a), blurred(b)
    variances = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _LUMINANCE_CONSTANT) / (mean_a**2 + mean_b**2 + _LUMINANCE_CONSTANT)
    structure = (2 * covariance + _CONTRAST_CONSTANT) / (variances + _CONTRAST_CONSTANT)
    return float((luminance * structure).mean())
