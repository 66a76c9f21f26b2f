"""Learning-rate factors by hand."""

import pytest
import torch
from torch import nn

from pocketgan.schedule import LinearDecay, MovingAverage


def test_values():
    decay = LinearDecay(start_images=100, end_images=300)
    assert [decay(images) for images in (0, 100, 200, 300, 400)] == [1, 1, 0.5, 0, 0]


def test_end_before_start():
    with pytest.raises(ValueError, match="decay from 5 to 5 images"):
        LinearDecay(5, 5)


def test_average_by_hand():
    average, weight = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 3.0])
    MovingAverage(8, float("inf")).update([average], [weight], 8, 8)  # one half-life
    torch.testing.assert_close(average, torch.tensor([3.0, 3.0]))
    MovingAverage(8, 0.5).update([average], [weight], 4, 8)  # ramped up to a half-life of 4
    torch.testing.assert_close(average, torch.tensor([4.0, 3.0]))


def test_networks_average_their_parameters_and_copy_their_buffers():
    network, averaged = nn.BatchNorm1d(2), nn.BatchNorm1d(2).requires_grad_(False)
    network.bias.requires_grad_(False)
    with torch.no_grad():
        network.weight.fill_(5)
        network.bias.fill_(5)
        network.running_mean.fill_(7)
    MovingAverage(8, float("inf")).update_networks([(network, averaged)], 8, 8)  # one half-life
    assert averaged.weight.tolist() == [3, 3]
    assert averaged.bias.tolist() == [0, 0]  # it does not train
    assert averaged.running_mean.tolist() == [7, 7]


def test_averages_that_cannot_be():
    with pytest.raises(ValueError, match="ema_halflife_images is 0; it must be above 0"):
        MovingAverage(0, 1)
    with pytest.raises(ValueError, match="ema_rampup_ratio is -1; it must be above 0, infinity for no ramp-up"):
        MovingAverage(1, -1)
