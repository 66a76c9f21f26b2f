"""Normalisation as a slot of the networks."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(ABC):
    """Makes the normalisation that follows a convolution."""

    @abstractmethod
    def __call__(self, channels: int) -> nn.Module:
        """Make one layer for feature maps of this many channels."""


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's instance norm without running statistics, (B, C, H, W) to the same, by the kernel of group norm.

    One group a channel is the same mathematics, and faster on the CPU in float32, since torch's own instance norm goes
    through batch norm on a reshaped map. Exporters see torch's own.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise."""
        if torch.compiler.is_exporting() or features.shape[2:].numel() == 1:  # torch refuses a single pixel
            return super().forward(features)
        return F.group_norm(features, self.num_features, self.weight, self.bias, self.eps)


class InstanceNorm(Norm):
    """Statistics of each photo and channel, no parameters: pix2pix's and so E2GAN's choice.

    It does not fold into a convolution on the device.
    """

    def __call__(self, channels: int) -> nn.Module:
        """Make one layer."""
        return InstanceNorm2d(channels)


class GroupNorm(Norm):
    """Statistics of each photo over groups of channels; keeps more of a flat picture's colour than instance norm.

    Args:
        groups: Number of groups; channels must be a multiple of it.
    """

    def __init__(self, groups: int = 8) -> None:
        self.groups = groups

    def __call__(self, channels: int) -> nn.Module:
        """Make one layer."""
        if channels % self.groups:
            raise ValueError(f"{channels} channels do not divide into {self.groups} groups; change groups or width")
        return nn.GroupNorm(self.groups, channels)


class BatchNorm(Norm):
    """Statistics of the training set: folds into the convolution on the device, at no cost there.

    With several devices, set ``--trainer.sync_batchnorm true``. Adaptation leaves its running statistics as the base
    has them, so that an adapter need not store them.
    """

    def __call__(self, channels: int) -> nn.Module:
        """Make one layer."""
        return nn.BatchNorm2d(channels)
