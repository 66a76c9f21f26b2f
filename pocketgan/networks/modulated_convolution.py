"""StyleGAN2's convolution, whose weights depend on a style."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketgan.networks.equalized_layer import EqualizedLinear
from pocketgan.networks.fir_filter import FIRFilter


class ModulatedConvolution(nn.Module):
    """Convolve with weights scaled by a style, then normalised (arXiv 1912.04958, equations 1 to 3).

    w'_ijk = s_i · w_ijk for input i, and w''_ijk = w'_ijk / √(Σ_ik w'_ijk² + 1e-8) for output j; s is an affine map of
    the style. In place of a convolution with weights of its own for each image, the input is multiplied by s_i and the
    output by the root's inverse: the same function, with one set of weights for the batch, as NVlabs'
    stylegan2-ada-pytorch does in training. Its rescaling for float16 is left out: train in float32 or bfloat16.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Side of the kernel in pixels, odd; 3 if it upsamples.
        style_size: Features of a style.
        demodulate: Normalise the weights, equation 3.
        upsample: Double the size with a transposed convolution of stride 2 and the FIR filter.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_size: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = EqualizedLinear(style_size, inputs, bias=1.0)
        self.blur = FIRFilter(padding=1, gain=4.0) if upsample else None
        self.gain = (inputs * kernel**2) ** -0.5
        self.padding = kernel // 2
        self.demodulate = demodulate

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Map (B, inputs, H, W) by styles (B, style_size) to (B, outputs, H, W), or twice the size."""
        scales = self.affine(style)
        weight = self.weight * self.gain
        features = features * scales[:, :, None, None]
        if self.blur is None:
            features = F.conv2d(features, weight, padding=self.padding)
        else:
            features = self.blur(F.conv_transpose2d(features, weight.transpose(0, 1), stride=2))
        if self.demodulate:
            squares = F.linear(scales.square(), weight.square().sum((2, 3)))
            features = features * (squares + 1e-8).rsqrt()[:, :, None, None]
        return features
