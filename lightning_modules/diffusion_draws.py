"""Random draws that modules of diffusion models share."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def draw_by_rank(trainer: Trainer) -> None:
    """Give each rank draws of its own, where all begin with one seed."""
    if trainer.world_size > 1:
        torch.manual_seed(torch.initial_seed() + trainer.global_rank)


def spread_timesteps(count: int, steps: int, device: torch.device) -> Tensor:
    """Timesteps (count,) of one permutation, so that none comes twice before all have come, as in DVAR's code."""
    return torch.randperm(steps, device=device).repeat(-(-count // steps))[:count]
