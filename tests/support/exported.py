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


class SmallNetwork(nn.Module):
    """What a converter is done with in a fraction of a generator's time: a stem, half the size and back, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential()
        for name, part in {
            "stem": nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            "down": nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
            "up": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU()),
            "head": nn.Sequential(nn.Conv2d(32, 3, 7, padding=3), nn.Tanh()),
        }.items():
            self.generator.add_module(name, part)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, photo: Tensor) -> Tensor:
        """Edit photos (B, 3, H, W)."""
        edit: Tensor = self.generator(photo)
        return edit


def small_network() -> nn.Module:
    """The same each time."""
    torch.manual_seed(0)
    return SmallNetwork().eval()


def photos_of(*sizes: tuple[int, ...]) -> list[Tensor]:
    """Noise in [-1, 1], the same each time."""
    torch.manual_seed(1)
    return [torch.rand(size) * 2 - 1 for size in sizes]
