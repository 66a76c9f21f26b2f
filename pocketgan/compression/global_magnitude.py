"""Which weights of a network stay when so many of all are kept."""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer


def kept_count(weights: int, sparsity: float) -> int:
    """Whole weights left of so many: ⌊(1 - sparsity) · weights⌋.

    The product is rounded to a millionth before: in floating point 0.1 · 1000 left of 0.9 would be 99.99….
    """
    return math.floor(round((1 - sparsity) * weights, 6))


@torch.no_grad()
def global_magnitude_masks(weights: list[Tensor], masks: list[Tensor], kept: int) -> list[Tensor]:
    """Keep the largest magnitudes over all tensors together (FedSparsify, arXiv 2204.12430), of those still kept.

    torch's ``prune.global_unstructured`` ranks pruned weights by their value of 0 like any other and settles ties by
    their place; here a pruned weight comes back in no case.

    Args:
        weights: Of any shapes.
        masks: One of each weight's shape, true where it is kept so far.
        kept: How many stay over all tensors; if fewer are left already, these.

    Returns:
        New masks, true nowhere but where the old ones are.
    """
    scores = torch.cat(
        [torch.where(mask, weight.abs(), -1).flatten() for weight, mask in zip(weights, masks, strict=True)]
    )
    kept = min(kept, sum(int(mask.sum()) for mask in masks))
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(kept, sorted=False).indices] = True
    parts = chosen.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


@torch.no_grad()
def clear_momentum(optimizer: Optimizer, parameter: Tensor, mask: Tensor) -> None:
    """Set an optimizer's memory of pruned weights to 0: Adam's ``exp_avg`` and ``exp_avg_sq``, SGD's momentum.

    With it a pruned weight would go on moving, although its gradient is 0.

    Args:
        optimizer: Any that keeps its memory in tensors of the parameter's shape.
        parameter: One of its parameters, or another, which it then knows nothing of.
        mask: Of the same shape, true where the weight is kept.
    """
    for memory in optimizer.state.get(parameter, {}).values():
        if isinstance(memory, Tensor) and memory.shape == mask.shape:
            memory.mul_(mask)
