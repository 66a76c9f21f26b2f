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


@pytest.mark.parametrize(
    ("group", "writer", "reader", "steering"),
    [
        ("transformer.self_attention.to_v", "self_attention.to_v", "self_attention.to_out", "self_attention.to_q"),
        ("transformer.feed_forward.0.proj", "feed_forward.0.proj", "feed_forward.1", None),
    ],
)
def test_without_values_a_head_or_a_gated_unit_says_nothing(group, writer, reader, steering):
    torch.manual_seed(0)
    network = E2GANGenerator(16, 16, head_size=16, norm=BatchNorm())
    inputs = (torch.rand(1, 3, 16, 16), torch.rand(1, 2, 16))
    graph = ChannelGraph(network, inputs)
    scale = effective_scales(network, graph)[group]
    values = network.transformer.get_submodule(writer)
    out = network.transformer.get_submodule(reader)
    unit = slice(0, 16 if steering else 1)
    with torch.no_grad():  # a shift of scale between values and output changes nothing
        values.weight[unit] *= 4
        if values.bias is not None:
            values.bias[unit] *= 4
        out.weight[:, unit] /= 4
    torch.testing.assert_close(effective_scales(network, graph)[group], scale)
    with torch.no_grad():
        values.weight[unit] = 0
        if steering:
            network.transformer.get_submodule(steering).weight *= 100
        else:
            values.weight[len(scale) :] *= 100  # gates
    silent = effective_scales(network, graph)[group]
    assert silent[0] < 1e-5
    torch.testing.assert_close(silent[1:], scale[1:])


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


def test_what_is_condensed_enough_is_left_alone():
    scales = torch.tensor([3.0, 1.0], requires_grad=True)
    loss = ConcentrationLoss(share=0.9)({"one": scales})
    loss.backward()
    assert loss.item() == pytest.approx(0.9)
    assert not scales.grad.any()
    with pytest.raises(ValueError, match="share is 1; give a share of the channels from 0 to below 1"):
        ConcentrationLoss(share=1)


def test_costs_are_above_zero():
    with pytest.raises(ValueError, match="the cost of b is 0; costs must be above 0"):
        ConcentrationLoss({"a": 1.0, "b": 0})
