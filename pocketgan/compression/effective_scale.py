"""How much each channel says, once normalisation has had its word."""

from typing import cast

import torch
from torch import Tensor, nn

from pocketgan.compression.channel_graph import ChannelGraph, ChannelGroup, weight_by_output
from pocketgan.networks.norm import InstanceNorm2d

_LEAST = 1e-12  # under a square root, whose gradient at 0 is infinite


def effective_scales(network: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """The effective scale of each unit of each channel group, with gradients.

    A convolution's weights say nothing before a norm: the norm undoes their scale. So a channel that is normalised by
    itself counts by its norm's factor γ, as in network slimming (Liu et al. 2017, arXiv 1708.06519); several layers
    that write into one trunk add up as the root of the sum of squares. Layers that write without such a norm, into the
    stream of a transformer, add the norm of their rows. Where nobody normalises, as inside an attention or a
    feed-forward, the scale is rows of the writers times columns of the readers, which no shift of scale between the two
    changes. Queries, keys and gates are no writers: without values they say nothing.

    Args:
        network: The network itself, or one of the same layers and shapes, such as its moving average.
        graph: Its channel groups.

    Returns:
        (units,) by group.

    Raises:
        ValueError: A norm has no factors; ``make_norms_affine`` gives them.
    """
    return {name: _scale(network, group) for name, group in graph.groups.items()}


def _scale(network: nn.Module, group: ChannelGroup) -> Tensor:
    normalised = [_norm_factors(network, member.layer) for member in group.of_role("normalises")]
    squares = next(network.parameters()).new_zeros(group.units)
    for member, factors in zip(group.of_role("normalises"), normalised, strict=True):
        squares = squares.index_add(0, member.units.to(squares.device), factors[member.places].square())
    written = next(network.parameters()).new_zeros(group.units)
    for member in group.of_role("writes"):
        if not member.normalised:
            rows = weight_by_output(network.get_submodule(member.layer)).flatten(1).square().sum(1)
            written = written.index_add(0, member.units.to(written.device), rows[member.places])
    if normalised:
        return (squares + written + _LEAST).sqrt()
    read = torch.zeros_like(written)
    for member in group.of_role("reads"):
        columns = weight_by_output(network.get_submodule(member.layer)).transpose(0, 1).flatten(1).square().sum(1)
        read = read.index_add(0, member.units.to(read.device), columns[member.places])
    return (written * read + _LEAST).sqrt()


def _norm_factors(network: nn.Module, name: str) -> Tensor:
    factors = network.get_submodule(name).weight
    if factors is None:
        raise ValueError(
            f"norm {name} has no factors of its own, so that no channel can be made small by them; give the network "
            "norms with factors, or call make_norms_affine first"
        )
    return cast(Tensor, factors)


def make_norms_affine(network: nn.Module) -> nn.Module:
    """Give each instance norm without parameters a factor of 1 and a shift of 0, in place: the same function.

    Args:
        network: May have such norms.

    Returns:
        The network.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.InstanceNorm2d) and not module.affine:
            parameter = next(network.parameters())
            affine = InstanceNorm2d(module.num_features, eps=module.eps, affine=True)
            network.set_submodule(name, affine.to(parameter.device, parameter.dtype).train(module.training))
    return network


class ConcentrationLoss(nn.Module):
    """Few large scales instead of many: Σ_l c_l max(h_l, share), h_l = (Σ_k s_lk)² / (U_l Σ_k s_lk²).

    The measure h is that of DeepHoyer (Yang et al. 2020, arXiv 1908.09979, equation 4) over the number of units,
    between 1/U (one unit says it all) and 1 (all say as much): the share of its channels that a layer uses, in effect.
    Below ``share`` a layer is left alone, so that nothing is lost that may stay. Shrinking all scales of a layer alike
    does not change it, which the next norm would undo for nothing: a plain L1 condenses nothing or everything here
    (docs/channel_condensation.md). The regulariser of ALAP-AE (arXiv 2203.10363) is not known in full; this one is
    ours.

    Args:
        costs: c_l by group, what all of its units cost together, in any unit; their mean is brought to 1. All alike if
            None.
        share: Of a layer's channels, at which it is condensed enough.

    Example:
        Scales 3 and 1 give (3 + 1)² / (2 · (9 + 1)) = 0.8.

    Raises:
        ValueError: A cost is not above 0, or the share is out of range.
    """

    def __init__(self, costs: dict[str, float] | None = None, share: float = 0.0) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}; give a share of the channels from 0 to below 1")
        self.share = share
        if costs is not None and min(costs.values()) <= 0:
            least = min(costs, key=lambda name: costs[name])
            raise ValueError(f"the cost of {least} is {costs[least]}; costs must be above 0")
        mean = sum(costs.values()) / len(costs) if costs else 1.0
        self.weights = {name: cost / mean for name, cost in costs.items()} if costs else None

    def forward(self, scales: dict[str, Tensor]) -> Tensor:
        """The weighted sum over groups, a scalar.

        Args:
            scales: (U,) by group, from ``effective_scales``.
        """
        terms = [
            (self.weights[name] if self.weights else 1.0)
            * (scale.sum().square() / (len(scale) * scale.square().sum())).clamp(min=self.share)
            for name, scale in scales.items()
        ]
        return torch.stack(terms).sum()
