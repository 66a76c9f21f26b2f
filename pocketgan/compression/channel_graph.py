"""Which channels of a network can only leave together, and how they leave."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast

import torch
import torch_pruning
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch_pruning.pruner.function import GroupNormPruner

from pocketgan.networks.transformer_block import GEGLU, Attention

Role = Literal["writes", "steers", "normalises", "reads"]
Kept = dict[str, list[int]]  # units that stay, by the name of their group
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_CHANNEL_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)


class _WholeGroupsPruner(GroupNormPruner):
    """Takes whole groups of a group norm, so that the statistics of the others stay as they are."""

    def prune_out_channels(self, layer: nn.GroupNorm, idxs: Sequence[int]) -> nn.Module:
        """Take channels; they must be whole groups."""
        per_group = layer.num_channels // layer.num_groups
        super().prune_out_channels(layer, list(idxs))
        layer.num_groups = layer.num_channels // per_group
        return layer

    prune_in_channels = prune_out_channels


def weight_by_output(layer: nn.Module) -> Tensor:
    """A layer's weight as (outputs, inputs, …), which a transposed convolution keeps the other way round."""
    weight = cast(Tensor, layer.weight)
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


class Member(NamedTuple):
    """A layer that a group's channels pass through.

    Attributes:
        layer: Its name in the network.
        role: Whether it makes the channels, steers how others make them (queries, keys, the gate of a gated linear
            unit), normalises each by itself, or takes them in. A layer norm, which looks across channels, is none of
            these.
        places: Indices of its channels, all that belong to the group.
        units: For each of them, the unit that it belongs to.
        normalised: Of a writer: whether a norm of single channels follows it directly.
    """

    layer: str
    role: Role
    places: Tensor
    units: Tensor
    normalised: bool = False


class ChannelGroup(NamedTuple):
    """Channels that several layers share: what a residual trunk or a concatenation ties together.

    A unit is the least that can leave: one channel, with all that it is tied to; a head of an attention; a group of a
    group norm.

    Attributes:
        name: Of the layer that the dependency graph starts at.
        channels: Output channels of that layer.
        units: U, into which they divide.
        members: The layers.
    """

    name: str
    channels: int
    units: int
    members: tuple[Member, ...]

    @property
    def unit_channels(self) -> set[int]:
        """Channels that one unit has in the layers that make or take them; a gated unit has two where it is made."""
        return {
            sum(len(other.places) for other in self.members if (other.layer, other.role == "reads") == (layer, reads))
            // self.units
            for layer, reads in {(member.layer, member.role == "reads") for member in self.members}
        }

    def of_role(self, role: Role) -> list[Member]:
        """Members of a role."""
        return [member for member in self.members if member.role == role]


class ChannelGraph:
    """A network's channel groups by torch-pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900).

    Args:
        network: Is traced in eval mode and stays as it is.
        example_inputs: One batch of each input.

    Attributes:
        groups: By name, in the order of the network. Groups whose channels nobody reads, such as the output's, are
            left out.

    Raises:
        ValueError: The graph cannot follow an operation of the network, which is named.
    """

    def __init__(self, network: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        self.network, self.example_inputs = network, example_inputs
        self._names = {module: name for name, module in network.named_modules()}
        self._graph = _trace(network, example_inputs)
        self._attention_heads = {
            getattr(module, part): module.head_size
            for module in network.modules()
            if isinstance(module, Attention)
            for part in ("to_q", "to_k", "to_v")
        }
        # the first output that steers, by layer
        self._steering = {
            getattr(module, part): 0
            for module in network.modules()
            if isinstance(module, Attention)
            for part in ("to_q", "to_k")
        } | {module.proj: module.proj.out_features // 2 for module in network.modules() if isinstance(module, GEGLU)}
        self.groups: dict[str, ChannelGroup] = {}
        described = [self._describe(found) for found in self._graph.get_all_groups()]
        order = list(self._names.values())
        for group in sorted(filter(None, described), key=lambda group: order.index(group.name)):
            self.groups[group.name] = group

    def _describe(self, found: torch_pruning.Group) -> ChannelGroup | None:
        root = found[0].dep.target.module
        channels = self._graph.get_out_channels(root)
        unit_of = self._units(found, channels)
        members = []
        for item in found:
            module = item.dep.target.module
            if module not in self._names or not isinstance(module, (*_LAYERS, *_CHANNEL_NORMS)):
                continue
            places, units = torch.tensor(item.idxs), unit_of[torch.tensor(item.root_idxs)]
            name = self._names[module]
            if isinstance(module, _CHANNEL_NORMS):
                members.append(Member(name, "normalises", places, units))
            elif not self._graph.is_out_channel_pruning_fn(item.dep.handler):
                members.append(Member(name, "reads", places, units))
            elif module in self._steering:
                steers = places >= self._steering[module]
                if not steers.all():
                    members.append(Member(name, "writes", places[~steers], units[~steers]))
                members.append(Member(name, "steers", places[steers], units[steers]))
            else:
                follows = self._graph.module2node[module].outputs
                normalised = any(isinstance(node.module, _CHANNEL_NORMS) for node in follows)
                members.append(Member(name, "writes", places, units, normalised))
        if not any(member.role == "reads" for member in members):
            return None
        return ChannelGroup(self._names[root], channels, int(unit_of.max()) + 1, tuple(members))

    def _units(self, found: torch_pruning.Group, channels: int) -> Tensor:
        """The unit of each of the root's channels."""
        root, handler = found[0].dep.target.module, found[0].dep.handler
        # channels of the root itself that are tied, as the halves of a gated linear unit are
        tied = self._graph.get_pruning_group(root, handler, [0])[0].idxs
        labels = [torch.arange(channels) % (channels // len(tied))]
        for item in found:
            module = item.dep.target.module
            if isinstance(module, nn.GroupNorm):
                together = module.num_channels // module.num_groups
            elif module in self._attention_heads and self._graph.is_out_channel_pruning_fn(item.dep.handler):
                together = self._attention_heads[module]
            else:
                continue
            label = torch.empty(channels, dtype=torch.long)
            label[torch.tensor(item.root_idxs)] = torch.tensor(item.idxs) // together
            labels.append(label)
        # a channel and each label that it bears are neighbours; what hangs together is a unit
        offsets = [channels]
        for label in labels:
            offsets.append(offsets[-1] + int(label.max()) + 1)
        rows = torch.arange(channels).repeat(len(labels)).numpy()
        columns = torch.cat([label + offset for label, offset in zip(labels, offsets, strict=False)]).numpy()
        edges = coo_matrix(([1] * len(rows), (rows, columns)), shape=(offsets[-1], offsets[-1]))
        _, components = connected_components(edges, directed=False)
        return torch.unique(torch.from_numpy(components[:channels]), return_inverse=True)[1]

    def pruned(self, kept: Kept) -> nn.Module:
        """Make a physically narrower copy of the network.

        A layer that loses inputs gets a bias if it has none: a place for what the lost ones said
        (``pruned_with_constants``).

        Args:
            kept: Units that stay; groups that are not named stay whole.

        Raises:
            ValueError: A group is unknown, has no such unit, or would lose all channels; or what is left does not run,
                because the graph misread an operation, which is named.
        """
        for name, units in kept.items():
            if name not in self.groups:
                raise ValueError(f"{name} is no channel group of this network; it has {', '.join(self.groups)}")
            group = self.groups[name]
            if not units:
                raise ValueError(
                    f"layer {name} would lose all of its {group.channels} channels; keep at least "
                    f"{group.channels // group.units}"
                )
            if not set(units) <= set(range(group.units)):
                raise ValueError(f"layer {name} has units 0 to {group.units - 1}, not all of {sorted(units)}")
        network = copy.deepcopy(self.network)
        graph = _trace(network, self.example_inputs)
        for name, units in kept.items():
            group = self.groups[name]
            gone = [
                place
                for member in group.members
                if member.layer == name and member.role in {"writes", "steers"}
                for place, unit in zip(member.places.tolist(), member.units.tolist(), strict=True)
                if unit not in units
            ]
            if gone:
                layer = network.get_submodule(name)
                handler = graph.get_pruner_of_module(layer).prune_out_channels
                graph.get_pruning_group(layer, handler, gone).prune(record_history=False)
        trainable = {name: parameter.requires_grad for name, parameter in self.network.named_parameters()}
        for name, parameter in network.named_parameters():  # pruned ones are new
            parameter.requires_grad_(trainable[name])
        for reader in {layer for name in kept for layer in self.lost_inputs(name, kept[name])}:
            give_bias(network.get_submodule(reader))
        with _as_found(network), _named_failure(network), torch.no_grad():
            network.eval()(*self.example_inputs)
        return network

    def lost_inputs(self, name: str, kept: list[int]) -> dict[str, Tensor]:
        """Places of the inputs that layers lose if only some units of a group stay, by layer."""
        lost = {}
        for member in self.groups[name].of_role("reads"):
            gone = ~torch.isin(member.units, torch.tensor(kept))
            if gone.any():
                lost[member.layer] = member.places[gone]
        return lost


def give_bias(layer: nn.Module) -> nn.Parameter:
    """Give a layer a bias of 0 if it has none.

    Returns:
        Its bias.
    """
    if layer.bias is None:
        weight = weight_by_output(layer)
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)
    return cast(nn.Parameter, layer.bias)


def _trace(network: nn.Module, example_inputs: tuple[Tensor, ...]) -> torch_pruning.DependencyGraph:
    """Build the graph; see ``ChannelGraph``."""
    with _as_found(network), _named_failure(network), torch.enable_grad():
        network.eval().requires_grad_(True)  # the graph is read from autograd's
        graph = torch_pruning.DependencyGraph().build_dependency(
            network, example_inputs, customized_pruners={nn.GroupNorm: _WholeGroupsPruner()}, verbose=False
        )
    if graph.unwrapped_parameters:
        names = {parameter: name for name, parameter in network.named_parameters()}
        raise ValueError(
            f"the dependency graph cannot follow {names[graph.unwrapped_parameters[0].parameters]}, a parameter "
            "outside torch's own layers, so that it does not know which channels it belongs to; write it as a layer of "
            "torch"
        )
    return graph


@contextmanager
def _as_found(network: nn.Module) -> Iterator[None]:
    """Put back modes and what trains."""
    training = {module: module.training for module in network.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, mode in trainable.items():
            parameter.requires_grad_(mode)


@contextmanager
def _named_failure(network: nn.Module) -> Iterator[None]:
    """Name the layer at which a network or its graph fails."""
    entered: list[str] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda module, _, name=name: entered.append(f"{name} ({type(module).__name__})")
        )
        for name, module in network.named_modules()
    ]
    try:
        yield
    except (
        RuntimeError,
        AssertionError,
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
    ) as error:
        last = entered[-1] if entered else type(network).__name__
        raise ValueError(
            f"the dependency graph cannot follow an operation of the network; it got as far as {last}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
