"""A removed channel's constant lives on in the next bias."""

import pytest
import torch
from tiny_networks import Plain

from pocketgan.compression import ChannelGraph, pruned_with_constants


@pytest.mark.parametrize("bias", [True, False])
def test_constants_are_kept(bias):
    torch.manual_seed(0)
    network = Plain(8, kernel=1, bias=bias).eval()
    with torch.no_grad():
        network.norm.weight[:3] = 0
        network.norm.bias[:3] = torch.tensor([0.7, 1.5, -2])  # the last is cut off by the ReLU
    photo = torch.rand(4, 3, 8, 8)
    graph = ChannelGraph(network, (photo,))
    kept = {"first": [3, 4, 5, 6, 7]}
    narrow = pruned_with_constants(graph, kept, [(photo,)])
    torch.testing.assert_close(narrow(photo), network(photo), atol=1e-6, rtol=0)
    assert (graph.pruned(kept)(photo) - network(photo)).abs().max() > 0.01
    assert narrow.last.in_channels == 5


def test_inside_the_border_a_padded_convolution_is_exact_too():
    torch.manual_seed(0)
    network = Plain(8, kernel=5).eval()
    with torch.no_grad():
        network.norm.weight[:3] = 0
        network.norm.bias[:3] = 1
    photo = torch.rand(2, 3, 12, 12)
    narrow = pruned_with_constants(ChannelGraph(network, (photo,)), {"first": [3, 4, 5, 6, 7]}, [(photo,)])
    difference = (narrow(photo) - network(photo)).abs()
    assert difference[..., 2:-2, 2:-2].max() < 1e-6
    assert difference.max() > 0.01


def test_the_mean_of_a_channel_that_is_not_constant():
    torch.manual_seed(0)
    network = Plain(8, kernel=1).eval()
    photo = torch.rand(4, 3, 8, 8)
    narrow = pruned_with_constants(ChannelGraph(network, (photo,)), {"first": [0, 1]}, [(photo[:1],), (photo[1:],)])
    torch.testing.assert_close(narrow(photo).mean((0, 2, 3)), network(photo).mean((0, 2, 3)), atol=1e-5, rtol=0)


def test_photos_are_needed():
    with pytest.raises(ValueError, match="there is no batch to measure"):
        pruned_with_constants(ChannelGraph(Plain(), (torch.rand(1, 3, 8, 8),)), {"first": [0]}, [])
