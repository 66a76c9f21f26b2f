"""Which layers int8 hurts, found in PyTorch, so that each target can leave the same ones in float32."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pocketgan.exporters.exporter import Int8Scheme

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_SCHEME = Int8Scheme()


class Sensitivity(NamedTuple):
    """What int8 does to a network.

    Attributes:
        changes: Mean absolute change of the edit, values being in [-1, 1], when one layer alone is int8; by the name
            of its module, largest first.
        excluded: The layers to leave in float32, most sensitive first.
        error: Of the network with all other layers in int8, by the measure that was given.
    """

    changes: dict[str, float]
    excluded: tuple[str, ...]
    error: float


def find_sensitive_layers(
    network: nn.Module,
    photos: Sequence[Tensor],
    error: Callable[[nn.Module], float],
    largest_error: float,
    scheme: Int8Scheme = _SCHEME,
) -> Sensitivity:
    """Exclude the layers that suffer most, one after the other, until the rest may be int8.

    Every convolution and linear layer is tried alone: weights rounded per output channel, and inputs to 256 levels over
    the range that the photos show, as far as the target's own quantiser does so. Between two layers they may quantise
    more (sums, resizing); what they really made of a network is measured on the exported file.

    Args:
        network: (B, 3, H, W) in [-1, 1] to the same, float32 on the CPU in eval mode.
        photos: To calibrate on, (1, 3, H, W) each.
        error: Of a network, smaller is better.
        largest_error: That is accepted.
        scheme: The target's.

    Returns:
        All layers are excluded where nothing less reaches the accepted error.
    """
    ranges = _input_ranges(network, photos)
    with torch.inference_mode():
        wanted = [network(photo) for photo in photos]
        changes = {}
        for name in ranges:
            alone = _simulated(network, ranges, [name], scheme)
            apart = [(alone(photo) - edit).abs().mean() for photo, edit in zip(photos, wanted, strict=True)]
            changes[name] = torch.stack(apart).mean().item()
    order = sorted(changes, key=lambda name: changes[name], reverse=True)
    for count in range(len(order) + 1):
        reached = error(_simulated(network, ranges, order[count:], scheme))
        if reached <= largest_error:
            break
    return Sensitivity({name: changes[name] for name in order}, tuple(order[:count]), reached)


def int8_error(
    network: nn.Module,
    photos: Sequence[Tensor],
    error: Callable[[nn.Module], float],
    excluded: Sequence[str],
    scheme: Int8Scheme = _SCHEME,
) -> float:
    """Error of a network with all layers but the excluded in int8, simulated; see ``find_sensitive_layers``."""
    ranges = _input_ranges(network, photos)
    return error(_simulated(network, ranges, [name for name in ranges if name not in excluded], scheme))


def _input_ranges(network: nn.Module, photos: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of each layer over the photos; zero is always inside."""
    ranges: dict[str, tuple[float, float]] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _LAYERS):

            def observe(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                low, high = ranges.get(name, (0.0, 0.0))
                ranges[name] = (min(low, inputs[0].min().item()), max(high, inputs[0].max().item()))

            handles.append(module.register_forward_pre_hook(observe))
    try:
        with torch.inference_mode():
            for photo in photos:
                network(photo)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _simulated(
    network: nn.Module, ranges: dict[str, tuple[float, float]], names: Sequence[str], scheme: Int8Scheme
) -> nn.Module:
    """Copy a network with some layers' weights and inputs rounded to what int8 can hold."""
    copied = copy.deepcopy(network)
    for name in names:
        module = copied.get_submodule(name)
        _round_weights(module, scheme.weight_bits)
        if not scheme.activations:
            continue
        low, high = ranges[name]
        scale = max(high - low, 1e-8) / 255
        zero_point = round(-low / scale)

        def round_inputs(
            _: nn.Module, inputs: tuple[Tensor, ...], scale: float = scale, zero_point: int = zero_point
        ) -> tuple[Tensor, ...]:
            return (torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero_point, 0, 255), *inputs[1:])

        module.register_forward_pre_hook(round_inputs)
    return copied


@torch.no_grad()
def _round_weights(module: nn.Module, bits: int) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]  # every layer here has one
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0  # of the output channels
    largest = weight.transpose(0, axis).flatten(1).abs().amax(1).clamp_min(1e-8)
    zeros = torch.zeros_like(largest, dtype=torch.int32)
    level = 2 ** (bits - 1) - 1
    weight.copy_(torch.fake_quantize_per_channel_affine(weight, largest / level, zeros, axis, -level, level))
