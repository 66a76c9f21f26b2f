"""N:M sparsity by straight-through estimation, with SR-STE's pull on the weights that are out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pocketgan.compression.weight_mask import WeightMask

DECAY = 2e-4  # SparseDM's, and SR-STE's


def check_pattern(kept: int, group_size: int) -> None:
    """Refuse a pattern that keeps nothing or leaves nothing out.

    Raises:
        ValueError: It does.
    """
    if not 1 <= kept < group_size:
        raise ValueError(
            f"{kept}:{group_size} is no N:M sparsity; keep at least 1 weight of a group and fewer than all, such as 2:4"
        )


@dataclass(frozen=True)
class NToMStage:
    """From ``start_images`` on, ``kept`` of each ``group_size`` weights are not zero.

    Args:
        start_images: Images seen when the stage begins.
        kept: N.
        group_size: M.

    Raises:
        ValueError: The pattern keeps nothing or everything, or begins before the first image.
    """

    start_images: int
    kept: int
    group_size: int

    def __post_init__(self) -> None:
        check_pattern(self.kept, self.group_size)
        if self.start_images < 0:
            raise ValueError(f"a stage of the ladder begins at {self.start_images} images; give 0 or more")


@torch.no_grad()
def n_to_m_mask(weight: Tensor, kept: int, group_size: int) -> Tensor:
    """Mark the largest magnitudes of each group of neighbours along the inputs.

    Of equal magnitudes as many stay as fit: every group has exactly ``kept``.

    Args:
        weight: (O, I) of a linear layer, or (O, I, H, W) of a convolution, whose inputs are grouped at each position
            of the kernel, as in (O, H, W, I).
        kept: N.
        group_size: M; it divides I.

    Returns:
        Booleans of the weight's shape.
    """
    inputs_last = weight.movedim(1, -1)
    groups = inputs_last.abs().reshape(-1, group_size)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(kept, dim=1, sorted=False).indices, True)
    return mask.view(inputs_last.shape).movedim(-1, 1)


def is_n_to_m(weight: Tensor, kept: int, group_size: int) -> bool:
    """Whether no group along the inputs has more than ``kept`` weights that are not zero."""
    if weight.shape[1] % group_size:
        return False
    groups = (weight != 0).movedim(1, -1).reshape(-1, group_size)
    return int(groups.sum(1).max()) <= kept


class _StraightThrough(Function):
    """Forward w · m; backward g + decay · (1 - m) · w (SR-STE, Zhou et al., arXiv 2102.04010, equation 9)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        return gradients[0] + ctx.decay * (weight * ~mask), None, None


class NToMMask(WeightMask):
    """Keeps the N largest of each M weights along the inputs, chosen anew at every forward.

    SparseDM's (arXiv 2404.10445). The weights that are out go on learning, so that they can come back: the gradient
    reaches them as if nothing were masked (straight through), plus ``decay`` times the weight, which draws them to 0.
    That term comes once for each use of the weight in a step; an optimizer's own weight decay adds to it, as in
    SparseDM's training.

    Args:
        kept: N; ``group_size`` masks nothing, as before the first stage of a ladder.
        group_size: M.
        decay: SR-STE's λ.

    Raises:
        ValueError: N is not from 1 to M, or the decay is negative.
    """

    def __init__(self, kept: int, group_size: int, decay: float = DECAY) -> None:
        super().__init__()
        if not 1 <= kept <= group_size or decay < 0:
            raise ValueError(f"{kept}:{group_size} with a decay of {decay}; give 1 to M of M, and a decay from 0")
        self.kept, self.group_size, self.decay = kept, group_size, decay

    @property
    def pattern(self) -> list[int]:
        """N and M."""
        return [self.kept, self.group_size]

    def forward(self, weight: Tensor) -> Tensor:
        """See ``WeightMask.forward``."""
        if self.kept == self.group_size:
            return weight
        mask = n_to_m_mask(weight, self.kept, self.group_size)
        return _StraightThrough.apply(weight, mask, self.decay)
