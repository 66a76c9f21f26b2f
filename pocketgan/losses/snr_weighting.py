"""How much each noise level counts in a diffusion loss."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

PredictionType = Literal["epsilon", "sample", "v_prediction"]  # diffusers' names of noise, x0 and velocity


class SNRWeighting(nn.Module, ABC):
    """Slot: a weight for each example from its signal-to-noise ratio."""

    @abstractmethod
    def forward(self, snr: Tensor, prediction_type: PredictionType) -> Tensor:
        """Weigh examples.

        Args:
            snr: (B,) signal-to-noise ratios α²/σ², from 0.
            prediction_type: What the network predicts.

        Returns:
            (B,) weights.
        """


class UniformWeighting(SNRWeighting):
    """Every noise level counts alike: the usual training loss."""

    def forward(self, snr: Tensor, prediction_type: PredictionType) -> Tensor:  # noqa: ARG002
        """Return ones."""
        return torch.ones_like(snr)


class MinSNRWeighting(SNRWeighting):
    """Min-SNR-γ: no level counts more than it would for x0 at an SNR of γ.

    Hang et al., ICCV 2023, arXiv 2303.09556, and its code's ``gaussian_diffusion.py``: min(SNR, γ) for x0, over SNR
    for ε, over SNR + 1 for v; 1 where SNR is 0, as in that code. Above 0 the three are one loss written for three
    predictions. It lowers the weight of low noise: of Stable Diffusion's 1000 timesteps, the first 147.

    Args:
        gamma: The γ; the paper has 5.

    Raises:
        ValueError: γ is not above 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        if gamma <= 0:
            raise ValueError(f"gamma is {gamma}; it must be above 0, the paper has 5")
        self.gamma = gamma

    def forward(self, snr: Tensor, prediction_type: PredictionType) -> Tensor:
        """Clamp and divide."""
        divisor = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction_type]
        return torch.where(snr == 0, 1.0, snr.clamp(max=self.gamma) / divisor)
