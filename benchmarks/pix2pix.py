"""pix2pix as its public code has it: networks and one training step, eager, fp32.

junyanz/pytorch-CycleGAN-and-pix2pix, written out here as the other side of benchmarks/training_step.py;
nothing of the package is used.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ResNet9(nn.Module):
    """Its ResNet generator with nine blocks and instance norm; 11.38 M parameters at width 64."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), *self._convolution(3, width, 7)]
        for channels in (width, 2 * width):
            layers += self._convolution(channels, 2 * channels, 3, stride=2, padding=1)
        layers += [_ResidualBlock(4 * width) for _ in range(9)]
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 3, 2, padding=1, output_padding=1),
                nn.InstanceNorm2d(channels // 2),
                nn.ReLU(True),
            ]
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    @staticmethod
    def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, padding),
            nn.InstanceNorm2d(outputs),
            nn.ReLU(True),
        ]

    def forward(self, photo: Tensor) -> Tensor:
        """Edit photos (B, 3, H, W)."""
        return self.layers(photo)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class UNet(nn.Module):
    """Its U-Net generator with batch norm, without dropout so that two sides can be compared step by step.

    Args:
        levels: Halvings; 7 for 128 px, 8 for 256 px.
        width: Channels of the first level.
    """

    def __init__(self, levels: int = 7, width: int = 64) -> None:
        super().__init__()
        block: nn.Module | None = None
        channels = [width * min(2**level, 8) for level in range(levels)]
        for level in reversed(range(levels)):
            outer = 3 if level == 0 else channels[level - 1]
            block = _UNetLevel(outer, channels[level], block, outermost=level == 0)
        assert block is not None
        self.layers = block

    def forward(self, photo: Tensor) -> Tensor:
        """Edit photos (B, 3, H, W)."""
        return self.layers(photo)


class _UNetLevel(nn.Module):
    def __init__(self, outer: int, inner: int, below: nn.Module | None, outermost: bool) -> None:
        super().__init__()
        self.outermost = outermost
        down: list[nn.Module] = [nn.Conv2d(outer, inner, 4, 2, 1, bias=outermost)]
        if not outermost:
            down.insert(0, nn.LeakyReLU(0.2, True))
            if below is not None:
                down.append(nn.BatchNorm2d(inner))
        wide = inner if below is None else 2 * inner
        up: list[nn.Module] = [nn.ReLU(True), nn.ConvTranspose2d(wide, outer, 4, 2, 1, bias=outermost)]
        up.append(nn.Tanh() if outermost else nn.BatchNorm2d(outer))
        self.layers = nn.Sequential(*down, *([below] if below is not None else []), *up)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features) if self.outermost else torch.cat((features, self.layers(features)), 1)


def patch_discriminator(width: int = 64) -> nn.Module:
    """Its 70-pixel PatchGAN on photo and edit side by side in channels, with batch norm."""
    layers: list[nn.Module] = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for inputs, outputs, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 8 * width, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


def make_step(generator: nn.Module, discriminator: nn.Module, rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Its ``optimize_parameters``: the discriminator first, on real and fake by turns, then the generator.

    Returns:
        Trains on (photo, edit) and returns the L1 term, still on its device.
    """
    of_generator = torch.optim.Adam(generator.parameters(), rate, (0.5, 0.999))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), rate, (0.5, 0.999))
    adversarial, reconstruction = nn.BCEWithLogitsLoss(), nn.L1Loss()

    def judged(logits: Tensor, real: bool) -> Tensor:
        return adversarial(logits, torch.full_like(logits, float(real)))

    def step(photo: Tensor, edit: Tensor) -> Tensor:
        fake = generator(photo)
        discriminator.requires_grad_(True)
        of_discriminator.zero_grad()
        loss = 0.5 * (
            judged(discriminator(torch.cat((photo, fake.detach()), 1)), False)
            + judged(discriminator(torch.cat((photo, edit), 1)), True)
        )
        loss.backward()
        of_discriminator.step()
        discriminator.requires_grad_(False)
        of_generator.zero_grad()
        l1 = reconstruction(fake, edit)
        (judged(discriminator(torch.cat((photo, fake), 1)), True) + 100 * l1).backward()
        of_generator.step()
        return l1.detach()

    return step
