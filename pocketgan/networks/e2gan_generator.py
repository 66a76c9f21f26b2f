"""E2GAN's generator (arXiv 2401.06127, figure of the architecture)."""

import copy

import torch
from torch import Tensor, nn

from pocketgan.networks.generator import Generator
from pocketgan.networks.norm import InstanceNorm, Norm
from pocketgan.networks.transformer_block import FoldedAttention, TransformerBlock


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), (B, C, H, W) to the same."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            norm(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Add the body's output to its input."""
        return features + self.body(features)


def _convolution(inputs: int, outputs: int, kernel: int, norm: Norm, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), norm(outputs), nn.ReLU(inplace=True)
    )


def _upsampling(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), *_convolution(inputs, outputs, 3, norm))


class E2GANGenerator(Generator):
    """pix2pix's ResNet generator with nine residual blocks replaced by three and one transformer block.

    ``stem → down → blocks_before → transformer_down → transformer → transformer_up → blocks_after → up → head``.
    The prompt enters in the transformer's cross-attention alone. At width 64 with 768 features a token it has
    7.05 M parameters, the paper's size.

    Deviations, each for the device:
        * Nearest upsampling and a convolution stand for transposed convolutions: no checkerboard, and a kernel that
          every runtime has. Parameter counts are equal.
        * Zero padding stands for reflection padding, which leaves the accelerator on several targets.
        * Width is a multiple of 8, so that every channel count suits int8 kernels.

    Args:
        width: Channels after the stem; the trunk has four times as many.
        token_size: D, features of a prompt token; 768 for CLIP's ViT-L/14 text encoder.
        head_size: Features of one attention head; 4 · width must be a multiple of it.
        norm: Normalisation after convolutions; instance norm, as in the paper, if None.
        transformer_skip: Add the features before ``transformer_down`` to those after ``transformer_up``. Not in the
            paper: at width 64 the transformer's map (4 · 64 channels on an eighth of the side) holds more numbers than
            the photo, at width 16 only a third as many, and fine structure is lost without the skip. No parameters.

    Raises:
        ValueError: Width is not a multiple of 8, or 4 · width not one of ``head_size``.
    """

    size_divisor = 8

    def __init__(
        self,
        width: int = 64,
        token_size: int = 768,
        head_size: int = 32,
        norm: Norm | None = None,
        transformer_skip: bool = False,
    ) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(f"width {width} is not a multiple of 8; int8 kernels want 8, 16, 24, …")
        if 4 * width % head_size:
            raise ValueError(f"4 · width = {4 * width} is not a multiple of head_size {head_size}")
        norm = norm or InstanceNorm()
        trunk = 4 * width
        self.token_size = token_size
        self.transformer_skip = transformer_skip
        self.stem = _convolution(3, width, 7, norm)
        self.down = nn.Sequential(
            _convolution(width, 2 * width, 3, norm, stride=2),
            _convolution(2 * width, trunk, 3, norm, stride=2),
        )
        self.blocks_before = nn.Sequential(ResidualBlock(trunk, norm), ResidualBlock(trunk, norm))
        self.transformer_down = _convolution(trunk, trunk, 3, norm, stride=2)
        self.transformer = TransformerBlock(trunk, token_size, head_size)
        self.transformer_up = _upsampling(trunk, trunk, norm)
        self.blocks_after = ResidualBlock(trunk, norm)
        self.up = nn.Sequential(_upsampling(trunk, 2 * width, norm), _upsampling(2 * width, width, norm))
        self.head = nn.Sequential(nn.Conv2d(width, 3, 7, padding=3), nn.Tanh())

    def forward(self, photo: Tensor, prompt_tokens: Tensor | None) -> Tensor:
        """Edit photos; see ``Generator.forward``. ``prompt_tokens`` is None only once the prompt is folded."""
        if not torch.compiler.is_exporting():
            self.check_size(*photo.shape[-2:])
        features = self.blocks_before(self.down(self.stem(photo)))
        transformed = self.transformer_up(self.transformer(self.transformer_down(features), prompt_tokens))
        if self.transformer_skip:
            transformed = features + transformed
        return self.head(self.up(self.blocks_after(transformed)))

    def fold_prompt(self, prompt_tokens: Tensor) -> nn.Module:
        """Make the network of one concept; see ``Generator.fold_prompt``."""
        folded = copy.deepcopy(self)
        attention = folded.transformer.cross_attention
        folded.transformer.cross_attention = FoldedAttention(attention, prompt_tokens)  # type: ignore[assignment]
        return _SingleConcept(folded)


class _SingleConcept(nn.Module):
    def __init__(self, generator: E2GANGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, photo: Tensor) -> Tensor:
        return self.generator(photo, None)
