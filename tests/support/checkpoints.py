"""What a run left, compared to the last bit."""

from pathlib import Path
from typing import Any

import torch


def weights(run: Path) -> dict[str, Any]:
    """A run's last checkpoint."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(found: Any, expected: Any, path: str = "checkpoint") -> None:
    """Equal bit for bit, down to the last entry."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}.{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def state(run: Path) -> dict[str, Any]:
    """All that a run carries on: networks, averages, optimizers, random numbers, and the clock, the data's position."""
    checkpoint = weights(run)
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "random_states", "images_seen")}
