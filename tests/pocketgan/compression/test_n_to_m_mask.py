"""N:M masks along the inputs, and SR-STE by hand."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from pocketgan.compression import NToMMask, NToMStage, is_n_to_m, n_to_m_mask


@pytest.mark.parametrize(("kept", "group_size"), [(2, 4), (1, 4), (3, 4), (7, 8), (15, 16), (4, 8)])
@pytest.mark.parametrize("shape", [(6, 32), (5, 32, 3, 3), (4, 16, 1, 1), (3, 16, 7)])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_every_group_of_the_inputs_keeps_exactly_its_largest(kept, group_size, shape, memory):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    if memory == "channels_last" and len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    mask = n_to_m_mask(weight, kept, group_size)
    assert mask.shape == weight.shape
    # group by group, by indexing alone
    for output in range(shape[0]):
        for place in itertools.product(*map(range, shape[2:])):
            for start in range(0, shape[1], group_size):
                index = (output, slice(start, start + group_size), *place)
                largest = weight[index].abs().argsort(descending=True)[:kept]
                assert mask[index].nonzero().flatten().tolist() == sorted(largest.tolist())
    assert is_n_to_m(weight * mask, kept, group_size)
    assert not is_n_to_m(weight, kept, group_size)


def test_not_along_the_outputs_or_the_kernel():
    weight = torch.zeros(4, 4, 2, 2)
    weight[:, 0], weight[:, 1] = 2.0, 1.0  # the first two inputs, everywhere
    assert torch.equal(n_to_m_mask(weight, 2, 4), weight > 0)


def test_ties_keep_exactly_n():
    assert n_to_m_mask(torch.ones(3, 8), 2, 4).view(-1, 4).sum(1).eq(2).all()
    assert n_to_m_mask(torch.zeros(3, 8), 2, 4).view(-1, 4).sum(1).eq(2).all()


def test_gradient_by_hand():
    """g + decay · (1 - m) · w with g = 2 (w · m) · x² for the loss Σ (w m x)²."""
    weight = torch.tensor([[4.0, -1.0, 2.0, -3.0]])
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    register_parametrization(layer, "weight", NToMMask(2, 4, decay=0.1))
    assert layer.weight.tolist() == [[4.0, 0.0, 0.0, -3.0]]
    photo = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    layer(photo).square().sum().backward()
    output = 4.0 * 1 - 3.0 * 4
    expected = 2 * output * photo + 0.1 * torch.tensor([[0.0, -1.0, 2.0, 0.0]])
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, expected)


def test_the_mask_follows_the_weights():
    layer = nn.Linear(4, 1, bias=False)
    register_parametrization(layer, "weight", NToMMask(2, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        assert layer.weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]
        layer.parametrizations.weight.original.copy_(torch.tensor([[9.0, 2.0, 3.0, 4.0]]))
        assert layer.weight.tolist() == [[9.0, 0.0, 0.0, 4.0]]


def test_n_of_n_masks_nothing_and_pulls_at_nothing():
    weight = nn.Parameter(torch.randn(2, 4))
    masked = NToMMask(4, 4, decay=1.0)(weight)
    assert torch.equal(masked, weight)
    masked.sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 4))


@pytest.mark.parametrize(("kept", "group_size"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_patterns_that_are_none(kept, group_size):
    with pytest.raises(ValueError, match="keep at least 1 weight of a group and fewer than all"):
        NToMStage(0, kept, group_size)


def test_further_refusals():
    with pytest.raises(ValueError, match="begins at -1 images"):
        NToMStage(-1, 2, 4)
    with pytest.raises(ValueError, match="give 1 to M of M"):
        NToMMask(5, 4)
    with pytest.raises(ValueError, match="a decay from 0"):
        NToMMask(2, 4, -1.0)
