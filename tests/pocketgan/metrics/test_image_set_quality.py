"""Distances of image sets: by hand, whatever the order, at their limits."""

import pytest
import torch
from quality_ranks import TinyFeatures

from pocketgan.metrics import ImageSetQuality, frechet_distance, image_set_quality, kernel_distance


def pictures(count, seed):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def quality():
    found = ImageSetQuality(TinyFeatures())
    found.set_reference(TinyFeatures()(pictures(6, 0)))
    return found


def test_values_are_those_of_the_distances(quality):
    fake = pictures(9, 1) * 1.2  # what leaves [-1, 1] is clamped, as in a picture
    quality.update(fake[:5], torch.arange(5))
    quality.update(fake[5:], torch.arange(5, 9))
    found = quality.compute()
    features = TinyFeatures()(fake.clamp(-1, 1)), TinyFeatures()(pictures(6, 0))
    assert found["fd_tiny"] == pytest.approx(frechet_distance(*features).item(), rel=1e-5)
    assert found["kid_tiny"] == pytest.approx(kernel_distance(*features).item(), rel=1e-5)
    assert (found["generated_images"], found["real_images"]) == (9, 6)
    assert found["kid_tiny_low"] < found["kid_tiny_high"]
    quality.reset()
    quality.update(fake[:4], torch.arange(4))
    assert quality.compute()["generated_images"] == 4


def test_the_order_of_the_images_does_not_matter(quality, monkeypatch):
    monkeypatch.setattr(image_set_quality, "_KERNEL_IMAGES", 4)  # some of them, and always the same
    fake, numbers, results = pictures(9, 1), torch.arange(9), []
    for order in (numbers, numbers.flip(0)):
        quality.reset()
        quality.update(fake[order], order)
        results.append({name: value.item() for name, value in quality.compute().items()})
    assert results[0] == pytest.approx(results[1])
    few = [TinyFeatures()(fake)[[0, 2, 4, 6]], TinyFeatures()(pictures(6, 0))[[0, 1, 3, 4]]]
    assert results[0]["kid_tiny"] == pytest.approx(kernel_distance(*few).item(), rel=1e-5)


def test_too_few_images_leave_the_distances_out(quality):
    quality.update(pictures(1, 1), torch.arange(1))
    with pytest.warns(UserWarning, match="fd_tiny and kid_tiny are left out: there are 1 generated and 6 real"):
        assert set(quality.compute()) == {"generated_images", "real_images"}


def test_without_features_nothing_is_measured():
    quality = ImageSetQuality()
    quality.update(pictures(2, 0), torch.arange(2))
    assert quality.compute() == {}


def test_refusals():
    with pytest.raises(ValueError, match="a reference needs a feature extractor"):
        ImageSetQuality().set_reference(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"the features are \(2, 5\), those of TinyFeatures are \(N, 4\)"):
        ImageSetQuality(TinyFeatures()).set_reference(torch.zeros(2, 5))
    with pytest.raises(RuntimeError, match="has no reference"):
        ImageSetQuality(TinyFeatures()).update(pictures(2, 0), torch.arange(2))
