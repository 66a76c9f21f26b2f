"""The schedule's values."""

import pytest

from pocketgan.compression import CubicSparsity


def test_ends_and_middle_by_hand():
    schedule = CubicSparsity(0.1, 0.9, start_images=100, end_images=500, every_images=50)
    assert schedule(0) == schedule(99) == 0
    assert schedule(100) == pytest.approx(0.1, abs=1e-12)
    assert schedule(300) == pytest.approx(0.9 - 0.8 / 8, abs=1e-12)  # half of the way: (1 - 1/2)³
    assert schedule(200) == pytest.approx(0.9 - 0.8 * 27 / 64, abs=1e-12)
    assert schedule(500) == schedule(10_000) == 0.9


def test_it_is_held_at_the_last_multiple():
    schedule = CubicSparsity(0.0, 0.9, start_images=100, end_images=480, every_images=50)
    for images in range(100, 480):
        held = 100 + (images - 100) // 50 * 50
        expected = 0.9 - 0.9 * (1 - (held - 100) / 380) ** 3
        assert schedule(images) == pytest.approx(expected, abs=1e-12)
    assert schedule(479) < 0.9 == schedule(480)  # 450 is the last multiple; the end counts all the same


def test_it_never_falls():
    values = [CubicSparsity(0.2, 0.8, 3, 97, 7)(images) for images in range(120)]
    assert values == sorted(values)


def test_equal_ends_are_one_shot():
    schedule = CubicSparsity(0.7, 0.7, 0, 1, 1)
    assert schedule(0) == schedule(5) == 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 0, 10, 1), "give shares of zeros from 0 to below 1"),
        ((-0.1, 0.5, 0, 10, 1), "give shares of zeros"),
        ((0.6, 0.5, 0, 10, 1), "do not fall"),
        ((0.0, float("nan"), 0, 10, 1), "give shares of zeros"),
        ((0.0, 0.5, 10, 10, 1), "the end must come after the start"),
        ((0.0, 0.5, -1, 10, 1), "the start not before 0"),
        ((0.0, 0.5, 0, 10, 0), "give 1 or more"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        CubicSparsity(*arguments)
