"""Small networks in which channels hang together in various ways."""

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Convolution, norm, ReLU, convolution: one group of channels."""

    def __init__(self, width: int = 8, kernel: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 3, kernel, padding=kernel // 2, bias=bias)

    def forward(self, photo: Tensor) -> Tensor:
        return self.last(self.norm(self.first(photo)).relu())


class Skip(nn.Module):
    """A U-Net of one level: the skip is concatenated, so that the last layer reads two groups."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.outer, self.outer_norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.inner, self.inner_norm = nn.Conv2d(width, width, 4, 2, 1), nn.BatchNorm2d(width)
        self.up, self.up_norm = nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width)
        self.last = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, photo: Tensor) -> Tensor:
        outer = self.outer_norm(self.outer(photo)).relu()
        inner = self.inner_norm(self.inner(outer)).relu()
        return self.last(torch.cat((outer, self.up_norm(self.up(inner)).relu()), 1))


class LooseParameter(nn.Module):
    """Has a parameter outside torch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.strength = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, photo: Tensor) -> Tensor:
        return self.last(self.first(photo) * self.strength)


class Misread(nn.Module):
    """Fixes the number of channels where the graph cannot see it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, photo: Tensor) -> Tensor:
        features = self.first(photo)
        return self.last(features + torch.ones(1, 8, 1, 1))
