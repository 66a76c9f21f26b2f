"""Up- and down-sampling with StyleGAN2's low-pass filter in plain PyTorch operations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FIRFilter(nn.Module):
    """Filter each channel with the outer product of (1, 3, 3, 1) / 8 with itself.

    StyleGAN2 (arXiv 1912.04958) and its code use this filter wherever a map changes its size; the custom kernel
    ``upfirdn2d`` is a depthwise convolution here, with derivatives of every order and on every device. The filter is
    symmetric, so that convolution and correlation are one. It is not learned, nor in the state dict.

    Args:
        padding: Zeros on each side in pixels.
        stride: Step in pixels; 2 halves the size.
        gain: Factor of the filter, whose sum is 1 before.
    """

    kernel: Tensor

    def __init__(self, *, padding: int, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", gain * taps.outer(taps)[None, None], persistent=False)
        self.padding = padding
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Filter (B, C, H, W); each side becomes (side + 2 · padding - 4) // stride + 1."""
        channels = features.shape[1]
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return F.conv2d(features, kernel, stride=self.stride, padding=self.padding, groups=channels)


class FIRUpsample(FIRFilter):
    """Double the size: put a zero after each pixel, filter, and multiply by 4 for the zeros."""

    def __init__(self) -> None:
        super().__init__(padding=1, stride=2, gain=4.0)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        channels = features.shape[1]
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return F.conv_transpose2d(features, kernel, stride=self.stride, padding=self.padding, groups=channels)
