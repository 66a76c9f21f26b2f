"""Weights of public StyleGAN2 checkpoints.

Two layouts are read, as state dicts in a file of ``torch.save`` or, one network a file, in safetensors:

* NVlabs' stylegan2-ada-pytorch (``training/networks.py``), which stylegan3's ``networks_stylegan2.py`` shares:
  ``synthesis.b8.conv0.affine.weight``, ``b1024.fromrgb.weight``. Either one network's state dict, or a dict of them
  under ``G_ema``, ``G`` and ``D``. What is published are pickles of whole networks; these are refused with the line
  that makes a state dict in the user's own checkout.
* rosinality's stylegan2-pytorch (``model.py``): ``convs.0.conv.modulation.weight``, ``convs.1.conv1.0.weight``. Either
  one network's state dict, or its training checkpoint with ``g_ema``, ``g`` and ``d``.

Both write weights as here: drawn with variance 1 and scaled in use, the weights of transposed convolutions unflipped,
1 in the biases of new affine maps. They differ in names, in singleton dimensions, and in rosinality's filters, whose
upsampling ones hold the factor 4. Its ``channel_multiplier`` 2 is ``channel_base`` 32,768 here, 1 is 16,384.
stylegan2-ada-pytorch clamps features to ±256 where it uses float16; that is left out here. The group size of the
discriminator's minibatch deviation is in neither: 4 in both codes, except where stylegan2-ada-pytorch's options say so.
"""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketgan.networks.stylegan2_discriminator import StyleGAN2Discriminator
from pocketgan.networks.stylegan2_generator import StyleGAN2Generator

_MEAN_STYLE_LATENTS = 4096  # as rosinality's generate.py draws
_SHOWN_DIFFERENCES = 3
_TORCH_FILE_STARTS = (b"PK", b"\x80\x02")  # zip files, and pickle protocol 2 of torch before 1.6

# a checkpoint's key: the key here, and the shape there where singletons make it another
_Keys = dict[str, tuple[str, tuple[int, ...] | None]]


def load_stylegan2_ada_generator(generator: StyleGAN2Generator, file: Path, *, averaged: bool = True) -> None:
    """Put the weights of a stylegan2-ada-pytorch generator into this one.

    Args:
        generator: Of the checkpoint's size and widths; is changed in place.
        file: A state dict, or a dict with ``G_ema`` or ``G``.
        averaged: Take the moving average ``G_ema`` where the file has both; ``G`` is what was trained.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no such weights, or those of another architecture.
    """
    state = _read(file, "G_ema" if averaged else "G", _ADA_REMEDY)
    _put(generator, state, *_ada_generator(generator), file)


def load_stylegan2_ada_discriminator(discriminator: StyleGAN2Discriminator, file: Path) -> None:
    """Put the weights of a stylegan2-ada-pytorch discriminator into this one.

    Args:
        discriminator: Of the checkpoint's size and widths; is changed in place.
        file: A state dict, or a dict with ``D``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no such weights, or those of another architecture.
    """
    _put(discriminator, _read(file, "D", _ADA_REMEDY), *_ada_discriminator(discriminator), file)


def load_rosinality_stylegan2_generator(generator: StyleGAN2Generator, file: Path, *, averaged: bool = True) -> None:
    """Put the weights of a rosinality/stylegan2-pytorch generator into this one.

    The mean style is the file's ``latent_avg`` if it has one, as converted checkpoints do, else the mean of 4,096
    latents' styles, as its ``generate.py`` makes it; here of fixed latents.

    Args:
        generator: Of the checkpoint's size and widths; is changed in place.
        file: A state dict, or a dict with ``g_ema`` or ``g``.
        averaged: Take the moving average ``g_ema`` where the file has both; ``g`` is what was trained.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no such weights, or those of another architecture.
    """
    state = _read(file, "g_ema" if averaged else "g", _ROSINALITY_REMEDY)
    has_mean_style = "latent_avg" in state
    state.setdefault("latent_avg", generator.mean_style)
    _put(generator, state, *_rosinality_generator(generator), file)
    if not has_mean_style:
        seeded = torch.Generator().manual_seed(0)
        latents = torch.randn(_MEAN_STYLE_LATENTS, generator.latent_size, generator=seeded)
        with torch.no_grad():
            generator.mean_style.copy_(generator.mapping(latents.to(generator.mean_style)).mean(0))


def load_rosinality_stylegan2_discriminator(discriminator: StyleGAN2Discriminator, file: Path) -> None:
    """Put the weights of a rosinality/stylegan2-pytorch discriminator into this one.

    Args:
        discriminator: Of the checkpoint's size and widths; is changed in place.
        file: A state dict, or a dict with ``d``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no such weights, or those of another architecture.
    """
    state = _read(file, "d", _ROSINALITY_REMEDY)
    _put(discriminator, state, *_rosinality_discriminator(discriminator), file)


_ADA_REMEDY = (
    'turn it into state dicts in your own checkout of stylegan2-ada-pytorch with python -c "import legacy, torch; '
    "networks = legacy.load_network_pkl(open('{name}', 'rb')); torch.save({{key: networks[key].state_dict() for key in "
    "('G', 'D', 'G_ema')}}, '{stem}.pt')\" and name {stem}.pt here"
)
_ROSINALITY_REMEDY = (
    "turn it into state dicts in your own checkout of stylegan2-pytorch, by its convert_weight.py if {name} is NVlabs' "
    "pickle, and name the .pt file here"
)


def _read(file: Path, part: str, remedy: str) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; name a file with a StyleGAN2 state dict")
    if file.suffix == ".safetensors":
        try:
            return dict(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}); check it, or write it again") from error
    refusal = ValueError(
        f"{file} is a pickle of whole networks or damaged, and pickled objects are not read because they run code; "
        + remedy.format(name=file.name, stem=file.stem)
    )
    with file.open("rb") as opened:
        if opened.read(2) not in _TORCH_FILE_STARTS:
            raise refusal
    try:
        # rosinality's train.py saves its options as a Namespace, a class without code of its own
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise refusal from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds a {type(state).__name__}; a state dict is needed")
    if state and all(isinstance(value, Tensor) for value in state.values()):
        return dict(state)
    if not isinstance(state.get(part), Mapping):
        raise ValueError(f"{file} holds {', '.join(map(str, state))}, but no state dict {part}; name a file that does")
    found = dict(state[part])
    if part == "g_ema" and "latent_avg" in state:
        found["latent_avg"] = state["latent_avg"]
    return found


def _put(network: nn.Module, state: dict[str, Any], keys: _Keys, filters: dict[str, float], file: Path) -> None:
    own = network.state_dict()
    shapes = {key: shape or tuple(own[ours].shape) for key, (ours, shape) in keys.items()}
    shapes.update(dict.fromkeys(filters, (4, 4)))
    differences = [f"{key} is missing" for key in shapes if key not in state]
    differences += [f"{key} has no place" for key in state if key not in shapes]
    for key, shape in shapes.items():
        if key in state and tuple(state[key].shape) != shape:
            differences.append(f"{key} is {tuple(state[key].shape)}, {shape} is needed")
    if differences:
        more = len(differences) - _SHOWN_DIFFERENCES
        raise ValueError(
            f"{file} does not fit this {type(network).__name__}: {'; '.join(differences[:_SHOWN_DIFFERENCES])}"
            f"{f'; and {more} more' if more > 0 else ''}. Build the network with the checkpoint's size, channel_base, "
            "channel_max, channel_multiplier, image_channels, and of a generator latent_size and mapping_layers; "
            "networks with classes or of another structure than configurations E and F are not read"
        )
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for key, gain in filters.items():
        if not torch.allclose(state[key].float(), gain * taps.outer(taps)):
            raise ValueError(f"{file} has another filter than (1, 3, 3, 1) in {key}; it is not read")
    network.load_state_dict({ours: state[key].reshape(own[ours].shape) for key, (ours, _) in keys.items()})


def _linear(theirs: str, ours: str) -> _Keys:
    return {f"{theirs}.{name}": (f"{ours}.{name}", None) for name in ("weight", "bias")}


def _ada_generator(generator: StyleGAN2Generator) -> tuple[_Keys, dict[str, float]]:
    keys: _Keys = {"mapping.w_avg": ("mean_style", None)}
    filters: dict[str, float] = {}
    for index in range(len(generator.mapping.layers)):
        keys |= _linear(f"mapping.fc{index}", f"mapping.layers.{index}")
    keys["synthesis.b4.const"] = ("constant", tuple(generator.constant.shape[1:]))
    for index in range(len(generator.blocks)):
        theirs, ours = f"synthesis.b{4 * 2**index}", f"blocks.{index}"
        filters[f"{theirs}.resample_filter"] = 1.0
        for their_layer, our_layer in (("conv0", "up"), ("conv1", "layer"))[index == 0 :]:
            theirs_, ours_ = f"{theirs}.{their_layer}", f"{ours}.{our_layer}"
            filters[f"{theirs_}.resample_filter"] = 1.0
            keys |= _linear(f"{theirs_}.affine", f"{ours_}.convolution.affine")
            keys[f"{theirs_}.weight"] = (f"{ours_}.convolution.weight", None)
            keys[f"{theirs_}.bias"] = (f"{ours_}.bias", None)
            if generator.noise:
                keys[f"{theirs_}.noise_const"] = (f"{ours_}.noise", None)
                keys[f"{theirs_}.noise_strength"] = (f"{ours_}.noise_strength", None)
        keys |= _linear(f"{theirs}.torgb.affine", f"{ours}.to_image.convolution.affine")
        keys[f"{theirs}.torgb.weight"] = (f"{ours}.to_image.convolution.weight", None)
        keys[f"{theirs}.torgb.bias"] = (f"{ours}.to_image.bias", None)
    return keys, filters


def _ada_discriminator(discriminator: StyleGAN2Discriminator) -> tuple[_Keys, dict[str, float]]:
    size = discriminator.size
    keys = _linear(f"b{size}.fromrgb", "from_image")
    filters = {f"b{size}.fromrgb.resample_filter": 1.0, "b4.conv.resample_filter": 1.0}
    for index in range(len(discriminator.blocks)):
        theirs, ours = f"b{size // 2**index}", f"blocks.{index}"
        filters[f"{theirs}.resample_filter"] = 1.0
        filters |= {f"{theirs}.{layer}.resample_filter": 1.0 for layer in ("conv0", "conv1", "skip")}
        keys |= _linear(f"{theirs}.conv0", f"{ours}.first") | _linear(f"{theirs}.conv1", f"{ours}.second")
        keys[f"{theirs}.skip.weight"] = (f"{ours}.skip.weight", None)
    keys |= _linear("b4.conv", "convolution") | _linear("b4.fc", "linear") | _linear("b4.out", "output")
    return keys, filters


def _rosinality_modulated(theirs: str, ours: str, network: nn.Module) -> _Keys:
    weight = f"{ours}.convolution.weight"
    return {
        f"{theirs}.conv.weight": (weight, (1, *network.get_parameter(weight).shape)),
        **_linear(f"{theirs}.conv.modulation", f"{ours}.convolution.affine"),
    }


def _rosinality_generator(generator: StyleGAN2Generator) -> tuple[_Keys, dict[str, float]]:
    keys: _Keys = {"input.input": ("constant", None), "latent_avg": ("mean_style", None)}
    filters: dict[str, float] = {}
    for index in range(len(generator.mapping.layers)):
        keys |= _linear(f"style.{index + 1}", f"mapping.layers.{index}")
    layers = ["blocks.0.layer"]
    for index in range(1, len(generator.blocks)):
        layers += [f"blocks.{index}.up", f"blocks.{index}.layer"]
        filters[f"convs.{2 * index - 2}.conv.blur.kernel"] = 4.0
        filters[f"to_rgbs.{index - 1}.upsample.kernel"] = 4.0
    for index, ours in enumerate(layers):
        theirs = f"convs.{index - 1}" if index else "conv1"
        keys |= _rosinality_modulated(theirs, ours, generator)
        keys[f"{theirs}.activate.bias"] = (f"{ours}.bias", None)
        if generator.noise:
            side = 4 * 2 ** ((index + 1) // 2)
            keys[f"{theirs}.noise.weight"] = (f"{ours}.noise_strength", (1,))
            keys[f"noises.noise_{index}"] = (f"{ours}.noise", (1, 1, side, side))
    for index in range(len(generator.blocks)):
        theirs, ours = f"to_rgbs.{index - 1}" if index else "to_rgb1", f"blocks.{index}.to_image"
        keys |= _rosinality_modulated(theirs, ours, generator)
        keys[f"{theirs}.bias"] = (f"{ours}.bias", (1, generator.image_channels, 1, 1))
    return keys, filters


def _rosinality_discriminator(discriminator: StyleGAN2Discriminator) -> tuple[_Keys, dict[str, float]]:
    def convolution(theirs: str, ours: str, place: int = 0) -> _Keys:
        return {
            f"{theirs}.{place}.weight": (f"{ours}.weight", None),
            f"{theirs}.{place + 1}.bias": (f"{ours}.bias", None),
        }

    keys = convolution("convs.0", "from_image")
    filters: dict[str, float] = {}
    for index in range(len(discriminator.blocks)):
        theirs, ours = f"convs.{index + 1}", f"blocks.{index}"
        keys |= convolution(f"{theirs}.conv1", f"{ours}.first") | convolution(f"{theirs}.conv2", f"{ours}.second", 1)
        keys[f"{theirs}.skip.1.weight"] = (f"{ours}.skip.weight", None)
        filters |= {f"{theirs}.conv2.0.kernel": 1.0, f"{theirs}.skip.0.kernel": 1.0}
    keys |= convolution("final_conv", "convolution")
    keys |= _linear("final_linear.0", "linear") | _linear("final_linear.1", "output")
    return keys, filters
