"""Layers with spectral normalisation, as BigGAN's two networks use them."""

from typing import Literal, TypeVar

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

Initialization = Literal["orthogonal", "normal"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear, nn.Embedding)

EPSILON = 1e-6  # --SN_eps of BigGAN-PyTorch's scripts/launch_BigGAN_bs256x8.sh


def initialized(layer: Layer, initialization: Initialization) -> Layer:
    """Draw a layer's weight as BigGAN-PyTorch's ``init_weights`` does; its bias keeps torch's initialisation.

    Args:
        layer: The layer, changed in place.
        initialization: "orthogonal" (its ``ortho``), or "normal" with a deviation of 0.02 (its ``N02``).

    Returns:
        The layer.
    """
    if initialization == "orthogonal":
        nn.init.orthogonal_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=0.02)
    return layer


def spectral(layer: Layer, initialization: Initialization) -> Layer:
    """Initialise a layer and divide its weight by its largest singular value (arXiv 1802.05957, algorithm 1).

    torch's own parametrisation: one step of power iteration at each call in training mode, none in eval mode, where
    no buffer moves. Two differences to BigGAN-PyTorch's ``layers.SN``, neither of which changes what is estimated:
    the vectors start after 15 steps of power iteration instead of none, and both are stored, where ``layers.SN``
    stores one and computes the other at each call.

    Args:
        layer: The layer, changed in place. A convolution's weight is the matrix (outputs, all else).
        initialization: See ``initialized``.

    Returns:
        The layer.
    """
    spectral_norm(initialized(layer, initialization), eps=EPSILON)
    return layer
