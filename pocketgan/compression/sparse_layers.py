"""Masks on a network's layers: where they go, how they are stored and found again, and what is left without them."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)

from pocketgan.compression.n_to_m_mask import NToMMask
from pocketgan.compression.weight_mask import FixedMask, WeightMask

_KEY = ".parametrizations.weight."


class WeightLayer(NamedTuple):
    """A convolution or linear layer, with the low-rank delta around it if there is one."""

    layer: nn.Conv2d | nn.Linear
    lora: LoraLayer | None = None


class ChosenLayers(NamedTuple):
    """Layers to be masked by name, and why the others stay dense by theirs."""

    masked: dict[str, WeightLayer]
    dense: dict[str, str]


class _FoldedDelta(nn.Module):
    """W + s · B A, so that a mask applies to the weight that is deployed.

    Args:
        lora: PEFT's layer; it is not a submodule of this one, since its weights are stored where they are.
    """

    def __init__(self, lora: LoraLayer) -> None:
        super().__init__()
        self._lora = (lora,)

    def forward(self, weight: Tensor) -> Tensor:
        (lora,) = self._lora
        for name in lora.active_adapters:
            a, b = lora.lora_A[name].weight.flatten(1), lora.lora_B[name].weight.flatten(1)
            weight = weight + lora.scaling[name] * torch.mm(b, a).view_as(weight)
        return weight


def _walk(
    module: nn.Module, name: str, seen: set[nn.Module]
) -> Iterator[tuple[str, WeightLayer | ModulesToSaveWrapper]]:
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, LoraLayer):
        yield name, WeightLayer(module.get_base_layer(), module)
    elif isinstance(module, ModulesToSaveWrapper):
        yield name, module
    elif isinstance(module, nn.Conv2d | nn.Linear):
        yield name, WeightLayer(module)
    else:
        for child_name, child in module.named_children():
            yield from _walk(child, f"{name}.{child_name}".lstrip("."), seen)


def _parts(network: nn.Module) -> dict[str, WeightLayer | ModulesToSaveWrapper]:
    return dict(_walk(network.get_base_model() if isinstance(network, PeftModel) else network, "", set()))


def weight_layers(network: nn.Module) -> dict[str, WeightLayer]:
    """Convolutions and linear layers by the network's own names, in the order of definition.

    An adapter's wrappers are looked through; its deltas and the parts that it stores whole are left out.
    """
    return {name: part for name, part in _parts(network).items() if isinstance(part, WeightLayer)}


def choose_layers(network: nn.Module, dense_layers: list[str] | None, group_size: int = 1) -> ChosenLayers:
    """Decide which convolutions and linear layers are masked; norms, embeddings and biases never are.

    Args:
        network: A generator, an adapted one, or a diffusion network.
        dense_layers: Parts that stay dense, by dotted prefix of their names. None means the first and the last layer:
            they read the picture and write it, hold little and lose most.
        group_size: M of N:M sparsity; it must divide a layer's inputs.

    Returns:
        The choice, in the order of definition.

    Raises:
        ValueError: A prefix fits no layer, a layer's weight is parametrised already, or no layer is left.
    """
    parts = _parts(network)
    names = list(parts)
    if dense_layers is None:
        excluded = {names[0], names[-1]} if names else set()
    else:
        below = {part: {name for name in names if name == part or name.startswith(f"{part}.")} for part in dense_layers}
        # of a part that an adapter stores whole the layers inside have no name here
        unknown = [part for part, found in below.items() if not found]
        if unknown:
            tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"dense_layers names {', '.join(unknown)}, but the network's layers stand under {tops}")
        excluded = set().union(*below.values())
    masked: dict[str, WeightLayer] = {}
    dense: dict[str, str] = {}
    for name, part in parts.items():
        if isinstance(part, ModulesToSaveWrapper):
            dense[name] = "the adapter stores it whole"
            continue
        inputs = part.layer.weight.shape[1]
        if is_parametrized(part.layer):
            raise ValueError(
                f"layer {name} is parametrised already; give one sparsity callback, on a network without masks"
            )
        if name in excluded:
            dense[name] = "first or last layer" if dense_layers is None else "named in dense_layers"
        elif inputs % group_size:
            dense[name] = f"{inputs} inputs, which {group_size} does not divide"
        else:
            masked[name] = part
    if not masked:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dense.items()) or "it has no such layer"
        raise ValueError(f"no convolution or linear layer of {type(network).__name__} can be masked ({reasons})")
    return ChosenLayers(masked, dense)


def add_masks(layers: Mapping[str, WeightLayer], make: Callable[[Tensor], WeightMask]) -> None:
    """Put a mask on each layer's weight; before optimizers are made, since the order of the parameters changes.

    A low-rank delta is folded into the weight first, in every forward: the mask then applies to what is deployed. PEFT
    is told that the delta is merged, so that it adds none.

    Args:
        layers: Of ``choose_layers``; changed in place.
        make: Makes the mask of a weight.
    """
    for layer, lora in layers.values():
        if lora is not None:
            register_parametrization(layer, "weight", _FoldedDelta(lora))
            lora.merged_adapters = list(lora.active_adapters)
        register_parametrization(layer, "weight", make(layer.weight))


def _mask_of(layer: nn.Module) -> WeightMask | None:
    if is_parametrized(layer, "weight"):
        parametrisations = layer.parametrizations["weight"]  # type: ignore[index]  # a ModuleDict
        mask = parametrisations[-1]
        if isinstance(mask, WeightMask):
            return mask
    return None


def find_masks(network: nn.Module) -> dict[str, WeightMask]:
    """Masks by the name of their layer."""
    found = {name: _mask_of(layer) for name, (layer, _) in weight_layers(network).items()}
    return {name: mask for name, mask in found.items() if mask is not None}


def sparsity_of(network: nn.Module) -> dict[str, list[int]]:
    """What ``restore_masks`` needs, for a checkpoint: ``WeightMask.pattern`` by layer."""
    return {name: mask.pattern for name, mask in find_masks(network).items()}


def restore_masks(network: nn.Module, patterns: Mapping[str, list[int]]) -> None:
    """Give a network the masks of a checkpoint, before its weights are loaded.

    Args:
        network: Without masks, or with masks on the same layers, which then take the checkpoint's N and M.
        patterns: Of ``sparsity_of``.

    Raises:
        ValueError: The network has other layers, or masks of another kind or on others of them.
    """
    layers, present = weight_layers(network), find_masks(network)
    unknown = sorted(patterns.keys() - layers.keys())
    if unknown:
        raise ValueError(f"the checkpoint has masks on {', '.join(unknown[:3])}, which the network here lacks")
    if not present:
        add_masks({name: layers[name] for name, pattern in patterns.items() if pattern}, lambda _: NToMMask(1, 1))
        add_masks({name: layers[name] for name, pattern in patterns.items() if not pattern}, FixedMask)
        present = find_masks(network)
    if present.keys() != patterns.keys() or any(
        bool(patterns[name]) != isinstance(mask, NToMMask) for name, mask in present.items()
    ):
        raise ValueError(
            "the checkpoint's masks are of another kind or on other layers than the sparsity callback's; go on with "
            "the callback and the dense_layers that its config.yaml names"
        )
    for name, mask in present.items():
        if isinstance(mask, NToMMask):
            mask.kept, mask.group_size = patterns[name]


def _with_class_of_its_own(layer: nn.Module) -> nn.Module:
    """Part a copied layer from the class of the layer that it was copied from.

    ``copy.deepcopy`` leaves a copy with the class that ``register_parametrization`` made for the first, and
    ``remove_parametrizations`` on the copy deletes the weight's property from that class: the first has no weight any
    more. No issue is known upstream; a test fails once it is mended.
    """
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    return layer


@torch.no_grad()
def take_off_masks(network: nn.Module) -> dict[nn.Conv2d | nn.Linear, Tensor]:
    """Remove the masks; layers have their dense weights again, deltas are PEFT's again.

    Returns:
        The weight, masked and with its delta, that each layer worked with.
    """
    weights = {}
    for layer, lora in weight_layers(network).values():
        if _mask_of(layer) is not None:
            weights[layer] = layer.weight.detach().clone()
            remove_parametrizations(_with_class_of_its_own(layer), "weight", leave_parametrized=False)
            if lora is not None:
                lora.merged_adapters = []
    return weights


@torch.no_grad()
def bake_masks(network: nn.Module) -> nn.Module:
    """Make the masked weights of a network without an adapter its plain weights, in place; without masks do nothing.

    Returns:
        The same network.
    """
    for layer, weight in take_off_masks(network).items():
        layer.weight.copy_(weight)
    return network


@torch.no_grad()
def plain_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a masked network's tensors, such as its moving average, into those of the network with baked weights.

    Args:
        network: With masks or without.
        tensors: By the names of its parameters.

    Returns:
        Masked tensors by the names that the parameters have without masks.
    """
    plain = {}
    for name, tensor in tensors.items():
        layer, parametrised, _ = name.partition(_KEY)
        if parametrised:
            chain: ParametrizationList = network.get_submodule(layer).parametrizations["weight"]  # type: ignore[index, assignment]
            value = tensor
            for parametrisation in chain:
                value = parametrisation(value)
            plain[f"{layer}.weight"] = value
        else:
            plain[name] = tensor
    return plain


def is_mask(name: str) -> bool:
    """Whether a name in a network's ``state_dict`` is a fixed mask's."""
    return _KEY in name and name.endswith(".mask")


def masked_share(network: nn.Module) -> float:
    """Share of zeros among the weights of the masked layers."""
    weights = [layer.weight for layer, _ in weight_layers(network).values() if _mask_of(layer) is not None]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(sum(weight.numel() for weight in weights), 1)
