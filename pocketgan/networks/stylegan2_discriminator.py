"""StyleGAN2's discriminator (Karras et al. 2020, arXiv 1912.04958), configuration F."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from pocketgan.networks.equalized_layer import EqualizedConvolution, EqualizedLinear, ScaledLeakyReLU
from pocketgan.networks.fir_filter import FIRFilter
from pocketgan.networks.image_discriminator import ImageDiscriminator
from pocketgan.networks.stylegan2_width import stylegan2_widths


class MinibatchDeviation(nn.Module):
    """Append a channel that says how much the images of a group differ (Karras et al. 2018, arXiv 1710.10196).

    The standard deviation over the group, averaged over channels and pixels. As in NVlabs' code, image i belongs to
    group i mod n. That code refuses a batch that the group size does not divide; here there are n = ⌈batch / group
    size⌉ groups whose sizes differ by at most one, which is the same where it divides.

    Args:
        group_size: Most images of a group.
    """

    def __init__(self, group_size: int = 4) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + 1, H, W)."""
        batch, _, height, width = features.shape
        groups = -(-batch // self.group_size)
        deviations = torch.stack(
            [(features[group::groups].var(0, correction=0) + 1e-8).sqrt().mean() for group in range(groups)]
        )
        of_image = deviations.repeat(self.group_size)[:batch, None, None, None]
        return torch.cat((features, of_image.expand(-1, 1, height, width)), dim=1)


class ResidualDownBlock(nn.Module):
    """Two convolutions of kernel 3, the second of stride 2, and a filtered skip of kernel 1, over √2 (figure 7c).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualizedConvolution(inputs, inputs, 3)
        self.blur = FIRFilter(padding=2)
        self.second = EqualizedConvolution(inputs, outputs, 3, stride=2, padding=0)
        self.downsample = FIRFilter(padding=1, stride=2)
        self.skip = EqualizedConvolution(inputs, outputs, 1, bias=False)
        self.activation = ScaledLeakyReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / 2, W / 2)."""
        skipped = self.skip(self.downsample(features))
        features = self.activation(self.first(features))
        features = self.activation(self.second(self.blur(features)))
        return (features + skipped) / 2**0.5


class StyleGAN2Discriminator(ImageDiscriminator):
    """StyleGAN2's discriminator, configuration F: residual blocks, then the deviation within groups of four images.

    Since that looks across the batch, an image's logit depends on its group; in eval mode too. Pass real and generated
    images apart. At 1024 px it has 29,012,513 parameters.

    Args:
        size: Side of the images in pixels, a power of two from 8.
        channel_multiplier: Share of all widths; each must come out whole.
        channel_base: Channels times pixels of a side, as far as ``channel_max`` allows: 32,768 gives 32 at 1024 px.
        channel_max: Most channels of a layer, before the multiplier.
        image_channels: C, channels of the images.
        group_size: Images of a group; see ``MinibatchDeviation`` for a batch that it does not divide.

    Raises:
        ValueError: The size is no power of two from 8, a width is not whole, or a group has no image.
    """

    classes = 0

    def __init__(
        self,
        size: int = 1024,
        channel_multiplier: float = 1.0,
        channel_base: int = 32768,
        channel_max: int = 512,
        image_channels: int = 3,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        widths = stylegan2_widths(size, channel_base, channel_max, channel_multiplier)
        if group_size < 1:
            raise ValueError(f"group_size is {group_size}; at least 1 is needed, the paper has 4")
        self.size = size
        self.image_channels = image_channels
        self.from_image = EqualizedConvolution(image_channels, widths[size], 1)
        sides = sorted(widths, reverse=True)
        self.blocks = nn.Sequential(
            *(ResidualDownBlock(widths[side], widths[below]) for side, below in pairwise(sides))
        )
        self.deviation = MinibatchDeviation(group_size)
        self.convolution = EqualizedConvolution(widths[4] + 1, widths[4], 3)
        self.linear = EqualizedLinear(widths[4] * 4 * 4, widths[4])
        self.output = EqualizedLinear(widths[4], 1)
        self.activation = ScaledLeakyReLU()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Judge images; see ``ImageDiscriminator.forward``. Labels are not looked at, there are no classes.

        Raises:
            ValueError: Images of another shape.
        """
        if images.shape[1:] != (self.image_channels, self.size, self.size):
            raise ValueError(
                f"images are {tuple(images.shape)}; (batch, {self.image_channels}, {self.size}, {self.size}) is needed"
            )
        features = self.blocks(self.activation(self.from_image(images)))
        features = self.activation(self.convolution(self.deviation(features)))
        return self.output(self.activation(self.linear(features.flatten(1))))
