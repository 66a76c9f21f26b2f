"""pix2pix's conditional patch discriminator (arXiv 1611.07004, section 3.2.2)."""

import torch
from torch import Tensor, nn

from pocketgan.networks.discriminator import Discriminator
from pocketgan.networks.norm import InstanceNorm2d


class PatchDiscriminator(Discriminator):
    """Convolutions of kernel 4 over photo and edit side by side in channels; each logit sees one patch.

    With three strided layers a patch is 70 × 70 pixels. Instance norm stands for pix2pix's batch norm (the same
    at the paper's batch of 1), so that logits do not depend on the batch.

    Args:
        width: Channels of the first layer, doubled by each strided layer up to eight times.
        strided_layers: Layers of stride 2; 3 gives 70-pixel patches, 2 gives 34.
    """

    def __init__(self, width: int = 64, strided_layers: int = 3) -> None:
        super().__init__()
        if strided_layers < 1:
            raise ValueError(f"strided_layers is {strided_layers}; at least 1 is needed")
        layers: list[nn.Module] = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels = width
        for index in range(1, strided_layers + 1):
            stride = 2 if index < strided_layers else 1
            inputs, channels = channels, width * min(2**index, 8)
            layers += [
                nn.Conv2d(inputs, channels, 4, stride, 1),
                InstanceNorm2d(channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, photo: Tensor, edit: Tensor) -> Tensor:
        """Judge pairs; see ``Discriminator.forward``."""
        return self.layers(torch.cat((photo, edit), dim=1))
