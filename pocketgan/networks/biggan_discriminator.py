"""BigGAN's discriminator (arXiv 1809.11096, appendix B, figure 15 and table 4)."""

import torch.nn.functional as F
from torch import Tensor, nn

from pocketgan.networks.biggan_layout import (
    DISCRIMINATOR_MULTIPLIERS,
    HALVING_BLOCKS,
    attention_sides,
    check_layout,
)
from pocketgan.networks.class_label import check_labels
from pocketgan.networks.image_discriminator import ImageDiscriminator
from pocketgan.networks.self_attention import SelfAttention
from pocketgan.networks.spectral_layer import Initialization, spectral


class DiscriminatorBlock(nn.Module):
    """A residual block, with attention after it where there is some.

    ReLU (not in the first block), convolution, ReLU, convolution, average pooling if it halves; beside it a
    convolution of one pixel and pooling, in the first block pooling and the convolution, or nothing at all if neither
    side nor channels change (arXiv 1809.11096, figure 15c).

    Args:
        inputs: Channels before.
        outputs: Channels after, and between the two convolutions (the original's wide discriminator).
        first: Whether this is the network's first block.
        halve: Whether the side is halved.
        attention: Whether attention follows.
        initialization: How weights are drawn; see ``spectral_layer.initialized``.
    """

    def __init__(
        self, inputs: int, outputs: int, *, first: bool, halve: bool, attention: bool, initialization: Initialization
    ) -> None:
        super().__init__()
        self.first = first
        self.convolution1 = spectral(nn.Conv2d(inputs, outputs, 3, padding=1), initialization)
        self.convolution2 = spectral(nn.Conv2d(outputs, outputs, 3, padding=1), initialization)
        self.shortcut: nn.Module = nn.Identity()
        if halve or inputs != outputs:
            self.shortcut = spectral(nn.Conv2d(inputs, outputs, 1), initialization)
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.attention = SelfAttention(outputs, initialization) if attention else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), or half of H and W."""
        body = self.convolution1(features if self.first else F.relu(features))
        body = self.pool(self.convolution2(F.relu(body)))
        if self.first:
            return self.attention(body + self.shortcut(self.pool(features)))
        return self.attention(body + self.pool(self.shortcut(features)))


class BigGANDiscriminator(ImageDiscriminator):
    """Class-conditional by projection: linear(f) + ⟨embedding of the class, f⟩ of features f summed over all pixels.

    At 128 px, width 96 and 1000 classes it has 87,982,370 parameters. Layout and settings are those of
    BigGAN-PyTorch's ``BigGAN.Discriminator`` (``D_wide``); spectral normalisation is on every layer, the embedding
    included. It has no batch norm: in eval mode the vectors of the power iteration rest too, so that a frozen
    discriminator is a fixed function, through which gradients reach the images.

    Deviation: at 32 px BigGAN-PyTorch lists all four blocks as putting out 16 px, so that its ``--D_attn 16`` means
    attention after each. ``attention_sizes`` here names the sides that blocks do put out: 16, 8, 8 and 8.

    Args:
        size: Side of the images in pixels: 32, 64, 128 or 256.
        width: D_ch, the unit of the channel counts.
        classes: Number of classes.
        attention_sizes: Sides in pixels after which attention stands; None for 64 where a block puts it out, which is
            at 128 px and above.
        initialization: How weights are drawn: "orthogonal", or "normal" with a deviation of 0.02.

    Raises:
        ValueError: A size, width, number of classes or side for attention that cannot be.
    """

    def __init__(
        self,
        size: int = 128,
        width: int = 96,
        classes: int = 1000,
        attention_sizes: tuple[int, ...] | None = None,
        initialization: Initialization = "orthogonal",
    ) -> None:
        super().__init__()
        check_layout("BigGANDiscriminator", size, width, classes)
        self.size, self.image_channels, self.classes = size, 3, classes
        channels = [3, *(width * multiplier for multiplier in DISCRIMINATOR_MULTIPLIERS[size])]
        halving = HALVING_BLOCKS[size]
        sides = [size // 2 ** min(index + 1, halving) for index in range(len(channels) - 1)]
        attended = attention_sides(attention_sizes, sides)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(
                channels[index],
                channels[index + 1],
                first=index == 0,
                halve=index < halving,
                attention=side in attended,
                initialization=initialization,
            )
            for index, side in enumerate(sides)
        )
        self.linear = spectral(nn.Linear(channels[-1], 1), initialization)
        self.embedding = spectral(nn.Embedding(classes, channels[-1]), initialization)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge images; see ``ImageDiscriminator.forward``.

        Raises:
            TypeError: The labels are not whole numbers.
            ValueError: Labels are missing or out of range, or images have another size.
        """
        if images.dim() != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; this discriminator judges "
                f"(B, 3, {self.size}, {self.size})"
            )
        labels = check_labels(labels, self.classes, images.shape[0])
        features = images
        for block in self.blocks:
            features = block(features)
        summed = F.relu(features).sum((2, 3))
        return self.linear(summed) + (self.embedding(labels) * summed).sum(1, keepdim=True)
