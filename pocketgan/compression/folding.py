"""What removed channels still said, told by the biases of those who listened."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pocketgan.compression.channel_graph import ChannelGraph, Kept, give_bias, weight_by_output


def pruned_with_constants(graph: ChannelGraph, kept: Kept, batches: Iterable[tuple[Tensor, ...]]) -> nn.Module:
    """Make a narrower copy in which the mean of each removed channel lives on in the next layer's bias.

    A channel whose norm has a factor of 0 still emits the norm's shift, a constant. The constants are measured as means
    over photos where they are read, after all that lies between; of a channel that is not quite constant the mean is
    the best that a bias can keep. Zero padding makes it inexact within half a kernel of the border, unless the constant
    is 0.

    Args:
        graph: Of the network to prune.
        kept: Units that stay.
        batches: Inputs of the network, a few dozen photos in all.

    Raises:
        ValueError: As ``ChannelGraph.pruned``, or there is no batch.
    """
    network = copy.deepcopy(graph.network)
    readers: defaultdict[str, list[Tensor]] = defaultdict(list)  # places of removed channels by layer
    for name, units in kept.items():
        for layer_name, places in graph.lost_inputs(name, units).items():
            readers[layer_name].append(places)
    if readers:
        means = _input_means(network, list(readers), batches)
        with torch.no_grad():
            for layer_name, all_places in readers.items():
                layer, removed = network.get_submodule(layer_name), torch.cat(all_places)
                weight = weight_by_output(layer)
                by_input = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
                if isinstance(layer, nn.ConvTranspose2d):  # of its kernel, a pixel meets one in stride² on average
                    by_input = by_input / math.prod(layer.stride)
                give_bias(layer).add_(by_input[:, removed] @ means[layer_name][removed])
    return ChannelGraph(network, graph.example_inputs).pruned(kept)


def _input_means(network: nn.Module, layers: list[str], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Mean of each input channel of some layers over batches and places."""
    sums: dict[str, Tensor] = {}
    counts: defaultdict[str, int] = defaultdict(int)

    def take(name: str, features: Tensor) -> None:
        by_channel = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        by_channel = by_channel.flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + by_channel.sum(0)
        counts[name] += len(by_channel)

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: take(name, inputs[0]))
        for name in layers
    ]
    training = network.training
    try:
        with torch.no_grad():
            for batch in batches:
                network.eval()(*batch)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    if not sums:
        raise ValueError("there is no batch to measure the removed channels' constants on; give at least one")
    return {name: (total / counts[name]).to(next(network.parameters()).dtype) for name, total in sums.items()}
