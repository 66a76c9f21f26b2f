"""torch's semi-structured weights: refused without a GPU, equal on one."""

import pytest
import torch
from torch import nn

from pocketgan.compression import n_to_m_mask, with_semi_structured_weights


def two_to_four(*shape):
    layer = nn.Linear(*shape)
    with torch.no_grad():
        layer.weight.mul_(n_to_m_mask(layer.weight, 2, 4))
    return layer


def test_refused_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or above, which is not here"):
        with_semi_structured_weights(two_to_four(64, 64))


@pytest.mark.gpu
def test_equal_on_a_gpu():
    torch.manual_seed(0)
    dense = nn.Sequential(two_to_four(128, 128), nn.Linear(128, 128)).half().cuda()
    sparse, names = with_semi_structured_weights(dense)
    assert names == ["0"]
    tokens = torch.randn(64, 128, dtype=torch.half, device="cuda")
    torch.testing.assert_close(sparse(tokens), dense(tokens), atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="no linear layer has a 2:4 weight"):
        with_semi_structured_weights(nn.Linear(128, 128).half().cuda())
