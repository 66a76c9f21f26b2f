"""Learning-rate factors by hand."""

import pytest

from pocketgan.schedule import LinearDecay


def test_values():
    decay = LinearDecay(start_images=100, end_images=300)
    assert [decay(images) for images in (0, 100, 200, 300, 400)] == [1, 1, 0.5, 0, 0]


def test_end_before_start():
    with pytest.raises(ValueError, match="decay from 5 to 5 images"):
        LinearDecay(5, 5)
