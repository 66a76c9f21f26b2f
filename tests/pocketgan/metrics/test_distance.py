import math

import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from pocketgan.metrics import frechet_distance, kernel_distance


def random_features(count, size, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    return torch.randn(count, size, generator=generator) @ mixing + shift


def frechet_distance_by_sqrtm(features_a, features_b):
    a, b = features_a.double(), features_b.double()
    covariance_a, covariance_b = a.T.cov().numpy(), b.T.cov().numpy()
    mean_distance = (a.mean(0) - b.mean(0)).square().sum().item()
    cross = sqrtm(covariance_a @ covariance_b).real
    return mean_distance + (covariance_a + covariance_b - 2 * cross).trace()


def test_frechet_distance_by_hand():
    # one feature: means 1 and 4, deviations sqrt(2) and 3 sqrt(2), so (4 - 1)^2 + (3 sqrt(2) - sqrt(2))^2
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [7.0]])
    assert frechet_distance(a, b).item() == pytest.approx(9 + 8)


@pytest.mark.parametrize(("count_a", "count_b"), [(200, 200), (64, 300)])
def test_frechet_distance_equals_scipy(count_a, count_b):
    a, b = random_features(count_a, 12, seed=0), random_features(count_b, 12, seed=1, shift=0.5)
    distance = frechet_distance(a, b)
    assert distance.dtype == torch.float64
    assert distance.item() == pytest.approx(frechet_distance_by_sqrtm(a, b), rel=1e-5)
    assert frechet_distance(b, a).item() == pytest.approx(distance.item(), rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    # padding with features that are all zero changes nothing but N < D
    a, b = random_features(20, 6, seed=0), random_features(15, 6, seed=1)
    padded = [torch.nn.functional.pad(features, (0, 30)) for features in (a, b)]
    assert frechet_distance(*padded).item() == pytest.approx(frechet_distance(a, b).item(), rel=1e-9)


def test_equal_sets_have_no_frechet_distance():
    features = random_features(50, 8, seed=0)
    assert frechet_distance(features, features.flip(0)).item() == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features).item() >= 0


def test_kernel_distance_by_hand():
    # one feature, k(x, y) = (x y + 1)^3; within {0, 1}: 1; within {1, 2}: 27; across: (1 + 1 + 8 + 27) / 4
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(a, b).item() == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kernel_distance_equals_the_double_loop():
    a, b = random_features(5, 3, seed=0).double(), random_features(7, 3, seed=1).double()

    def kernel(x, y):
        return (sum(x * y).item() / 3 + 1) ** 3

    within_a = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (5 * 4)
    within_b = sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (7 * 6)
    across = sum(kernel(x, y) for x in a for y in b) / (5 * 7)
    assert kernel_distance(a, b).item() == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)


def test_kernel_distance_equals_torchmetrics_for_equal_counts():
    a, b = random_features(40, 6, seed=0).double(), random_features(40, 6, seed=1).double()
    assert kernel_distance(a, b).item() == pytest.approx(poly_mmd(a, b).item(), rel=1e-9)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_refusals(distance):
    features = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="at least 2 images"):
        distance(features, features[:1])
    with pytest.raises(ValueError, match="at least 2 images"):
        distance(features[0], features)
    with pytest.raises(ValueError, match="3 and 2 features per image"):
        distance(features, features[:, :2])


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_a_diverged_network_gives_nan(distance):
    features = random_features(4, 3, seed=0)
    diverged = features.clone()
    diverged[0, 0] = torch.nan
    assert math.isnan(distance(features, diverged).item())
