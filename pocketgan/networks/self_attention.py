"""The non-local block of SAGAN and BigGAN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketgan.networks.spectral_layer import Initialization, spectral


class SelfAttention(nn.Module):
    """x + gain · output(softmax(queryᵀ key) value), with keys and values of every second row and column.

    SAGAN (arXiv 1805.08318, equations 1 to 3) as BigGAN-PyTorch's ``layers.Attention`` has it: an eighth of the
    channels for queries and keys, half for values, keys and values halved in side by max pooling, convolutions of one
    pixel without biases under spectral normalisation, a gain that starts at 0. The products are written out rather
    than left to a fused kernel, since those have no second derivative and a gradient penalty needs one.

    Args:
        channels: C, at least 8.
        initialization: How weights are drawn; see ``spectral_layer.initialized``.

    Raises:
        ValueError: There are fewer than 8 channels.
    """

    def __init__(self, channels: int, initialization: Initialization = "orthogonal") -> None:
        super().__init__()
        if channels < 8:
            raise ValueError(
                f"attention over {channels} channels would have no query channel, since those are an eighth of it; "
                f"use at least 8 channels there, by a larger width, or no attention"
            )
        self.query, self.key, self.value, self.output = (
            spectral(nn.Conv2d(inputs, outputs, 1, bias=False), initialization)
            for inputs, outputs in (
                (channels, channels // 8),
                (channels, channels // 8),
                (channels, channels // 2),
                (channels // 2, channels),
            )
        )
        self.gain = nn.Parameter(torch.tensor(0.0))

    def forward(self, features: Tensor) -> Tensor:
        """Attend within features (B, C, H, W), H and W even; returns the same shape."""
        query = self.query(features).flatten(2)
        key = F.max_pool2d(self.key(features), 2).flatten(2)
        value = F.max_pool2d(self.value(features), 2).flatten(2)
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        attended = (value @ weights.transpose(1, 2)).unflatten(2, features.shape[2:])
        return features + self.gain * self.output(attended)
