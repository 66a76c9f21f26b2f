"""Crops, their coordinates, the draw of sizes."""

import pytest
import torch

from pocketgan.patch_diffusion import PatchCrop, coordinates, with_coordinates


def test_coordinates_by_hand():
    grid = coordinates(2, 3)
    assert grid[0].tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert grid[1].tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_whole_pictures_get_the_whole_grid():
    pictures = torch.randn(2, 3, 8, 8)
    found = with_coordinates(pictures)
    assert torch.equal(found[:, :3], pictures)
    assert torch.equal(found[1, 3:], coordinates(8, 8))


@pytest.mark.parametrize("divisor", [1, 2, 4])
def test_a_crop_is_a_slice_with_the_slice_of_the_grid(divisor):
    """Absolute coordinates: they say where in the picture each crop was, and batches grow as crops shrink."""
    pictures = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    crop = PatchCrop({1: 1e-12, divisor: 1 - 1e-12} if divisor > 1 else {1: 1.0})
    crops, grids, places = crop(pictures, torch.Generator().manual_seed(1))
    side = 16 // divisor
    assert crops.shape == (5 * divisor, 3, side, side)
    assert grids.shape == (5 * divisor, 2, side, side)
    assert places.bincount().tolist() == [divisor] * 5
    corners = set()
    for one, grid, place in zip(crops, grids, places, strict=True):
        left, top = (int(value) for value in ((grid[:, 0, 0] + 1) / 2 * 15).round())
        box = (slice(top, top + side), slice(left, left + side))
        assert torch.equal(one, pictures[place][:, *box])
        assert torch.equal(grid, coordinates(16, 16)[:, *box])
        corners.add((top, left))
    assert len(corners) > 1 or divisor == 1


def test_sizes_come_in_their_shares():
    crop, generator, pictures = PatchCrop(), torch.Generator().manual_seed(0), torch.zeros(1, 1, 8, 8)
    sides = [crop(pictures, generator)[0].shape[-1] for _ in range(2000)]
    for side, share in ((8, 0.5), (4, 0.3), (2, 0.2)):
        assert sides.count(side) / 2000 == pytest.approx(share, abs=0.03)


def test_cost_of_a_step_as_in_the_paper():
    """0.7 of the whole pictures' pixels for 1.9 times the images."""
    crop = PatchCrop()
    pixels = sum(share * crop.batch_factors[d] / d**2 for d, share in crop.shares.items())
    images = sum(share * crop.batch_factors[d] for d, share in crop.shares.items())
    assert (round(pixels, 6), round(images, 6)) == (0.7, 1.9)


def test_refusals():
    with pytest.raises(ValueError, match="that add up to 1"):
        PatchCrop({1: 0.5, 2: 0.3})
    with pytest.raises(ValueError, match=r"whole pictures \(1\) must be among them"):
        PatchCrop({2: 1.0})
    with pytest.raises(ValueError, match=r"batch_factors lack \[2\]"):
        PatchCrop({1: 0.5, 2: 0.5}, {1: 1})
    with pytest.raises(ValueError, match=r"pictures of 10x10 are no square that \[1, 2, 4\] divide"):
        PatchCrop()(torch.zeros(1, 3, 10, 10))
