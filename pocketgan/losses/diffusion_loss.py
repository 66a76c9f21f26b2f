"""What a diffusion model is trained to predict, and how far off it is."""

from typing import get_args

from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from pocketgan.losses.snr_weighting import PredictionType, SNRWeighting, UniformWeighting


class DiffusionLoss(nn.Module):
    """Mean squared error of a network's prediction, example by example, with a weight for its noise level.

    Args:
        weighting: Weight of each noise level; all alike if None.
    """

    def __init__(self, weighting: SNRWeighting | None = None) -> None:
        super().__init__()
        self.weighting = weighting or UniformWeighting()

    def forward(
        self,
        prediction: Tensor,
        clean: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        scheduler: DDPMScheduler,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compare a prediction with what the scheduler says it should be.

        Args:
            prediction: (B, C or 2C, H, W); of a network that predicts variances too, as DiT does, the first C count.
            clean: (B, C, H, W) pictures or latents without noise.
            noise: (B, C, H, W) that was added.
            timesteps: (B,) whole numbers.
            scheduler: Whose ``prediction_type`` and noise levels hold.
            mask: (B, 1, H, W) of 0 and 1: where the picture is one; everywhere if None.

        Returns:
            (B,) weighted errors; their mean is the loss.

        Raises:
            ValueError: The scheduler's prediction type is none of epsilon, sample and v_prediction.
        """
        kind: PredictionType = scheduler.config.prediction_type
        if kind not in get_args(PredictionType):
            raise ValueError(f"prediction_type {kind} is none of {', '.join(get_args(PredictionType))}")
        if kind == "epsilon":
            target = noise
        elif kind == "sample":
            target = clean
        else:
            target = scheduler.get_velocity(clean, noise, timesteps)
        error = mse_loss(prediction[:, : clean.shape[1]].float(), target.float(), reduction="none")
        if mask is None:
            per_example = error.mean(dim=(1, 2, 3))
        else:
            per_example = (error * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * clean.shape[1])
        return per_example * self.weighting(compute_snr(scheduler, timesteps), kind)
