"""Known movements are found; what has nothing in common is not trusted."""

import numpy as np
import pytest
import torch
from tiny import real_photos

from pocketgan.gates.registration import Similarity, edge_agreement, estimate, moved_back

SIDE = 96


@pytest.fixture(scope="module")
def photos():
    return [photo.numpy() / 2 + 0.5 for photo in real_photos(4, SIDE)]


def inverse(movement):
    """What undoes a movement."""
    turn = movement.scale * np.exp(1j * np.deg2rad(movement.rotation_degrees))
    shift = -complex(movement.shift_x_px, movement.shift_y_px) / turn
    return Similarity(shift.real, shift.imag, 1 / movement.scale, -movement.rotation_degrees)


def moved(picture, movement):
    return moved_back(picture, inverse(movement), SIDE)


MOVEMENTS = [
    Similarity(1.3, -0.7),
    Similarity(-6.25, 4.5),
    Similarity(scale=1.02),
    Similarity(scale=0.85),
    Similarity(rotation_degrees=-1.0),
    Similarity(2.0, 1.0, 1.1, 12.0),
]


@pytest.mark.parametrize("movement", MOVEMENTS, ids=str)
def test_a_movement_is_found_whatever_the_colours(photos, movement):
    # another contrast, inverted in one colour: edges stay, their sign does not
    edit = moved((photos[0][[1, 2, 0]] ** 2) * np.array([-1, 0.7, 0.5], dtype=np.float32)[:, None, None], movement)
    found, agreement = estimate(photos[0], edit)
    assert agreement > 0.8
    assert found.shift_x_px == pytest.approx(movement.shift_x_px, abs=0.1)
    assert found.shift_y_px == pytest.approx(movement.shift_y_px, abs=0.1)
    assert found.scale == pytest.approx(movement.scale, abs=0.002)
    assert found.rotation_degrees == pytest.approx(movement.rotation_degrees, abs=0.1)


def test_what_is_found_undoes_the_movement(photos):
    movement = MOVEMENTS[0]
    back = moved_back(moved(photos[1], movement), estimate(photos[1], moved(photos[1], movement))[0], SIDE)
    inner = slice(8, -8)
    assert np.abs(back - photos[1])[:, inner, inner].mean() < 0.02
    assert edge_agreement(photos[1], back) > 0.95 > edge_agreement(photos[1], moved(photos[1], movement))


def test_an_edit_in_place_is_found_there(photos):
    found, agreement = estimate(photos[2], photos[2])
    assert found.displacement_px(SIDE, SIDE) < 0.001
    assert agreement == pytest.approx(1, abs=1e-4)
    assert edge_agreement(photos[2], 1 - photos[2]) == pytest.approx(1, abs=1e-4)


def test_unrelated_flat_and_noisy_pictures_do_not_agree(photos):
    noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).numpy()
    for edit in (photos[1], noise, np.full_like(noise, 0.5), np.zeros_like(noise)):
        found, agreement = estimate(photos[0], edit)
        assert agreement < 0.17
        assert np.isfinite(found.displacement_px(SIDE, SIDE))
        assert abs(edge_agreement(photos[0], edit)) < 0.15


def test_sides_may_differ_and_large_pictures_are_measured_smaller(photos):
    wide = np.concatenate([photos[0], photos[2]], axis=2)
    found, agreement = estimate(wide, np.roll(wide, 3, axis=2))
    assert (found.shift_x_px, found.shift_y_px) == pytest.approx((3, 0), abs=0.1)
    assert agreement > 0.8
    large = real_photos(1, 320)[0].numpy() / 2 + 0.5
    found, _ = estimate(large, np.roll(large, -5, axis=1))
    assert (found.shift_x_px, found.shift_y_px) == pytest.approx((0, -5), abs=0.15)


def test_agreement_is_that_of_the_outlines_at_any_size():
    draw = torch.Generator().manual_seed(0)
    for side in (128, 256, 384):
        photo = real_photos(1, side)[0].numpy() / 2 + 0.5
        strokes = 0.3 * torch.rand(1, side, side, generator=draw).numpy() if side > 128 else 0
        assert edge_agreement(photo, 0.7 * (1 - photo) + strokes) > 0.6


def test_displacement_is_the_mean_square_over_the_pixels():
    movement = Similarity(1.5, -0.5, 1.1, 7.0)
    y, x = np.mgrid[:20, :30] - np.array([9.5, 14.5])[:, None, None]
    turned = 1.1 * np.exp(1j * np.deg2rad(7)) * (x + 1j * y) + complex(1.5, -0.5)
    expected = np.sqrt((np.abs(turned - (x + 1j * y)) ** 2).mean())
    assert movement.displacement_px(20, 30) == pytest.approx(expected)


def test_the_same_pair_has_the_same_estimate_with_any_threads(photos):
    before, threads = estimate(photos[0], moved(photos[0], MOVEMENTS[5])), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert estimate(photos[0], moved(photos[0], MOVEMENTS[5])) == before
    finally:
        torch.set_num_threads(threads)
