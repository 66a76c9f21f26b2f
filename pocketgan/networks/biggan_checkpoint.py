"""BigGAN-PyTorch's weights in this package's BigGAN networks."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pocketgan.networks.biggan_discriminator import BigGANDiscriminator
from pocketgan.networks.biggan_generator import BigGANGenerator
from pocketgan.networks.biggan_layout import (
    DISCRIMINATOR_MULTIPLIERS,
    FIRST_SIDE,
    GENERATOR_MULTIPLIERS,
    HALVING_BLOCKS,
)
from pocketgan.networks.spectral_layer import EPSILON

Shapes = dict[str, tuple[int, ...]]

_GENERATOR_NAMES = (
    (r"^embedding\.", "shared."),
    (r"^output_norm\.weight$", "output_layer.0.gain"),
    (r"^output_norm\.", "output_layer.0."),
    (r"^output_convolution\.", "output_layer.2."),
)
_DISCRIMINATOR_NAMES = ((r"^embedding\.", "embed."),)
_SHARED_NAMES = (
    (r"^(blocks\.\d+)\.attention\.gain$", r"\1.1.gamma"),
    (r"^(blocks\.\d+)\.attention\.query\.", r"\1.1.theta."),
    (r"^(blocks\.\d+)\.attention\.key\.", r"\1.1.phi."),
    (r"^(blocks\.\d+)\.attention\.value\.", r"\1.1.g."),
    (r"^(blocks\.\d+)\.attention\.output\.", r"\1.1.o."),
    (r"^(blocks\.\d+)\.norm(\d)\.(?:norm\.)?", r"\1.0.bn\2."),
    (r"^(blocks\.\d+)\.convolution(\d)\.", r"\1.0.conv\2."),
    (r"^(blocks\.\d+)\.shortcut\.", r"\1.0.conv_sc."),
    (r"parametrizations\.weight\.original$", "weight"),
    (r"parametrizations\.weight\.0\._u$", "u0"),
    (r"running_mean$", "stored_mean"),
    (r"running_var$", "stored_var"),
)


def load_biggan(network: BigGANGenerator | BigGANDiscriminator, file: Path) -> None:
    """Put weights of BigGAN-PyTorch into a network of the same architecture.

    Each tensor of the file goes to one place, but for ``sv0``, singular values that BigGAN-PyTorch only logs. In eval
    mode the network then equals BigGAN-PyTorch's in eval mode:

    * Spectral norm: ``layers.SN`` stores u alone and divides by |W v| with v = Wᵀu / |Wᵀu|. Here both vectors are
      stored: that v, and W v / |W v|. Training mode goes on half a power iteration further than there: its first
      division is by |Wᵀu| with the new u.
    * Batch norm: ``stored_mean`` and ``stored_var`` become the running averages, which eval mode uses as
      BigGAN-PyTorch does under ``--G_eval_mode``. They are running averages in the published 128 px run; standing
      statistics are no part of a file, since BigGAN-PyTorch gathers them when it samples.

    Args:
        network: Changed in place. For a generator's average give ``G_ema.pth``.
        file: A state dict, written by ``torch.save`` or as ``.safetensors``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else than tensors, or weights of another architecture.
    """
    theirs = _read(file)
    _check(network, theirs, file)
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("._v"):
            continue
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(value)  # not known; momentum 0.1 does not use it
        elif name.endswith("._u"):
            prefix = name.removesuffix("_u")
            weight = theirs[_their_name(prefix.removesuffix("0.") + "original", network)].flatten(1).float()
            v = F.normalize(theirs[_their_name(name, network)][0].float() @ weight, dim=0, eps=EPSILON)
            state[f"{prefix}_u"], state[f"{prefix}_v"] = F.normalize(weight @ v, dim=0, eps=EPSILON), v
        else:
            state[name] = theirs[_their_name(name, network)]
    network.load_state_dict(state)


def _read(file: Path) -> dict[str, Tensor]:
    wanted = "BigGAN-PyTorch's G_ema.pth, G.pth or D.pth"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; give the path of {wanted}")
    try:
        state: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except UnpicklingError as error:
        raise ValueError(
            f"{file} holds pickled objects, or nothing that torch.save wrote; objects can run code and are not loaded: "
            f"where you trust the file, load it once elsewhere and save the network's state_dict() as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        said = next(iter(str(error).splitlines()), "it ends early")
        raise ValueError(f"{file} cannot be read ({said}); check it, or fetch it again") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds a {type(state).__name__} and no state dict; give {wanted}")
    if others := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{file} holds more than tensors ({', '.join(others[:3])}); give {wanted}")
    return dict(state)


def _their_name(name: str, network: BigGANGenerator | BigGANDiscriminator) -> str:
    own = _GENERATOR_NAMES if isinstance(network, BigGANGenerator) else _DISCRIMINATOR_NAMES
    for pattern, replacement in (*own, *_SHARED_NAMES):
        name = re.sub(pattern, replacement, name)
    return name


def _expected(network: BigGANGenerator | BigGANDiscriminator) -> Shapes:
    """Names and shapes of the network's file."""
    expected: Shapes = {}
    for name, value in network.state_dict().items():
        if name.endswith("._u"):
            expected[_their_name(name, network)] = (1, len(value))
            expected[_their_name(name, network).removesuffix("u0") + "sv0"] = (1,)
        elif not name.endswith(("._v", "num_batches_tracked")):
            expected[_their_name(name, network)] = tuple(value.shape)
    return expected


def _check(network: BigGANGenerator | BigGANDiscriminator, theirs: dict[str, Tensor], file: Path) -> None:
    expected, found = _expected(network), {name: tuple(value.shape) for name, value in theirs.items()}
    if found == expected:
        return
    differences = [
        *(
            f"{name} is {found[name]} in the file and {shape} here"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
        *(f"{name} {shape} is missing from the file" for name, shape in expected.items() if name not in found),
        *(f"{name} {shape} is in the file alone" for name, shape in found.items() if name not in expected),
    ]
    more = f"; and {len(differences) - 3} more differences" if len(differences) > 3 else ""
    raise ValueError(
        f"{file} does not fit this {type(network).__name__}: {'; '.join(differences[:3])}{more}; "
        f"{_remedy(network, expected, found)}"
    )


def _remedy(network: BigGANGenerator | BigGANDiscriminator, expected: Shapes, found: Shapes) -> str:
    with suppress(KeyError, ValueError):
        arguments = _arguments(network, found)
        if arguments != _arguments(network, expected):
            with torch.device("meta"):
                other = type(network)(**arguments, initialization="normal")
            if _expected(other) == found:
                return f"make it with {', '.join(f'{name}={value}' for name, value in arguments.items())}"
    return "give a file of that network, trained by BigGAN-PyTorch with --hier --G_shared and its plain batch norm"


def _arguments(network: BigGANGenerator | BigGANDiscriminator, shapes: Shapes) -> dict[str, Any]:
    """The constructor's arguments that shapes imply.

    Raises:
        KeyError: A name or a number of blocks is not to be had from a network of this kind.
        ValueError: A shape is of another kind.
    """
    blocks = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1)
    attended = [index for index in range(blocks) if f"blocks.{index}.1.gamma" in shapes]
    if isinstance(network, BigGANGenerator):
        size = {len(multipliers) - 1: size for size, multipliers in GENERATOR_MULTIPLIERS.items()}[blocks]
        classes, shared_size = shapes["shared.weight"]
        _, chunk_size = shapes["linear.weight"]
        _, channels, _, _ = shapes["output_layer.2.weight"]
        return {
            "size": size,
            "width": channels // GENERATOR_MULTIPLIERS[size][-1],
            "classes": classes,
            "latent_size": chunk_size * (blocks + 1),
            "shared_size": shared_size,
            "attention_sizes": tuple(2 * FIRST_SIDE * 2**index for index in attended),
        }
    size = {len(multipliers): size for size, multipliers in DISCRIMINATOR_MULTIPLIERS.items()}[blocks]
    classes, _ = shapes["embed.weight"]
    channels, _, _, _ = shapes["blocks.0.0.conv1.weight"]
    return {
        "size": size,
        "width": channels // DISCRIMINATOR_MULTIPLIERS[size][0],
        "classes": classes,
        "attention_sizes": tuple(sorted({size // 2 ** min(index + 1, HALVING_BLOCKS[size]) for index in attended})),
    }
