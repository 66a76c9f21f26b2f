"""StyleGAN2's generator (Karras et al. 2020, arXiv 1912.04958), configuration F."""

import torch
from torch import Tensor, nn

from pocketgan.networks.equalized_layer import EqualizedLinear, ScaledLeakyReLU
from pocketgan.networks.fir_filter import FIRUpsample
from pocketgan.networks.modulated_convolution import ModulatedConvolution
from pocketgan.networks.style_generator import StyleGenerator
from pocketgan.networks.stylegan2_width import stylegan2_widths


class MappingNetwork(nn.Module):
    """Latents scaled to a mean square of 1, then linear layers at a hundredth of the learning rate: z to w.

    Args:
        size: Features of latents and styles.
        layers: Number of linear layers.
    """

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualizedLinear(size, size, learning_rate_multiplier=0.01) for _ in range(layers))
        self.activation = ScaledLeakyReLU()

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, W) to styles (B, W)."""
        features = latents * (latents.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            features = self.activation(layer(features))
        return features


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU.

    In train mode the noise is drawn for each image; in eval mode it is a constant that is stored with the weights.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        style_size: Features of a style.
        size: Side of the output in pixels.
        upsample: The input is half that size.
        noise: Add noise, with a learned strength that starts at 0.
    """

    noise: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, style_size: int, size: int, *, upsample: bool = False, noise: bool = True
    ) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, 3, style_size, upsample=upsample)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        self.register_buffer("noise", torch.randn(size, size) if noise else None)
        self.activation = ScaledLeakyReLU()

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Map (B, inputs, h, w) by styles (B, W) to (B, outputs, size, size)."""
        features = self.convolution(features, style)
        if self.noise is not None and self.noise_strength is not None:
            noise = torch.randn_like(features[:, :1]) if self.training else self.noise
            features = features + noise * self.noise_strength
        return self.activation(features + self.bias[:, None, None])


class ToImage(nn.Module):
    """A modulated convolution of kernel 1 without demodulation, and a bias: features to colours.

    Args:
        inputs: Channels of the input.
        image_channels: Channels of the image.
        style_size: Features of a style.
    """

    def __init__(self, inputs: int, image_channels: int, style_size: int) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, image_channels, 1, style_size, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Map (B, inputs, H, W) by styles (B, W) to (B, C, H, W)."""
        return self.convolution(features, style) + self.bias[:, None, None]


class SynthesisBlock(nn.Module):
    """All layers of one size; its colours are added to those of the sizes below (figure 7b, "skip").

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        style_size: Features of a style.
        size: Side of the output in pixels; of 4, the first block has no upsampling layer.
        image_channels: Channels of the image.
        noise: Add noise after each convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, style_size: int, size: int, image_channels: int, *, noise: bool
    ) -> None:
        super().__init__()
        first = size == 4
        self.up = None if first else StyledLayer(inputs, outputs, style_size, size, upsample=True, noise=noise)
        self.layer = StyledLayer(inputs if first else outputs, outputs, style_size, size, noise=noise)
        self.to_image = ToImage(outputs, image_channels, style_size)
        self.upsample = None if first else FIRUpsample()

    def forward(self, features: Tensor, images: Tensor | None, styles: Tensor) -> tuple[Tensor, Tensor]:
        """Go from one size to the next.

        Args:
            features: (B, inputs, h, w) of the size below; of the first block, its constant.
            images: (B, C, h, w) of the size below; None for the first block.
            styles: (B, 3, W) for ``up``, ``layer`` and ``to_image``; of the first block, (B, 2, W) without ``up``'s.

        Returns:
            Features (B, outputs, size, size) and images (B, C, size, size).
        """
        if self.up is not None:
            features = self.up(features, styles[:, 0])
        features = self.layer(features, styles[:, -2])
        colours = self.to_image(features, styles[:, -1])
        if images is not None and self.upsample is not None:
            colours = colours + self.upsample(images)
        return features, colours


class StyleGAN2Generator(StyleGenerator):
    """StyleGAN2's generator, configuration F: modulated convolutions, skip-connected images, noise, styles.

    At 1024 px it has 30,370,060 parameters; with a channel multiplier of 1/2, 1/4 and 1/8, 11,064,988, 5,392,036 and
    3,550,456: the 30.37, 11.06, 5.39 and 3.55 M of DGL-GAN (arXiv 2112.06502). Counted are all that is trained, with
    the mapping network and the strengths of noise, without the constants of noise and the mean style.

    As in NVlabs' code, and in DGL-GAN's for the multiplier:
        * ``channel_multiplier`` scales the outputs of the synthesis network's convolutions alone. The mapping network,
          latents and styles, and the constant that the first convolution reads stay at full width.
        * Style mixing is decided once for a batch: with probability ``style_mixing`` all its images take the styles
          from one drawn layer on from second latents. In train mode only.
        * The mean style moves by 0.005 towards the batch's mean in each pass of ``map`` in train mode, for truncation.
          An average of the network's weights should copy it with the other buffers.
        * No tanh: images may leave [-1, 1]. There is no clamping of features, which stylegan2-ada-pytorch has for
          float16.

    Args:
        size: Side of the images in pixels, a power of two from 8.
        channel_multiplier: Share of the widths of synthesis; each must come out whole.
        latent_size: Features of latents and of styles.
        mapping_layers: Linear layers of the mapping network.
        channel_base: Channels times pixels of a side, as far as ``channel_max`` allows: 32,768 gives 32 at 1024 px.
            16,384 is configuration E's.
        channel_max: Most channels of a layer, before the multiplier.
        image_channels: C, channels of the images.
        style_mixing: Probability that a batch mixes styles.
        noise: Add noise after each convolution.

    Raises:
        ValueError: The size is no power of two from 8, a width is not whole, the probability is not one, or there are
            no mapping layers.
    """

    mean_style: Tensor
    classes = 0
    mean_style_decay = 0.995

    def __init__(
        self,
        size: int = 1024,
        channel_multiplier: float = 1.0,
        latent_size: int = 512,
        mapping_layers: int = 8,
        channel_base: int = 32768,
        channel_max: int = 512,
        image_channels: int = 3,
        style_mixing: float = 0.9,
        noise: bool = True,
    ) -> None:
        super().__init__()
        widths = stylegan2_widths(size, channel_base, channel_max, channel_multiplier)
        if not 0 <= style_mixing <= 1:
            raise ValueError(f"style_mixing is {style_mixing}; it is a probability, from 0 to 1")
        if mapping_layers < 1:
            raise ValueError(f"mapping_layers is {mapping_layers}; at least 1 is needed, the paper has 8")
        self.size = size
        self.latent_size = latent_size
        self.image_channels = image_channels
        self.style_mixing = style_mixing
        self.noise = noise
        self.style_count = 2 * len(widths)
        self.mapping = MappingNetwork(latent_size, mapping_layers)
        self.register_buffer("mean_style", torch.zeros(latent_size))
        inputs = stylegan2_widths(size, channel_base, channel_max)[4]
        self.constant = nn.Parameter(torch.randn(1, inputs, 4, 4))
        self.blocks = nn.ModuleList()
        for side, outputs in widths.items():
            self.blocks.append(SynthesisBlock(inputs, outputs, latent_size, side, image_channels, noise=noise))
            inputs = outputs

    def map(self, latents: Tensor, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:  # noqa: ARG002
        """Map latents to styles, in train mode with style mixing; see ``StyleGenerator.map``.

        Args:
            latents: (B, Z), standard normal.
            labels: Not looked at, there are no classes.
            truncation: ψ: styles are moved to ``mean_style`` + ψ · (style - ``mean_style``). 1 leaves them as they are,
                0 makes the mean image.

        Returns:
            (B, S, Z), S = 2 · log2(size) - 2.

        Raises:
            ValueError: Latents of another shape.
        """
        if latents.shape[1:] != (self.latent_size,):
            raise ValueError(f"latents are {tuple(latents.shape)}; (batch, {self.latent_size}) is needed")
        styles = self.mapping(latents)
        if self.training:
            with torch.no_grad():
                self.mean_style.lerp_(styles.mean(0).to(self.mean_style.dtype), 1 - self.mean_style_decay)
        styles = styles[:, None].expand(-1, self.style_count, -1)
        if self.training and self.style_mixing > 0:
            styles = self._mixed(styles)
        return styles if truncation == 1 else self.mean_style.lerp(styles, truncation)

    def _mixed(self, styles: Tensor) -> Tensor:
        device = styles.device
        others = self.mapping(torch.randn(styles.shape[0], self.latent_size, device=device, dtype=styles.dtype))
        # drawn on the device, so that the host need not wait for it
        first = torch.randint(1, self.style_count, (), device=device)
        mixes = torch.rand((), device=device) < self.style_mixing
        replaced = mixes & (torch.arange(self.style_count, device=device) >= first)
        return torch.where(replaced[:, None], others[:, None], styles)

    def synthesize(self, styles: Tensor) -> Tensor:
        """Make images (B, C, size, size) of styles (B, S, Z)."""
        features, images = self.constant.expand(styles.shape[0], -1, -1, -1), None
        for index, block in enumerate(self.blocks):
            # to_image shares its style with the next block's up
            features, images = block(features, images, styles[:, max(2 * index - 1, 0) : 2 * index + 2])
        assert images is not None
        return images

    def forward(self, latents: Tensor, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Make images; see ``LatentGenerator.forward``, and ``map`` for the truncation."""
        return self.synthesize(self.map(latents, labels, truncation))
