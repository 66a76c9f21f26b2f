"""Distances between two sets of image features."""

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    r"""Fréchet distance between the Gaussians fitted to two sets of features.

    .. math:: |m_a - m_b|^2 + \mathrm{tr}(S_a) + \mathrm{tr}(S_b) - 2\,\mathrm{tr}((S_a S_b)^{1/2})

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500, equation 6.

    Deviation from the usual code: no matrix square root. With :math:`S = A^T A`, where A is the centred
    features over :math:`\sqrt{N-1}`, the eigenvalues of :math:`S_a S_b` are the squared singular values of
    :math:`A_a A_b^T`, so that the last trace is the sum of these (the nuclear norm). That is exact, needs no
    regularisation where N < D, and costs an SVD of size min(N, D) instead of a ``sqrtm`` of size D.

    Biased upwards at small N: compare only values of equal N and print N; below 2,000 images prefer
    :func:`kernel_distance`.

    Args:
        features_a: (N, D), one row per image.
        features_b: (M, D).

    Returns:
        Scalar, float64, at least 0; NaN where a feature is not finite.

    Raises:
        ValueError: If a set has fewer than two images, or the sets' D differ.
    """
    features_a, features_b = _checked(features_a, features_b)
    if not (features_a.isfinite().all() and features_b.isfinite().all()):
        # a diverged network gives such features; the SVD would end its run with an error about convergence
        return features_a.new_tensor(torch.nan)
    mean_distance = (features_a.mean(0) - features_b.mean(0)).square().sum()
    root_a, root_b = _covariance_root(features_a), _covariance_root(features_b)
    traces = root_a.square().sum() + root_b.square().sum()
    cross_trace = torch.linalg.svdvals(root_a @ root_b.T).sum()
    # equal sets give a difference of rounding errors, which may be negative
    return (mean_distance + traces - 2 * cross_trace).clamp(min=0)


def kernel_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    r"""Kernel distance: the unbiased squared maximum mean discrepancy of two sets of features.

    The kernel is :math:`k(x, y) = (x^T y / D + 1)^3` of Bińkowski et al. 2018, "Demystifying MMD GANs",
    arXiv:1801.01401, section 4; the estimator is Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6:
    the mean of k over the pairs within each set, no image paired with itself, minus twice its mean across
    the sets.

    Deviation: over all images at once, not as the mean over random subsets, so that it has no random part.
    ``torchmetrics.image.kid.poly_mmd`` is the same value for N = M only.

    Args:
        features_a: (N, D), one row per image.
        features_b: (M, D).

    Returns:
        Scalar, float64, of either sign. It is unbiased for independent sets. Edits of the same photos by two
        models are not: a model as good as the teacher comes out below 0, by an amount that falls as 1 / N.

    Raises:
        ValueError: If a set has fewer than two images, or the sets' D differ.
    """
    features_a, features_b = _checked(features_a, features_b)
    across = _cubic_kernel(features_a, features_b).mean()
    return _mean_within(features_a) + _mean_within(features_b) - 2 * across


def _checked(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    for features in (features_a, features_b):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"features of shape {tuple(features.shape)} give no distance; "
                "give (N, D) with the features of at least 2 images"
            )
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"the sets have {features_a.shape[1]} and {features_b.shape[1]} features per image; "
            "compute both with the same feature extractor"
        )
    return features_a.double(), features_b.double()


def _covariance_root(features: Tensor) -> Tensor:
    """A of shape (min(N, D), D) with A^T A the covariance of (N, D) features."""
    count, feature_size = features.shape
    root = (features - features.mean(0)) / (count - 1) ** 0.5
    # R^T R = (QR)^T QR, so R serves as well and the SVD's cost is bounded by D
    return torch.linalg.qr(root, mode="r").R if count > feature_size else root


def _cubic_kernel(features_a: Tensor, features_b: Tensor) -> Tensor:
    return (features_a @ features_b.T / features_a.shape[1] + 1) ** 3


def _mean_within(features: Tensor) -> Tensor:
    kernel = _cubic_kernel(features, features)
    count = len(features)
    return (kernel.sum() - kernel.trace()) / (count * (count - 1))
