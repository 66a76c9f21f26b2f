"""Operations by hand, milliseconds of what is exported."""

import pytest
import torch
from tiny_networks import Plain
from torch import nn

from pocketgan.compression import ChannelGraph, LatencyTarget, group_macs, layer_macs, parameter_count
from pocketgan.networks.transformer_block import Attention


def test_macs_by_hand():
    macs = layer_macs(Plain(8, kernel=3), (torch.rand(1, 3, 10, 12),))
    first, last = 8 * 3 * 9 * 120, 3 * 8 * 9 * 120
    assert macs == {"": first + last, "first": first, "last": last}


def test_attention_counts():
    tokens = torch.rand(1, 10, 16)
    macs = layer_macs(Attention(16, 16, 8), (tokens, tokens))
    projections, products = 4 * 10 * 16 * 16, 2 * 10 * 10 * 16
    assert macs[""] == projections + products


def test_macs_of_a_group_are_those_that_go_with_its_units():
    network, photo = Plain(8, kernel=3), (torch.rand(1, 3, 10, 12),)
    graph = ChannelGraph(network, photo)
    saved = layer_macs(network, photo)[""] - layer_macs(graph.pruned({"first": list(range(6))}), photo)[""]
    assert group_macs(graph, photo) == {"first": 4 * saved}


def test_parameters():
    assert parameter_count(nn.Linear(3, 4).requires_grad_(False)) == 16


def test_latency_is_measured_on_the_exported_network():
    latencies = LatencyTarget(threads=1, size=16, runs=2).measure([Plain(), Plain(16)], 8)
    assert [(latency.threads, latency.size) for latency in latencies] == [(1, 16)] * 2
    assert all(latency.median_ms > 0 for latency in latencies)
    with pytest.raises(ValueError, match="size 12 is not a multiple of size_divisor 8"):
        LatencyTarget(size=12).measure([Plain()], 8)
    with pytest.raises(ValueError, match="threads 0"):
        LatencyTarget(threads=0)
