"""What a generator of one prompt costs on a device, and what each of its channel groups does."""

from typing import cast

import torch
from torch import Tensor, nn

from pocketgan.compression.channel_graph import ChannelGraph, weight_by_output
from pocketgan.compression.cost import LatencyTarget, layer_macs, parameter_count
from pocketgan.compression.pruning_rule import PruningRule
from pocketgan.networks import Generator


class GeneratorCost:
    """Measures generators of like inputs, wide or narrow, as they would be deployed.

    Args:
        target: The device, and the size of use.
        prompt_tokens: (1, L, D) of a concept.
        size_divisor: Of the generators.
    """

    def __init__(self, target: LatencyTarget, prompt_tokens: Tensor, size_divisor: int) -> None:
        self.target, self.prompt_tokens, self.size_divisor = target, prompt_tokens, size_divisor

    def inputs(self, generator: nn.Module, size: int) -> tuple[Tensor, Tensor]:
        """A black photo of ``size`` pixels and the prompt, where the generator is."""
        device = next(generator.parameters()).device
        return torch.zeros(1, 3, size, size, device=device), self.prompt_tokens.to(device)

    def graph(self, generator: nn.Module) -> ChannelGraph:
        """Its channel groups, traced on a small photo."""
        return ChannelGraph(generator, self.inputs(generator, 4 * self.size_divisor))

    def macs(self, generator: nn.Module) -> int:
        """Multiply-accumulate operations at the target's size."""
        return layer_macs(generator, self.inputs(generator, self.target.size))[""]

    def deployed(self, generator: nn.Module) -> nn.Module:
        """The device's network, its prompt folded in."""
        _, tokens = self.inputs(generator, self.size_divisor)
        return cast(Generator, generator).fold_prompt(tokens).eval().requires_grad_(False)

    def parameters(self, generator: nn.Module) -> int:
        """Weights of the device's network."""
        return parameter_count(self.deployed(generator))

    def milliseconds(self, generator: nn.Module) -> float:
        """Median latency on the target."""
        (measured,) = self.target.measure([self.deployed(generator)], self.size_divisor)
        return measured.median_ms

    def group_milliseconds(self, generator: nn.Module, pruning: PruningRule) -> dict[str, float]:
        """What each group takes on the target: the whole network less one whose group is at its narrowest.

        Raises:
            ValueError: No group takes a time that can be measured.
        """
        graph = self.graph(generator)
        narrowest = pruning.narrowest(graph.groups)
        networks = [generator, *(graph.pruned({name: units}) for name, units in narrowest.items())]
        whole, *others = self.target.measure(map(self.deployed, networks), self.size_divisor)
        costs = {name: whole.median_ms - other.median_ms for name, other in zip(narrowest, others, strict=True)}
        positive = [cost for cost in costs.values() if cost > 0]
        if not positive:
            raise ValueError("no layer's width moves the target's milliseconds; set cost to macs")
        # a saving below what the clock can tell counts as the least that it could
        return {name: max(cost, min(positive)) for name, cost in costs.items()}


def widths(network: nn.Module) -> dict[str, int]:
    """Output channels of each convolution and linear layer."""
    return {
        name: len(weight_by_output(layer))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
