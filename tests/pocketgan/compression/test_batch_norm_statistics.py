"""Running statistics are those of the network as it is."""

import pytest
import torch
from tiny_networks import Plain
from torch import nn

from pocketgan.compression import recalibrate_batch_norm


def test_statistics_by_hand():
    torch.manual_seed(0)
    network, photos = Plain().eval(), torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        network.first.weight *= 3  # no training told the norm
    recalibrate_batch_norm(network, [(photos[:3],), (photos[3:],)])
    features = network.first(photos)
    halves = features[:3], features[3:]
    torch.testing.assert_close(network.norm.running_mean, features.mean((0, 2, 3)))
    expected = torch.stack([half.var((0, 2, 3)) for half in halves]).mean(0)
    torch.testing.assert_close(network.norm.running_var, expected)
    assert not network.training
    assert not network.norm.training
    assert network.norm.momentum == 0.1


def test_without_batch_norm_nothing_runs():
    recalibrate_batch_norm(nn.Conv2d(3, 3, 1), iter([]))


def test_batches_are_needed():
    with pytest.raises(ValueError, match="there is no batch to measure batch norm"):
        recalibrate_batch_norm(Plain(), [])
