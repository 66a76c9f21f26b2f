"""Small networks and photos that exporters are tested on."""

import torch
from torch import Tensor, nn

from pocketgan.networks import E2GANGenerator, Norm


def network_of(norm: type[Norm]) -> nn.Module:
    """A folded generator whose norms do something."""
    torch.manual_seed(0)
    generator = E2GANGenerator(width=8, token_size=16, norm=norm()).eval()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return generator.fold_prompt(torch.randn(1, 3, 16))


def photos_of(*sizes: tuple[int, ...]) -> list[Tensor]:
    """Noise in [-1, 1], the same each time."""
    torch.manual_seed(1)
    return [torch.rand(size) * 2 - 1 for size in sizes]
