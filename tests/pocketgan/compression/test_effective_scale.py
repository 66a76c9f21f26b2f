"""Scales, and the measure of their concentration."""

import pytest
import torch
from tiny_networks import Plain
from torch import nn

from pocketgan.compression import ChannelGraph, ConcentrationLoss, effective_scales
from pocketgan.networks import BatchNorm, E2GANGenerator


def test_a_norm_s_factor_counts_and_the_weights_before_it_do_not():
    network = Plain()
    graph = ChannelGraph(network, (torch.rand(1, 3, 8, 8),))
    with torch.no_grad():
        network.norm.weight.copy_(torch.arange(8.0) - 4)
        network.first.weight[3] *= 1000
    torch.testing.assert_close(
        effective_scales(network, graph)["first"], (torch.arange(8.0) - 4).abs(), atol=1e-5, rtol=0
    )


def test_without_a_norm_writers_times_readers_count():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = ChannelGraph(network, (torch.rand(1, 3, 4, 4),))
    expected = network[0].weight.flatten(1).norm(dim=1) * network[2].weight.flatten(2).sum(2).norm(dim=0)
    found = effective_scales(network, graph)["0"]
    torch.testing.assert_close(found, expected)
    with torch.no_grad():  # a shift of scale between the two changes nothing
        network[0].weight[1] *= 10
        network[2].weight[:, 1] /= 10
    torch.testing.assert_close(effective_scales(network, graph)["0"], found)


def test_layers_of_one_trunk_add_up():
    network = E2GANGenerator(8, 16, norm=BatchNorm())
    tokens = torch.zeros(1, 2, 16)
    graph = ChannelGraph(network, (torch.rand(1, 3, 16, 16), tokens))
    name = next(name for name, group in graph.groups.items() if any(m.layer == "down.1.1" for m in group.members))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(2)
    # down.1, the ends of two blocks; without a skip, what follows the transformer is another trunk
    torch.testing.assert_close(effective_scales(network, graph)[name], torch.full((32,), 12.0).sqrt())


def test_concentration_by_hand():
    loss = ConcentrationLoss()
    assert loss({"one": torch.tensor([3.0, 1.0])}).item() == pytest.approx(0.8)
    assert loss({"one": torch.tensor([30.0, 10.0])}).item() == pytest.approx(0.8)  # no shrinking for nothing
    assert loss({"one": torch.ones(5)}).item() == pytest.approx(1)
    assert loss({"one": torch.tensor([1.0, 0, 0, 0])}).item() == pytest.approx(0.25)
    weighted = ConcentrationLoss({"one": 3.0, "other": 1.0})
    scales = {"one": torch.tensor([3.0, 1.0]), "other": torch.ones(2)}
    assert weighted(scales).item() == pytest.approx(1.5 * 0.8 + 0.5)


def test_its_gradient_gathers():
    scales = torch.tensor([2.0, 1.0], requires_grad=True)
    ConcentrationLoss()({"one": scales}).backward()
    assert scales.grad[0] < 0 < scales.grad[1]  # a step against it makes the large larger and the small smaller


def test_costs_are_above_zero():
    with pytest.raises(ValueError, match="the cost of b is 0; costs must be above 0"):
        ConcentrationLoss({"a": 1.0, "b": 0})
