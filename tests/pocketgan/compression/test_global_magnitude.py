"""One threshold over all weights, and what an optimizer forgets."""

import pytest
import torch
from torch import nn

from pocketgan.compression import clear_momentum, global_magnitude_masks, kept_count


@pytest.mark.parametrize(
    ("weights", "sparsity", "kept"),
    [(1000, 0.9, 100), (1000, 0.0, 1000), (10, 0.75, 2), (100, 0.29, 71), (7, 0.5, 3), (1_676_000, 0.8, 335_200)],
)
def test_kept_is_the_floor(weights, sparsity, kept):
    assert kept_count(weights, sparsity) == kept


def test_the_largest_of_all_tensors_stay():
    weights = [torch.tensor([[3.0, -0.1], [0.2, -5.0]]), torch.tensor([0.3, -4.0, 0.01])]
    ones = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    first, second = global_magnitude_masks(weights, ones, 3)
    assert first.tolist() == [[True, False], [False, True]]
    assert second.tolist() == [False, True, False]


def test_what_is_pruned_stays_pruned_and_ties_keep_the_count():
    torch.manual_seed(0)
    weights = [torch.randn(6, 5), torch.zeros(4, 3)]  # zeros that were never pruned tie with each other
    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    for kept in (40, 35, 20, 3):
        new = global_magnitude_masks(weights, masks, kept)
        assert sum(int(mask.sum()) for mask in new) == kept
        for before, after in zip(masks, new, strict=True):
            assert not (after & ~before).any()
        masks = new
        # a pruned weight that has become the largest does not come back
        weights = [torch.where(mask, weight, 100.0) for weight, mask in zip(weights, masks, strict=True)]
    assert sum(int(mask.sum()) for mask in global_magnitude_masks(weights, masks, 10)) == 3


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.Adam(p, 0.1, amsgrad=True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)],
    ids=["adam", "sgd"],
)
def test_momentum_of_pruned_weights_is_cleared(make):
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    clear_momentum(optimizer, weight, mask)
    memories = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
    assert memories
    for memory in memories:
        assert not memory[~mask].any()
        assert memory[mask].all()
    clear_momentum(optimizer, nn.Parameter(torch.ones(2, 3)), mask)  # not one of its own
    assert len(optimizer.state) == 1
