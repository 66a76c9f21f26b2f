import math

import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from pocketgan.metrics import frechet_distance, kernel_distance, kernel_distance_interval


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


@pytest.mark.parametrize(("count_a", "count_b", "size"), [(200, 200, 12), (64, 300, 12), (600, 500, 96)])
def test_frechet_distance_equals_scipy(count_a, count_b, size):
    a, b = random_features(count_a, size, seed=0), random_features(count_b, size, seed=1, shift=0.5)
    distance = frechet_distance(a, b)
    assert distance.dtype == torch.float64
    assert distance.item() == pytest.approx(frechet_distance_by_sqrtm(a, b), rel=1e-5)
    assert frechet_distance(b, a).item() == pytest.approx(distance.item(), rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    # padding with features that are all zero changes nothing but N < D
    a, b = random_features(20, 6, seed=0), random_features(15, 6, seed=1)
    padded = [torch.nn.functional.pad(features, (0, 30)) for features in (a, b)]
    assert frechet_distance(*padded).item() == pytest.approx(frechet_distance(a, b).item(), rel=1e-9)


@pytest.mark.parametrize(("count_a", "count_b"), [(20, 20), (20, 30), (20, 300), (64, 65), (2, 2)])
def test_frechet_distance_equals_the_eigenvalues_at_any_count(count_a, count_b):
    # a square root of singular matrices is not to be had from scipy; their eigenvalues are
    a, b = random_features(count_a, 64, seed=0).double(), random_features(count_b, 64, seed=1, shift=0.5).double()
    expected = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b).item() == pytest.approx(expected.item(), rel=1e-5)


def test_frechet_distance_decomposes_the_smaller_side(monkeypatch):
    shapes = []
    svdvals = torch.linalg.svdvals

    def recorded(matrix):
        shapes.append(tuple(matrix.shape))
        return svdvals(matrix)

    monkeypatch.setattr("pocketgan.metrics.distance.torch.linalg.svdvals", recorded)
    frechet_distance(torch.rand(12, 2048), torch.rand(10, 2048))
    frechet_distance(torch.rand(300, 16), torch.rand(200, 16))
    assert shapes == [(12, 10), (16, 16)]


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


def interval_by_double_loop(a, b, resamples, level, seed):
    """The bootstrap with resamples written out as lists of images; the same draws as in the package."""
    a, b = (sorted((row.double() for row in features), key=lambda row: row.sum().item()) for features in (a, b))

    def kernel(x, y):
        return ((x @ y).item() / len(x) + 1) ** 3

    def mean_within(images, drawn):
        values = [kernel(images[i], images[j]) for i in drawn for j in drawn if i != j]
        return sum(values) / len(values)

    generator = torch.Generator().manual_seed(seed)
    draws_a = torch.randint(len(a), (resamples, len(a)), generator=generator).tolist()
    draws_b = torch.randint(len(b), (resamples, len(b)), generator=generator).tolist()
    distances = []
    for drawn_a, drawn_b in zip(draws_a, draws_b, strict=True):
        if len(set(drawn_a)) > 1 and len(set(drawn_b)) > 1:
            across = [kernel(a[i], b[j]) for i in drawn_a for j in drawn_b]
            within = mean_within(a, drawn_a) + mean_within(b, drawn_b)
            distances.append(within - 2 * sum(across) / len(across))
    distances = torch.tensor(distances, dtype=torch.float64)
    return distances.quantile((1 - level) / 2).item(), distances.quantile((1 + level) / 2).item()


@pytest.mark.parametrize(("count_a", "count_b"), [(7, 5), (3, 4)])
def test_kernel_interval_equals_the_double_loop(count_a, count_b):
    a, b = random_features(count_a, 3, seed=0), random_features(count_b, 3, seed=1, shift=0.5)
    low, high = kernel_distance_interval(a, b, resamples=60, level=0.8, seed=5)
    assert low.dtype == high.dtype == torch.float64
    expected = interval_by_double_loop(a, b, resamples=60, level=0.8, seed=5)
    assert (low.item(), high.item()) == pytest.approx(expected, rel=1e-9)


def test_kernel_interval_covers_the_distance():
    generator = torch.Generator().manual_seed(0)

    def samples(count):
        return torch.randn(count, 8, generator=generator), torch.randn(count, 8, generator=generator) + 0.5

    # unbiased, so that the mean over many sets is the distance of the distributions
    distance = torch.stack([kernel_distance(*samples(1000)) for _ in range(40)]).mean()
    covered = 0
    for seed in range(200):
        low, high = kernel_distance_interval(*samples(40), resamples=400, seed=seed)
        covered += bool(low <= distance <= high)
    assert 0.9 < covered / 200 < 0.99


def test_kernel_interval_is_centred_though_images_repeat():
    # copies of one image as pairs would raise every resample, far above the distance at this N
    a, b = random_features(12, 30, seed=0), random_features(12, 30, seed=1)
    low, high = kernel_distance_interval(a, b, resamples=2000, level=0.02)
    spread = torch.stack(kernel_distance_interval(a, b)).diff().item()
    assert (low + high).item() / 2 == pytest.approx(kernel_distance(a, b).item(), abs=0.1 * spread)


def test_kernel_interval_is_the_same_for_any_order_and_narrows_with_images():
    a, b = random_features(400, 6, seed=0), random_features(400, 6, seed=1)
    interval = kernel_distance_interval(a, b)
    shuffled = kernel_distance_interval(a[torch.randperm(400)], b.flip(0))
    torch.testing.assert_close(shuffled, interval, rtol=1e-9, atol=0)
    assert kernel_distance_interval(a, b, seed=1) != interval
    narrower = kernel_distance_interval(a, b, level=0.5)
    assert interval[0] < narrower[0] < kernel_distance(a, b) < narrower[1] < interval[1]
    few = kernel_distance_interval(a[:50], b[:50])
    assert few[1] - few[0] > 1.5 * (interval[1] - interval[0])


def test_two_images_give_no_kernel_interval():
    features = random_features(3, 4, seed=0)
    assert all(math.isnan(bound) for bound in kernel_distance_interval(features[:2], features))
    assert all(math.isnan(bound) for bound in kernel_distance_interval(features, features[:2]))
    assert all(math.isfinite(bound) for bound in kernel_distance_interval(features, features))


def test_kernel_interval_refusals():
    features = random_features(4, 3, seed=0)
    with pytest.raises(ValueError, match="0 resamples"):
        kernel_distance_interval(features, features, resamples=0)
    with pytest.raises(ValueError, match="level 95 is no share; give a number between 0 and 1"):
        kernel_distance_interval(features, features, level=95)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, kernel_distance_interval])
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_network_gives_no_kernel_interval(value):
    features = random_features(4, 3, seed=0)
    diverged = features.clone()
    diverged[0, 0] = value
    assert all(math.isnan(bound) for bound in kernel_distance_interval(features, diverged))
