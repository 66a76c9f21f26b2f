"""Which channels leave together, and that zero channels leave without a trace."""

import pytest
import torch
from tiny_networks import LooseParameter, Misread, Plain, Skip
from torch import nn

from pocketgan.compression import ChannelGraph, effective_scales, make_norms_affine
from pocketgan.networks import BatchNorm, E2GANGenerator, GroupNorm, InstanceNorm

NORMS = [BatchNorm(), GroupNorm(), InstanceNorm()]


def generator(norm, width=8):
    torch.manual_seed(0)
    network = make_norms_affine(E2GANGenerator(width, 16, head_size=16, norm=norm, transformer_skip=True)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return network


def inputs(size=32):
    random = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, size, size, generator=random) * 2 - 1, torch.randn(1, 2, 16, generator=random)


def silence(network, group, units):
    """Make units say exactly nothing."""
    with torch.no_grad():
        for member in group.members:
            places = member.places[torch.isin(member.units, torch.tensor(units))]
            layer = network.get_submodule(member.layer)
            if member.role == "normalises" or (
                member.role == "writes" and not member.normalised
            ):  # no queries, keys, gates
                layer.weight[places] = 0
                if layer.bias is not None:
                    layer.bias[places] = 0


def stream(graph):
    """Groups that a layer norm looks across: taking a channel there changes the statistics of the others."""
    return {
        name
        for name, group in graph.groups.items()
        if any(member.layer == "transformer.feed_forward.0.proj" for member in group.of_role("reads"))
    }


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_removing_silent_channels_changes_nothing(norm):
    network = generator(norm)
    graph = ChannelGraph(network, inputs())
    kept = {}
    for name, group in graph.groups.items():
        if name not in stream(graph):
            silence(network, group, list(range(0, group.units, 2)))
            kept[name] = list(range(1, group.units, 2))
    assert len(kept) == 11
    narrow = graph.pruned(kept)
    with torch.no_grad():
        photo, tokens = inputs(48)
        difference = (narrow(photo, tokens) - network(photo, tokens)).abs().max()
    assert difference < 1e-5
    assert sum(p.numel() for p in narrow.parameters()) < 0.55 * sum(p.numel() for p in network.parameters())


def test_a_concatenation_keeps_its_halves_apart():
    torch.manual_seed(0)
    network = Skip().eval()
    photo = torch.rand(1, 3, 16, 16)
    graph = ChannelGraph(network, (photo,))
    assert {name: group.units for name, group in graph.groups.items()} == {"outer": 8, "inner": 8, "up": 8}
    silence(network, graph.groups["outer"], [0, 5])
    silence(network, graph.groups["up"], [1, 2, 3])
    narrow = graph.pruned({"outer": [1, 2, 3, 4, 6, 7], "up": [0, 4, 5, 6, 7]})
    assert narrow.last.in_channels == 11
    torch.testing.assert_close(narrow(photo), network(photo), atol=1e-6, rtol=0)


def test_what_a_residual_trunk_ties_together():
    graph = ChannelGraph(generator(BatchNorm()), inputs())
    trunk = next(group for group in graph.groups.values() if any(m.layer == "down.1.1" for m in group.members))
    assert {member.layer for member in trunk.of_role("normalises")} == {
        "down.1.1", "blocks_before.0.body.4", "blocks_before.1.body.4", "transformer_up.2", "blocks_after.body.4",
    }  # fmt: skip
    assert {member.layer for member in trunk.of_role("reads")} == {
        "blocks_before.0.body.0", "blocks_before.1.body.0", "transformer_down.0", "blocks_after.body.0", "up.0.1",
    }  # fmt: skip
    assert all(
        member.layer != "head.0" or member.role == "reads" for g in graph.groups.values() for member in g.members
    )


def test_units_are_heads_halves_and_norm_groups():
    graph = ChannelGraph(generator(GroupNorm(4)), inputs())
    units = {name: (group.channels, group.units) for name, group in graph.groups.items()}
    assert units["transformer.self_attention.to_v"] == (32, 2)  # heads of 16
    assert units["transformer.feed_forward.0.proj"] == (256, 128)  # value and gate
    assert units["stem.0"] == (8, 4)
    assert units["down.0.0"] == (16, 4)
    narrow = graph.pruned({"stem.0": [0, 2], "transformer.self_attention.to_v": [1]})
    assert (narrow.stem[1].num_groups, narrow.stem[1].num_channels) == (2, 4)
    attention = narrow.transformer.self_attention
    whole = graph.network.transformer.self_attention
    for name in ("to_q", "to_k", "to_v"):
        assert torch.equal(getattr(attention, name).weight, getattr(whole, name).weight[16:])


def test_the_network_stays_as_it_is():
    network = generator(BatchNorm()).train().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    graph = ChannelGraph(network, inputs())
    narrow = graph.pruned({"stem.0": [0]})
    assert network.training
    assert not any(parameter.requires_grad for parameter in [*network.parameters(), *narrow.parameters()])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert narrow.stem[0].out_channels == 1


def test_a_narrower_network_folds_its_prompt():
    network = generator(BatchNorm(), 16)
    graph = ChannelGraph(network, inputs())
    narrow = graph.pruned({name: list(range(0, group.units, 2)) for name, group in graph.groups.items()})
    photo, tokens = inputs()
    attention = narrow.transformer.cross_attention
    assert attention.to_out.in_features == 32 < attention.to_out.out_features * 2
    with torch.no_grad():
        attention.to_q.bias.normal_()  # what was folded into it
        torch.testing.assert_close(narrow.fold_prompt(tokens)(photo), narrow(photo, tokens), atol=1e-5, rtol=0)


def test_refusals():
    graph = ChannelGraph(Plain(), (torch.rand(1, 3, 8, 8),))
    with pytest.raises(ValueError, match="layer first would lose all of its 8 channels; keep at least 1"):
        graph.pruned({"first": []})
    with pytest.raises(ValueError, match="second is no channel group of this network; it has first"):
        graph.pruned({"second": [0]})
    with pytest.raises(ValueError, match=r"layer first has units 0 to 7, not all of \[9\]"):
        graph.pruned({"first": [9]})


def test_what_the_graph_cannot_follow_is_named():
    photo = (torch.rand(1, 3, 8, 8),)
    with pytest.raises(ValueError, match="cannot follow strength, a parameter outside torch's own layers"):
        ChannelGraph(LooseParameter(), photo)
    graph = ChannelGraph(Misread(), photo)
    with pytest.raises(
        ValueError, match=r"cannot follow an operation of the network; it got as far as first \(Conv2d\)"
    ):
        graph.pruned({"first": [0, 1, 2]})


def test_scales_need_factors():
    network = E2GANGenerator(8, 16, norm=InstanceNorm())
    graph = ChannelGraph(network, inputs())
    with pytest.raises(ValueError, match=r"norm stem\.1 has no factors of its own"):
        effective_scales(network, graph)


def test_norms_made_affine_are_the_same_function():
    torch.manual_seed(0)
    network = E2GANGenerator(8, 16, norm=InstanceNorm()).eval()
    photo, tokens = inputs()
    before = network(photo, tokens)
    assert make_norms_affine(network) is network
    torch.testing.assert_close(network(photo, tokens), before)
    assert network.stem[1].weight.shape == (8,)
