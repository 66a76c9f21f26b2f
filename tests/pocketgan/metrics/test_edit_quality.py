import errno
import math
import warnings

import pytest
import torch
from quality_ranks import TinyFeatures, evaluate_on_rank, make_edits, make_quality
from torch import multiprocessing, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from pocketgan.metrics import (
    EditQuality,
    InceptionFeatures,
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    reference_features,
)

ALEXNET_FILE_NAME = "alexnet-owt-7be5be79.pth"


@pytest.fixture
def tiny_features():
    return TinyFeatures()


@pytest.fixture
def alexnet_file(checkpoints):
    """AlexNet's weights by random, the classifier (95 % of the file) as views of a single number."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in alexnet().state_dict().items()}
    torch.manual_seed(0)
    weights = {
        name: 0.05 * torch.randn(shape) if name.startswith("features") else torch.zeros(()).expand(shape)
        for name, shape in shapes.items()
    }
    torch.save(weights, checkpoints / ALEXNET_FILE_NAME)
    return checkpoints / ALEXNET_FILE_NAME


def test_paired_values_by_hand():
    quality = EditQuality(lpips=False)
    edit = torch.zeros(2, 3, 16, 16)
    fake = torch.stack([torch.full((3, 16, 16), 0.5), torch.full((3, 16, 16), -0.1)])
    quality.update(fake, edit, ["night", "night"])
    values = quality.compute()
    assert set(values) == {"measured_images", "reconstruction", "psnr", "ssim"}
    assert values["measured_images"].item() == 2
    assert values["reconstruction"].item() == pytest.approx(0.3)
    # 10 log10(range^2 / mean squared error) = 10 log10(4 / 0.13)
    assert values["psnr"].item() == pytest.approx(10 * math.log10(4 / 0.13), rel=1e-5)
    # flat pictures leave SSIM's luminance term, (2 a b + c) / (a^2 + b^2 + c) with c = 0.01^2, on [0, 1]
    luminance = [(2 * a * 0.5 + 1e-4) / (a**2 + 0.25 + 1e-4) for a in (0.75, 0.45)]
    # in float32 a flat picture keeps a variance of 1e-7, which the contrast term sees
    assert values["ssim"].item() == pytest.approx(sum(luminance) / 2, rel=1e-3)


def test_perfect_edits():
    _, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    quality.update(edits, edits, concepts)
    values = quality.compute()
    assert values["reconstruction"].item() == 0
    assert values["psnr"].item() > 100
    assert values["ssim"].item() == pytest.approx(1)
    assert values["fd_tiny"].item() == pytest.approx(0, abs=1e-6)
    assert values["images_per_concept"].item() == 4


def test_distances_are_the_mean_over_concepts():
    fakes, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    for part in (slice(0, 3), slice(3, 8)):
        quality.update(fakes[part], edits[part], concepts[part])
    values = quality.compute()
    features, references = TinyFeatures()(fakes), TinyFeatures()(edits)
    for name, distance in (
        ("fd_tiny", frechet_distance),
        ("kid_tiny", kernel_distance),
        ("kid_tiny_low", lambda a, b: kernel_distance_interval(a, b)[0]),
        ("kid_tiny_high", lambda a, b: kernel_distance_interval(a, b)[1]),
    ):
        expected = sum(distance(features[first::2], references[first::2]).item() for first in (0, 1)) / 2
        assert values[name].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in values.values())
    assert values["kid_tiny_low"] < values["kid_tiny_high"]


def test_images_are_clamped_as_a_file_would():
    quality = EditQuality(lpips=False)
    quality.update(torch.full((1, 3, 16, 16), 1.5), torch.ones(1, 3, 16, 16), ["night"])
    assert quality.compute()["reconstruction"].item() == 0


def test_autocast_changes_nothing():
    fakes, edits, concepts = make_edits()
    plain, mixed = make_quality(edits, concepts), make_quality(edits, concepts)
    plain.update(fakes, edits, concepts)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.update(fakes, edits, concepts)
    assert plain.compute() == mixed.compute()
    assert plain.compute()["ssim"].item() == pytest.approx(
        structural_similarity_index_measure((fakes + 1) / 2, (edits + 1) / 2, data_range=1.0).item(), rel=1e-5
    )


def test_a_diverged_generator_shows_as_nan():
    _, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    quality.update(edits * torch.nan, edits, concepts)
    values = quality.compute()
    assert {name for name, value in values.items() if not math.isnan(value)} == {
        "measured_images",
        "images_per_concept",
    }
    assert {"fd_tiny", "kid_tiny", "kid_tiny_low", "kid_tiny_high"} < set(values)


def test_reset_keeps_the_reference():
    fakes, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    quality.update(fakes * 0, edits, concepts)
    quality.compute()
    quality.reset()
    quality.update(fakes, edits, concepts)
    fresh = make_quality(edits, concepts)
    fresh.update(fakes, edits, concepts)
    assert quality.compute() == fresh.compute()
    assert quality.concepts == ["night", "watercolour"]


def test_too_few_images_leave_the_distances_out_with_one_warning():
    fakes, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    quality.update(fakes[:3], edits[:3], concepts[:3])
    with pytest.warns(UserWarning, match="fd_tiny and kid_tiny are left out: concept night has 1 images"):
        values = quality.compute()
    assert set(values) == {"measured_images", "reconstruction", "psnr", "ssim", "images_per_concept"}
    assert values["measured_images"].item() == 3
    assert values["images_per_concept"].item() == 1
    quality.reset()
    quality.update(fakes[:1], edits[:1], concepts[:1])
    assert quality.compute()["images_per_concept"].item() == 0  # a second warning would be an error here


def test_two_images_give_distances_without_an_interval():
    fakes, edits, concepts = make_edits()
    quality = make_quality(edits, concepts)
    quality.update(fakes[:4], edits[:4], concepts[:4])
    values = quality.compute()
    assert values["images_per_concept"].item() == 2
    assert math.isfinite(values["kid_tiny"])
    assert not {"kid_tiny_low", "kid_tiny_high"} & set(values)


def test_refusals(tiny_features):
    fakes, edits, concepts = make_edits()
    with pytest.raises(ValueError, match="7 concepts"):
        EditQuality(lpips=False).update(fakes, edits, concepts[:7])
    with pytest.raises(ValueError, match=r"\(8, 3, 32, 16\)"):
        EditQuality(lpips=False).update(fakes, edits[..., :16], concepts)
    with pytest.raises(RuntimeError, match="call set_reference first"):
        EditQuality(tiny_features, lpips=False).update(fakes, edits, concepts)
    with pytest.raises(ValueError, match=r"\['day'\] are not in the reference.*night"):
        make_quality(edits, concepts).update(fakes, edits, [*concepts[:7], "day"])
    with pytest.raises(ValueError, match="needs a feature extractor"):
        EditQuality(lpips=False).set_reference({"night": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"\(2, 5\), those of TinyFeatures are \(N, 4\)"):
        EditQuality(tiny_features, lpips=False).set_reference({"night": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="no concept"):
        EditQuality(tiny_features, lpips=False).set_reference({})


def test_nothing_enters_the_checkpoint(alexnet_file, inception_file):
    fakes, edits, concepts = make_edits()
    parent = nn.Module()
    parent.generator = nn.Linear(2, 2)
    parent.quality = EditQuality(InceptionFeatures(), lpips=True)
    parent.quality.set_reference(reference_features(InceptionFeatures(), [(edits, concepts)], cache=None))
    parent.train()
    parent.quality.update(fakes, edits, concepts)
    assert set(parent.state_dict()) == {"generator.weight", "generator.bias"}
    parent.load_state_dict(parent.state_dict(), strict=True)
    assert "fid" in parent.quality.compute()
    assert not any(parameter.requires_grad for parameter in parent.quality.parameters())


def test_lpips_follows_its_weights(checkpoints):
    assert EditQuality().lpips_network is None
    with pytest.raises(FileNotFoundError, match=rf"(?s){checkpoints}.*{ALEXNET_FILE_NAME}.*lpips: false"):
        EditQuality(lpips=True)


def test_lpips_is_torchmetrics_value(alexnet_file):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    fakes, edits, concepts = make_edits()
    quality = EditQuality()
    for part in (slice(0, 7), slice(7, 8)):
        quality.update(fakes[part], edits[part], concepts[part])
    expected = learned_perceptual_image_patch_similarity(fakes, edits, net_type="alex")
    assert expected > 0
    assert quality.compute()["lpips"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert EditQuality(lpips=False).lpips_network is None


@pytest.mark.extended
def test_two_processes_give_the_values_of_one(tmp_path):
    multiprocessing.spawn(evaluate_on_rank, (str(tmp_path), [slice(0, 3), slice(3, 8)]), nprocs=2)
    fakes, edits, concepts = make_edits()
    for results in (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)):
        for values, share in zip(results, (slice(0, 8), slice(0, 4)), strict=True):
            quality = make_quality(edits, concepts)
            quality.update(fakes[share], edits[share], concepts[share])
            torch.testing.assert_close(values, quality.compute(), rtol=1e-5, atol=1e-6)
            assert ("kid_tiny_low" in values) == (share == slice(0, 8))


def test_reference_is_grouped_by_concept(tiny_features):
    _, edits, concepts = make_edits()
    batches = [(edits[:3], concepts[:3]), (edits[3:], concepts[3:])]
    reference = reference_features(tiny_features, batches, cache=None)
    assert list(reference) == ["night", "watercolour"]
    torch.testing.assert_close(reference["watercolour"], tiny_features(edits)[0::2])
    with pytest.raises(ValueError, match="no edits"):
        reference_features(tiny_features, [], cache=None)


def test_reference_is_computed_once(tiny_features, tmp_path):
    _, edits, concepts = make_edits()
    cache = tmp_path / "cache" / "set-test-32-fd_tiny.safetensors"
    reference = reference_features(tiny_features, [(edits, concepts)], cache)

    def unused_batches():
        raise AssertionError("the cache was there")
        yield

    again = reference_features(tiny_features, unused_batches(), cache)
    assert list(again) == list(reference)
    assert all(again[concept].equal(reference[concept]) for concept in reference)
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]
    # another name, as another split has, is another cache
    other = reference_features(tiny_features, [(edits[:4], concepts[:4])], cache.with_stem("set-val-32-fd_tiny"))
    assert len(other["night"]) == 2


@pytest.mark.parametrize("content", [b"", b"half a file", "other extractor"])
def test_an_unusable_cache_is_computed_again(tiny_features, tmp_path, content):
    _, edits, concepts = make_edits()
    cache = tmp_path / "reference.safetensors"
    if content == "other extractor":
        wide = TinyFeatures()
        wide.forward = lambda images: torch.zeros(len(images), 9)
        reference_features(wide, [(edits, concepts)], cache)
    else:
        cache.write_bytes(content)
    with pytest.warns(UserWarning, match="is computed again"):
        reference = reference_features(tiny_features, [(edits, concepts)], cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = reference_features(tiny_features, [], cache)
    assert all(again[concept].equal(reference[concept]) for concept in reference)


def test_a_failed_write_leaves_nothing_behind(tiny_features, tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pocketgan.files.os.fsync", full_disk)
    _, edits, concepts = make_edits()
    with pytest.raises(OSError, match="the disk is full"):
        reference_features(tiny_features, [(edits, concepts)], tmp_path / "reference.safetensors")
    assert list(tmp_path.iterdir()) == []
