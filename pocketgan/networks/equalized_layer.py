"""Layers with an equalised learning rate, of which StyleGAN2 is built."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EqualizedLinear(nn.Module):
    """A linear layer whose weights are scaled when used, not when drawn.

    Weights are drawn with variance 1 and multiplied by 1 / √inputs in each pass, so that Adam moves all layers at the
    same relative pace (Karras et al. 2018, arXiv 1710.10196, section 4.1). A learning rate multiplier m divides the
    drawn weights by m and multiplies weights and bias by m in use, as in StyleGAN's mapping network.

    Args:
        inputs: Features of the input.
        outputs: Features of the output.
        bias: First value of each bias.
        learning_rate_multiplier: The m.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, learning_rate_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / learning_rate_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.weight_gain = learning_rate_multiplier / inputs**0.5
        self.bias_gain = learning_rate_multiplier

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs)."""
        return F.linear(features, self.weight * self.weight_gain, self.bias * self.bias_gain)


class EqualizedConvolution(nn.Module):
    """A convolution whose weights are drawn with variance 1 and scaled by 1 / √(inputs · kernel²) in each pass.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Side of the kernel in pixels.
        stride: Step in pixels.
        padding: Zeros on each side in pixels; half the kernel, which keeps the size at stride 1, if None.
        bias: Add a bias.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain = (inputs * kernel**2) ** -0.5
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        return F.conv2d(features, self.weight * self.gain, self.bias, self.stride, self.padding)


class ScaledLeakyReLU(nn.Module):
    """√2 · leaky ReLU of slope 0.2, which about keeps the variance of what passes."""

    def forward(self, features: Tensor) -> Tensor:
        """Apply it to features of any shape."""
        return F.leaky_relu(features, 0.2) * 2**0.5
