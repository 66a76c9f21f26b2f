"""A network of a pruned one's shape that was never trained: the control of pruning."""

from torch import Tensor, nn, ones, zeros

from pocketgan.compression import ChannelGraph, KeptShare
from pocketgan.networks import E2GANGenerator, Generator, Norm


class NarrowGenerator(Generator):
    """E2GAN's generator at the widths to which ``KeptShare`` prunes it, freshly initialised.

    Args:
        width: Of the network that is pruned.
        share: See ``KeptShare``.
        multiple: Likewise.
        token_size: See ``E2GANGenerator``.
        norm: Likewise.
        transformer_skip: Likewise.
    """

    size_divisor = 8

    def __init__(
        self, width: int, share: float, multiple: int, token_size: int, norm: Norm, transformer_skip: bool
    ) -> None:
        super().__init__()
        self.token_size = token_size
        whole = E2GANGenerator(width, token_size, norm=norm, transformer_skip=transformer_skip)
        graph = ChannelGraph(whole, (zeros(1, 3, 32, 32), zeros(1, 1, token_size)))
        alike = {name: ones(group.units) for name, group in graph.groups.items()}
        kept = KeptShare(share, multiple).choose(alike, graph.groups, lambda _: 0.0, lambda _: 0)
        self.network = graph.pruned(kept)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()

    def forward(self, photo: Tensor, prompt_tokens: Tensor) -> Tensor:
        return self.network(photo, prompt_tokens)

    def fold_prompt(self, prompt_tokens: Tensor) -> nn.Module:
        return self.network.fold_prompt(prompt_tokens)  # type: ignore[operator]
