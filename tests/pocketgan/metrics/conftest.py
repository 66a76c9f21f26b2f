"""Stand-ins for the weights that are not to be had without a download."""

import warnings

import pytest
import torch
from torch import nn


class TinyInception(nn.Module):
    """The interface of NVlabs' TorchScript file: ``layers`` maps (B, 3, 299, 299) to 2,048 values."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(92), nn.Flatten(), nn.Linear(27, 2048), nn.BatchNorm1d(2048))

    def forward(self, images, return_features: bool = True):
        return self.layers(images)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An empty ``checkpoints`` folder of torch hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def inception_file(checkpoints):
    torch.manual_seed(0)
    file = checkpoints / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        # https://pytorch.org/blog/pytorch-2-11-release-blog/
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
        torch.jit.script(TinyInception().eval()).save(str(file))
    return file
