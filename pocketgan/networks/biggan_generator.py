"""BigGAN's generator (arXiv 1809.11096, appendix B, figure 15 and table 4)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketgan.networks.biggan_layout import FIRST_SIDE, GENERATOR_MULTIPLIERS, attention_sides, check_layout
from pocketgan.networks.class_label import check_labels
from pocketgan.networks.latent_generator import LatentGenerator
from pocketgan.networks.self_attention import SelfAttention
from pocketgan.networks.spectral_layer import Initialization, initialized, spectral


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias are linear in a condition: (1 + gain(c)) · norm(x) + bias(c).

    In training mode the batch's statistics, in eval mode the running averages of momentum 0.1.

    Args:
        channels: C.
        condition_size: Features of the condition.
        initialization: How weights are drawn; see ``spectral_layer.initialized``.
    """

    def __init__(self, channels: int, condition_size: int, initialization: Initialization) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = spectral(nn.Linear(condition_size, channels, bias=False), initialization)
        self.bias = spectral(nn.Linear(condition_size, channels, bias=False), initialization)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Normalise features (B, C, H, W) under a condition (B, condition_size)."""
        gain, bias = (layer(condition)[..., None, None] for layer in (self.gain, self.bias))
        return self.norm(features) * (1 + gain) + bias


class GeneratorBlock(nn.Module):
    """A residual block that doubles the side, with attention after it where there is some.

    norm, ReLU, nearest upsampling, convolution, norm, ReLU, convolution; beside it upsampling and a convolution of
    one pixel (arXiv 1809.11096, figure 15b).

    Args:
        inputs: Channels before.
        outputs: Channels after.
        condition_size: Features of the condition.
        attention: Whether attention follows.
        initialization: How weights are drawn; see ``spectral_layer.initialized``.
    """

    def __init__(
        self, inputs: int, outputs: int, condition_size: int, *, attention: bool, initialization: Initialization
    ) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, condition_size, initialization)
        self.convolution1 = spectral(nn.Conv2d(inputs, outputs, 3, padding=1), initialization)
        self.norm2 = ConditionalBatchNorm(outputs, condition_size, initialization)
        self.convolution2 = spectral(nn.Conv2d(outputs, outputs, 3, padding=1), initialization)
        self.shortcut = spectral(nn.Conv2d(inputs, outputs, 1), initialization)
        self.attention = SelfAttention(outputs, initialization) if attention else nn.Identity()

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """(B, inputs, H, W) under a condition (B, condition_size) to (B, outputs, 2H, 2W)."""
        body = F.interpolate(F.relu(self.norm1(features, condition)), scale_factor=2.0)
        body = self.convolution1(body)
        body = self.convolution2(F.relu(self.norm2(body, condition)))
        return self.attention(body + self.shortcut(F.interpolate(features, scale_factor=2.0)))


class BigGANGenerator(LatentGenerator):
    """Class-conditional: a chunk of the latent and the class's embedding set gain and bias in every block.

    The latent falls into one chunk for the first layer and one for each block (the paper's hierarchical latent); all
    blocks share one embedding of the classes. At 128 px it has these parameters, the embedding's 128,000 included:

    ===== ==========
    width parameters
    ===== ==========
    96    70,433,988
    48    18,383,460
    24    5,031,348
    ===== ==========

    compare_gan's test of its BigGAN has the first number too. Without the embedding it is 70,305,988; the 70.33 M that
    arXiv 2112.06502 gives is neither, and no choice among the kinds of layers adds up to it.

    Layout and settings are those of BigGAN-PyTorch's ``BigGAN.Generator`` with ``--G_shared --hier``; the embedding
    alone has no spectral normalisation there and here. Labels are embedded inside ``forward``, where BigGAN-PyTorch
    leaves that to the caller.

    Batch norm: in eval mode this network uses its running averages, as BigGAN-PyTorch does under ``--G_eval_mode``
    (its script for 128 px). The paper instead samples with *standing* statistics, the plain mean over many batches at
    one truncation. They can be had here: ``reset_running_stats()`` and ``momentum = None`` for each
    ``nn.BatchNorm2d``, then batches in training mode without gradient. It matters for truncated latents, and for an
    average of weights (EMA), whose running averages are copies of those of the weights that trained.

    Args:
        size: Side of the images in pixels: 32, 64, 128 or 256.
        width: G_ch, the unit of the channel counts; the compressed students have 48 and 24.
        classes: Number of classes.
        latent_size: Z; a multiple of the number of blocks plus one, which is 4, 5, 6 and 7 at the four sizes.
        shared_size: Features of the shared embedding.
        attention_sizes: Sides in pixels after which attention stands; None for 64 where the network passes it.
        initialization: How weights are drawn: "orthogonal", or "normal" with a deviation of 0.02.

    Raises:
        ValueError: A size, width, number of classes, size of latent or embedding, or side for attention that cannot
            be.
    """

    def __init__(
        self,
        size: int = 128,
        width: int = 96,
        classes: int = 1000,
        latent_size: int = 120,
        shared_size: int = 128,
        attention_sizes: tuple[int, ...] | None = None,
        initialization: Initialization = "orthogonal",
    ) -> None:
        super().__init__()
        check_layout("BigGANGenerator", size, width, classes)
        if shared_size < 1:
            raise ValueError(f"shared_size is {shared_size}; at least 1 is needed")
        channels = [width * multiplier for multiplier in GENERATOR_MULTIPLIERS[size]]
        chunks = len(channels)
        if latent_size < chunks or latent_size % chunks:
            near = max(latent_size // chunks, 1) * chunks
            raise ValueError(
                f"latent_size {latent_size} does not fall into {chunks} equal chunks, one for the first layer and "
                f"one for each block at {size} px; use {near} or {near + chunks}"
            )
        sides = [2 * FIRST_SIDE * 2**index for index in range(chunks - 1)]
        attended = attention_sides(attention_sizes, sides)
        self.size, self.image_channels, self.classes, self.latent_size = size, 3, classes, latent_size
        self.chunk_size = latent_size // chunks
        self.embedding = initialized(nn.Embedding(classes, shared_size), initialization)
        self.linear = spectral(nn.Linear(self.chunk_size, channels[0] * FIRST_SIDE**2), initialization)
        self.blocks = nn.ModuleList(
            GeneratorBlock(
                inputs,
                outputs,
                shared_size + self.chunk_size,
                attention=side in attended,
                initialization=initialization,
            )
            for side, (inputs, outputs) in zip(sides, pairwise(channels), strict=True)
        )
        self.output_norm = nn.BatchNorm2d(channels[-1])
        self.output_convolution = spectral(nn.Conv2d(channels[-1], 3, 3, padding=1), initialization)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images; see ``LatentGenerator.forward``. The result is in [-1, 1].

        Raises:
            TypeError: The labels are not whole numbers.
            ValueError: Labels are missing or out of range, or latents have another size.
        """
        if latents.dim() != 2 or latents.shape[1] != self.latent_size:
            raise ValueError(
                f"latents have the shape {tuple(latents.shape)}; this generator takes (B, {self.latent_size})"
            )
        embedded = self.embedding(check_labels(labels, self.classes, latents.shape[0]))
        first, *chunks = latents.split(self.chunk_size, 1)
        features = self.linear(first).unflatten(1, (-1, FIRST_SIDE, FIRST_SIDE))
        for block, chunk in zip(self.blocks, chunks, strict=True):
            features = block(features, torch.cat((embedded, chunk), 1))
        return torch.tanh(self.output_convolution(F.relu(self.output_norm(features))))
